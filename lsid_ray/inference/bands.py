"""Streaming inference: a full frame goes through the U-Net in bands of rows.

The result equals that of a single pass, in bounded memory and without computing anything twice. Each layer takes rows
from top to bottom and buffers only those that later rows need: a 3x3 convolution the last two, pooling an odd row,
a skip connection the rows that the coarser levels have not reached. Bands always span the full width.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsid_ray.model.generator import Generator, ResidualBlock

MEMORY_BYTES = 1 << 30
MAX_CPU_TENSOR_BYTES = 32 << 20  # per tensor; glibc maps fresh pages for each larger one, a fifth of the run time
OnWeights = Callable[[int, Tensor], None]


def no_weights(level: int, weights: Tensor) -> None:
    """Takes no notice of a gate's weights."""


def predict(generator: Generator, planes_1Chw: Tensor, *, memory_bytes: int = MEMORY_BYTES) -> Tensor:
    """Enhance one frame with `predict_bands` and concatenate the bands; same arguments and errors.

    Returns (1, 3, scale * h, scale * w), unclamped, in the network's dtype, on the frame's device.
    """
    image_13HW, top = None, 0
    height, width = (generator.scale * side for side in planes_1Chw.shape[-2:])
    for band in predict_bands(generator, planes_1Chw, memory_bytes=memory_bytes):
        if image_13HW is None:
            image_13HW = band.new_empty(1, 3, height, width)
        image_13HW[:, :, top : top + band.shape[2]] = band
        top += band.shape[2]
    return image_13HW


def predict_bands(
    generator: Generator,
    planes_1Chw: Tensor,
    *,
    memory_bytes: int = MEMORY_BYTES,
    on_weights: OnWeights = no_weights,
) -> Iterator[Tensor]:
    """Enhance one frame band by band, from top to bottom; equals a single pass to float rounding.

    generator: on the frame's device; not changed. planes_1Chw: (1, C, h, w) float, the generator's input.
    memory_bytes: limit of the working memory, which excludes the frame, the weights and the bands already yielded. It
        sets the height of the bands; bands have at least one stride of rows, even if these exceed the limit.
    on_weights: called with the level of a gate, of which 0 is the finest, and the next rows of its weights, from top to
        bottom: (1, 1, rows, w / 2**level) in (0, 1). Frame and weights are padded to multiples of the stride.
    Yields rows of the image (1, 3, scale * rows, scale * w), unclamped. Bands differ in height; none is empty.
    Raises ValueError for another shape, or for BatchNorm in training mode, whose statistics need all rows at once.
    """
    if planes_1Chw.ndim != 4 or planes_1Chw.shape[0] != 1:
        raise ValueError(f"expected one frame of shape (1, C, h, w), got {(*planes_1Chw.shape,)}")
    if any(isinstance(module, nn.BatchNorm2d) and module.training for module in generator.modules()):
        raise ValueError("expected the generator in eval mode, got BatchNorm in training mode")
    rows = band_rows(generator, planes_1Chw.shape[3], memory_bytes, planes_1Chw.element_size())
    return _predict_bands(generator, planes_1Chw, rows, on_weights)


