"""A full frame through the generator in bands of rows: exact, in bounded memory, nothing computed twice.

Each layer is given rows from top to bottom and keeps only those that later rows still need: a 3x3 convolution
the last two, pooling an odd one, a skip what the coarser levels have not caught up with. Columns are never cut.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsid_ray.model.generator import Generator

MEMORY_BYTES = 1 << 30
MOST_CPU_BYTES = 32 << 20  # of one tensor; glibc takes fresh pages for each larger one, a fifth of the time


def predict(generator: Generator, planes_1Chw: Tensor, *, memory_bytes: int = MEMORY_BYTES) -> Tensor:
    """Enhance one frame: the bands of `predict_bands` together, whose arguments and errors these are.

    Returns (1, 3, scale * h, scale * w), unclamped, in the network's dtype, on the frame's device.
    """
    image_13HW, done = None, 0
    height, width = (generator.scale * side for side in planes_1Chw.shape[-2:])
    for band, _ in predict_bands(generator, planes_1Chw, memory_bytes=memory_bytes):
        if image_13HW is None:
            image_13HW = band.new_empty(1, 3, height, width)
        image_13HW[:, :, done : done + band.shape[2]] = band
        done += band.shape[2]
    return image_13HW


def predict_bands(
    generator: Generator, planes_1Chw: Tensor, *, memory_bytes: int = MEMORY_BYTES
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Enhance one frame band by band, from top to bottom; equal to the whole frame at once to float rounding.

    generator: on the frame's device; not changed. planes_1Chw: (1, C, h, w) float in [0, 1], the generator's input.
    memory_bytes: bounds what lives meanwhile beside the frame, the weights and the bands given out, by the height
        of the bands. Where even bands of one stride take more, they are taken all the same.
    Yields the image's rows (1, 3, scale * rows, scale * w), unclamped, and the finest gate's weights for them
        (1, 1, rows, w) in (0, 1), or None without gates. The bands differ in height; none is empty.
    Raises ValueError for another shape, or BatchNorm in training mode, which would look at all rows at once.
    """
    if planes_1Chw.ndim != 4 or planes_1Chw.shape[0] != 1:
        raise ValueError(f"expected one frame of shape (1, C, h, w), got {(*planes_1Chw.shape,)}")
    if any(isinstance(module, nn.BatchNorm2d) and module.training for module in generator.modules()):
        raise ValueError("expected the generator in eval mode, got BatchNorm in training mode")
    rows = band_rows(generator, planes_1Chw.shape[3], memory_bytes, planes_1Chw.element_size())
    return _bands(generator, planes_1Chw, rows)