def band_rows(generator: Generator, width: int, memory_bytes: int, bytes_per_value: int) -> int:
    """The number of packed rows of `width` columns per band: a multiple of the stride, at least one stride.

    On a CPU, MAX_CPU_TENSOR_BYTES limits it too.
    """
    c = generator.config
    row_bytes = c.width * (width + -width % generator.stride) * bytes_per_value  # of the finest level's features
    # Memory in units of row_bytes: skips hold about 15 * 2**depth, the buffers of convolutions 13 per level. Each row
    # of a band needs up to 14, at the first convolution of the finest decoder: its input (2), the same concatenated
    # with the buffer (2) and in the convolution's own layout (2), its output twice (2), the input of the upsampling,
    # skips, and coarser levels.
    rows = (memory_bytes // row_bytes - 15 * generator.stride - 13 * c.depth) // 14
    if generator.head.weight.device.type == "cpu":
        rows = min(rows, MAX_CPU_TENSOR_BYTES // (2 * row_bytes) - 2)
    return max(rows // generator.stride, 1) * generator.stride


@torch.no_grad()
def _predict_bands(generator: Generator, planes_1Chw: Tensor, rows: int, on_weights: OnWeights) -> Iterator[Tensor]:
    height, width = planes_1Chw.shape[2:]
    scale, stride = generator.scale, generator.stride
    finest = _Level(generator, 0, rows, on_weights)
    rows_yielded = 0
    for top in range(0, height, rows):
        band = planes_1Chw[:, :, top : top + rows]
        band = F.pad(band, (0, -width % stride, 0, -band.shape[2] % stride), mode="replicate")
        for features, _ in finest.push(band, is_last=top + rows >= height):
            count = min(features.shape[2], height - rows_yielded)  # without the padding
            image = F.pixel_shuffle(generator.head(features), scale)
            if count:
                yield image[..., : scale * count, : scale * width]
            rows_yielded += count


class _Level:
    """One level of the U-Net and all coarser ones: takes its input rows, yields its decoded rows with a delay."""

    def __init__(self, generator: Generator, level: int, max_rows: int, on_weights: OnWeights):
        self.max_rows = max_rows
        self.encoder = _streaming_layers(generator.encoders[level])
        self.coarser = None
        if level < generator.config.depth:
            self.coarser = _Level(generator, level + 1, max_rows // 2, on_weights)
            self.pool = _StreamingLayer(partial(F.max_pool2d, kernel_size=2), stride=2)
            self.up = _streaming_layers(generator.ups[level])
            self.gate = generator.gates[level] if generator.gates else None
            self.decoder = _streaming_layers(generator.decoders[level])
            self.skips = _RowQueue()
            self.on_weights = partial(on_weights, level)

    def push(self, rows: Tensor | None, is_last: bool) -> Iterator[tuple[Tensor, bool]]:
        """Yields all decoded rows that are ready, at most `max_rows` at a time, each with its own `is_last`.

        is_last: whether these are the last rows of the frame.
        """
        rows = _push_through(self.encoder, rows, is_last)
        if self.coarser is None:
            yield from _split(rows, is_last, self.max_rows)
            return
        if rows is not None:
            self.skips.put(rows)
        for coarse, coarse_is_last in self.coarser.push(_push_through([self.pool], rows, is_last), is_last):
            rows = _push_through(self.up, coarse, coarse_is_last)
            skip = self.skips.take(rows.shape[2])
            if self.gate is not None:
                skip, weights = self.gate(rows, skip)
                self.on_weights(weights)
            rows = torch.cat([skip, rows], dim=1)
            del skip  # frees its memory before the decoder runs
            rows = _push_through(self.decoder, rows, coarse_is_last)
            yield from _split(rows, coarse_is_last, self.max_rows)


class _StreamingLayer:
    """A layer that takes its input in bands of rows, and buffers the rows that later output needs.

    overlap: rows that neighboring windows share (3x3 convolution: 2); the frame gets half as many rows of zero padding
        at its top and at its bottom.
    stride: input rows per output row (2x2 pooling: 2).
    """

    def __init__(self, function: Callable[[Tensor], Tensor], overlap: int = 0, stride: int = 1):
        self.function, self.overlap, self.stride = function, overlap, stride
        self.buffer: Tensor | None = None

    def push(self, rows: Tensor, is_last: bool) -> Tensor | None:
        """Returns the output rows that are ready, or None."""
        padding = torch.zeros_like(rows[:, :, : self.overlap // 2])
        window = _concatenate([padding if self.buffer is None else self.buffer, rows, *([padding] if is_last else [])])
        ready = (window.shape[2] - self.overlap) // self.stride * self.stride
        self.buffer = window[:, :, ready:].clone()  # a view would keep the entire window in memory
        return self.function(window[:, :, : ready + self.overlap]) if ready > 0 else None


class _StreamingBlock:
    """A residual block as a layer: what its shortcut adds waits for the rows that come out of its convolutions."""

    def __init__(self, block: ResidualBlock):
        self.convolutions = _streaming_layers(block.convolutions)
        self.shortcut = block.shortcut
        self.waiting: Tensor | None = None

    def push(self, rows: Tensor, is_last: bool) -> Tensor | None:
        """As of `_StreamingLayer`."""
        added = self.shortcut(rows)
        added = added if self.waiting is None else torch.cat([self.waiting, added], dim=2)
        rows = _push_through(self.convolutions, rows, is_last)
        count = 0 if rows is None else rows.shape[2]
        self.waiting = added[:, :, count:].clone()
        return None if rows is None else rows.add_(added[:, :, :count])


class _RowQueue:
    """A FIFO queue of rows."""

    def __init__(self):
        self.bands: deque[Tensor] = deque()

    def put(self, rows: Tensor) -> None:
        self.bands.append(rows)

    def take(self, count: int) -> Tensor:
        taken = []
        while count:
            band = self.bands.popleft()
            if band.shape[2] > count:
                self.bands.appendleft(band[:, :, count:])
                band = band[:, :, :count]
            taken.append(band)
            count -= band.shape[2]
        return _concatenate(taken)


def _streaming_layers(module: nn.Module) -> list[_StreamingLayer | _StreamingBlock]:
    """The layers of one block. All but 3x3 convolutions process each row independently."""
    if isinstance(module, ResidualBlock):
        return [_StreamingBlock(module)]
    layers = []
    for layer in module if isinstance(module, nn.Sequential) else [module]:
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            convolve = partial(F.conv2d, weight=layer.weight, bias=layer.bias, padding=(0, 1))
            layers.append(_StreamingLayer(convolve, overlap=2))
        else:
            layers.append(_StreamingLayer(layer))
    return layers


def _push_through(layers: list[_StreamingLayer | _StreamingBlock], rows: Tensor | None, is_last: bool) -> Tensor | None:
    for layer in layers:
        if rows is None:
            break
        rows = layer.push(rows, is_last)
    return rows


def _split(rows: Tensor | None, is_last: bool, max_rows: int) -> Iterator[tuple[Tensor, bool]]:
    """Limit the rows passed on at a time: at the end of the frame more than a band can become ready at once."""
    parts = [] if rows is None else rows.split(max_rows, dim=2)
    for number, part in enumerate(parts, start=1):
        yield part, is_last and number == len(parts)


def _concatenate(bands: list[Tensor]) -> Tensor:
    bands = [band for band in bands if band.shape[2]]
    return torch.cat(bands, dim=2) if len(bands) > 1 else bands[0]