def band_rows(generator: Generator, width: int, memory_bytes: int, bytes_per_value: int) -> int:
    """How many packed rows of `width` columns go in at once: a multiple of the stride, and at least it.

    On a CPU also no more than keeps every tensor small enough to be quick.
    """
    c = generator.config
    row_bytes = c.width * (width + -width % generator.stride) * bytes_per_value  # of the finest level's features
    # Counted in such rows: skips wait for about 15 * 2**depth, and convolutions keep 13 a level. For each row of a
    # band, the finest decoder's first convolution finds up to 14: its input (2), joined with the kept rows (2) and
    # in the convolution's own layout (2), its output twice (2), what it was upsampled from, skips, coarser levels.
    rows = (memory_bytes // row_bytes - 15 * generator.stride - 13 * c.depth) // 14
    if generator.head.weight.device.type == "cpu":
        rows = min(rows, MOST_CPU_BYTES // (2 * row_bytes) - 2)
    return max(rows // generator.stride, 1) * generator.stride


@torch.no_grad()
def _bands(generator: Generator, planes_1Chw: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    height, width = planes_1Chw.shape[2:]
    scale, stride = generator.scale, generator.stride
    finest = _Level(generator, 0, rows)
    done = 0
    for top in range(0, height, rows):
        band = planes_1Chw[:, :, top : top + rows]
        band = F.pad(band, (0, -width % stride, 0, -band.shape[2] % stride), mode="replicate")
        for features, _ in finest.push(band, last=top + rows >= height):
            count = min(features.shape[2], height - done)
            weights = finest.weights.take(features.shape[2])[..., :count, :width] if generator.gates else None
            image = F.pixel_shuffle(generator.head(features), scale)
            if count:
                yield image[..., : scale * count, : scale * width], weights
            done += count


class _Level:
    """A level of the U-Net and all below it: that level's rows in, its decoded rows out, some pushes later."""

    def __init__(self, generator: Generator, level: int, most_rows: int):
        self.most_rows = most_rows
        self.encoder = _layers(generator.encoders[level])
        self.coarser = _Level(generator, level + 1, most_rows // 2) if level < generator.config.depth else None
        if self.coarser is not None:
            self.pool = _Layer(partial(F.max_pool2d, kernel_size=2), step=2)
            self.up = _layers(generator.ups[level])
            self.gate = generator.gates[level] if generator.gates else None
            self.decoder = _layers(generator.decoders[level])
            self.skips = _Queue()
            self.weights = _Queue() if level == 0 else None

    def push(self, rows: Tensor | None, last: bool) -> Iterator[tuple[Tensor, bool]]:
        """Yields what can be known by now, about `most_rows` at a time, and whether these are the frame's last."""
        rows = _through(self.encoder, rows, last)
        if self.coarser is None:
            yield from _parts(rows, last, self.most_rows)
            return
        if rows is not None:
            self.skips.put(rows)
        for coarse, ends in self.coarser.push(_through([self.pool], rows, last), last):
            rows = _through(self.up, coarse, ends)
            skip = self.skips.take(rows.shape[2])
            if self.gate is not None:
                skip, weights = self.gate(rows, skip)
                if self.weights is not None:
                    self.weights.put(weights)
            rows = torch.cat([skip, rows], dim=1)
            del skip  # its memory is wanted below
            rows = _through(self.decoder, rows, ends)
            yield from _parts(rows, ends, self.most_rows)


class _Layer:
    """A layer that is given its input in bands, and keeps the rows that later ones still need.

    overlap: rows shared by neighbouring windows, half of them zero at the frame's top and bottom (3x3 convolution: 2).
    step: rows that only go in together (2x2 pooling: 2).
    """

    def __init__(self, function: Callable[[Tensor], Tensor], overlap: int = 0, step: int = 1):
        self.function, self.overlap, self.step = function, overlap, step
        self.kept: Tensor | None = None

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        """The rows of the output that can be known by now, or None."""
        edge = torch.zeros_like(rows[:, :, : self.overlap // 2])
        window = _join([edge if self.kept is None else self.kept, rows, *([edge] if last else [])])
        ready = (window.shape[2] - self.overlap) // self.step * self.step
        self.kept = window[:, :, ready:].clone()  # a view would hold the whole band
        return self.function(window[:, :, : ready + self.overlap]) if ready > 0 else None


class _Queue:
    """Rows that wait to be taken, from top to bottom."""

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
        return _join(taken)


def _layers(module: nn.Module) -> list[_Layer]:
    """The layers of one block; all but 3x3 convolutions work on single rows."""
    layers = []
    for layer in module if isinstance(module, nn.Sequential) else [module]:
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layers.append(_Layer(partial(F.conv2d, weight=layer.weight, bias=layer.bias, padding=(0, 1)), overlap=2))
        else:
            layers.append(_Layer(layer))
    return layers


def _through(layers: list[_Layer], rows: Tensor | None, last: bool) -> Tensor | None:
    for layer in layers:
        if rows is None:
            break
        rows = layer.push(rows, last)
    return rows


def _parts(rows: Tensor | None, last: bool, most_rows: int) -> Iterator[tuple[Tensor, bool]]:
    """Cut rows, so that the many that become ready at the frame's end take no more memory than a band."""
    parts = [] if rows is None else rows.split(most_rows, dim=2)
    for number, part in enumerate(parts, start=1):
        yield part, last and number == len(parts)


def _join(bands: list[Tensor]) -> Tensor:
    bands = [band for band in bands if band.shape[2]]
    return torch.cat(bands, dim=2) if len(bands) > 1 else bands[0]
