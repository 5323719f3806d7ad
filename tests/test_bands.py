import copy

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lsid_ray.config.schema import GeneratorConfig
from lsid_ray.inference import bands as bands_module
from lsid_ray.inference.bands import MAX_CPU_TENSOR_BYTES, MEMORY_BYTES, band_rows, predict, predict_bands
from lsid_ray.model.generator import Generator

NETWORKS = {
    "gates, full resolution": GeneratorConfig(width=4, depth=2),
    "gates, half resolution": GeneratorConfig(width=4, depth=2, output="half"),
    "no gates, transposed": GeneratorConfig(width=4, depth=2, gates=False, upsample="transpose"),
    "batch norm": GeneratorConfig(width=4, depth=2, norm="batch", negative_slope=0),
    "X-Trans": GeneratorConfig(width=4, depth=2, cfa="xtrans", input_ratio=True),
    "four levels": GeneratorConfig(width=2, depth=4),
    "residual": GeneratorConfig(width=4, depth=2, residual=True),
    "residual, four levels, batch norm": GeneratorConfig(width=2, depth=4, residual=True, norm="batch"),
    "four levels, no gates, transposed": GeneratorConfig(width=2, depth=4, gates=False, upsample="transpose"),
}


def make(c: GeneratorConfig) -> Generator:
    """In eval mode, with larger weights than at initialization, so that distant pixels have a visible influence."""
    torch.manual_seed(0)
    network = Generator(c)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    with torch.no_grad():
        for _ in range(5):  # move BatchNorm's statistics away from their initial values
            network(3 * torch.rand(2, network.planes, 32, 32))
    return network.eval()


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request) -> Generator:
    return make(request.param)


@pytest.fixture(scope="module")
def plain() -> Generator:
    return make(NETWORKS["gates, full resolution"])


def frame(network: Generator, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.rand(1, network.planes, height, width, generator=generator)


def memory_for(network: Generator, width: int, rows: int) -> int:
    """The smallest memory limit, to a KiB, that allows bands of this many rows."""
    limits = range(0, MEMORY_BYTES, 1 << 10)
    return next(limit for limit in limits if band_rows(network, width, limit, 4) >= rows)


SIZES = [(64, 96), (61, 83), (50, 33), (330, 18), (7, 90), (3, 2), (1, 1), (129, 1)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("rows", [16, 48, 128])
@torch.no_grad()
def test_concatenated_bands_equal_the_full_frame_at_any_size(network: Generator, height: int, width: int, rows: int):
    planes = frame(network, height, width)
    full, full_weights = network.with_attention(planes)
    limit, seen = memory_for(network, width, rows), {}
    bands = predict_bands(network, planes, memory_bytes=limit, on_weights=lambda n, w: seen.setdefault(n, []).append(w))
    image = torch.cat(list(bands), dim=2)
    assert image.shape == full.shape == (1, 3, network.scale * height, network.scale * width)
    assert (image - full).abs().max() <= 1e-5 * max(1, full.abs().max())
    assert sorted(seen) == list(range(network.config.depth if network.config.gates else 0))
    for level, expected in zip(sorted(seen, reverse=True), full_weights, strict=True):
        weights = torch.cat(seen[level], dim=2)
        assert weights.shape[2:] == tuple((side + -side % network.stride) >> level for side in (height, width))
        assert (weights[..., : expected.shape[2], : expected.shape[3]] - expected).abs().max() <= 1e-5


def test_predict_concatenates_the_bands(network: Generator):
    planes = frame(network, 61, 22)
    bands = list(predict_bands(network, planes, memory_bytes=0))
    assert len(bands) > 2
    assert torch.equal(predict(network, planes, memory_bytes=0), torch.cat(bands, dim=2))


def test_double_precision_agrees_to_double_rounding(plain: Generator):
    double = copy.deepcopy(plain).double()
    planes = frame(plain, 61, 22).double()
    with torch.no_grad():
        full = double(planes)
    image = predict(double, planes, memory_bytes=0)
    assert image.dtype == torch.float64
    assert (image - full).abs().max() <= 1e-13 * max(1, full.abs().max())


@torch.no_grad()
def test_autocast_gives_the_dtype_and_values_of_the_full_frame(plain: Generator):
    planes = frame(plain, 61, 22)
    with torch.autocast("cpu", torch.bfloat16):
        full, image = plain(planes), predict(plain, planes, memory_bytes=0)
    assert image.dtype == full.dtype == torch.bfloat16
    assert (image - full).abs().max() <= 0.02 * full.abs().max()


@torch.no_grad()
def test_independent_bands_without_buffers_differ_from_the_full_frame(network: Generator):
    planes = frame(network, 64, 64)
    bands = torch.cat([network(band) for band in planes.split(network.stride, dim=2)], dim=2)
    assert (bands - network(planes)).abs().max() > 1e-2


CONVOLUTIONS = 6 + 2 + 4  # 3x3 convolutions of `plain`: encoders, ups, decoders


@pytest.mark.parametrize("number", range(CONVOLUTIONS))
def test_losing_the_buffer_of_any_convolution_changes_the_result(plain: Generator, number: int, monkeypatch):
    class LayerWithoutBuffer(bands_module._StreamingLayer):
        def push(self, rows: Tensor, is_last: bool) -> Tensor | None:
            if self.buffer is not None:
                self.buffer = torch.zeros_like(self.buffer)
            return super().push(rows, is_last)

    streaming_layers, convolutions = bands_module._streaming_layers, []

    def replace_one_convolution(block: nn.Module) -> list[bands_module._StreamingLayer]:
        layers = streaming_layers(block)
        for index, layer in enumerate(layers):
            if layer.overlap:
                convolutions.append(layer)
                if len(convolutions) == number + 1:
                    layers[index] = LayerWithoutBuffer(layer.function, layer.overlap, layer.stride)
        return layers

    planes = frame(plain, 64, 32)
    expected = predict(plain, planes, memory_bytes=0)
    monkeypatch.setattr(bands_module, "_streaming_layers", replace_one_convolution)
    difference = predict(plain, planes, memory_bytes=0) - expected
    assert len(convolutions) == CONVOLUTIONS
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("height, width", [(330, 18), (61, 83), (1, 1)])
@torch.no_grad()
def test_nothing_is_computed_twice(network: Generator, height: int, width: int):
    planes = frame(network, height, width)
    with FlopCounterMode(display=False) as full:
        network(planes)
    for memory_bytes in (0, MEMORY_BYTES):
        with FlopCounterMode(display=False) as streamed:
            predict(network, planes, memory_bytes=memory_bytes)
        assert streamed.get_total_flops() == full.get_total_flops() > 0


class TensorMonitor(TorchDispatchMode):
    """Records the peak memory of tensors created in its context, and the inputs of convolutions."""

    def __init__(self, planes: Tensor):
        super().__init__()
        self.input_address = planes.untyped_storage().data_ptr()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}  # by address: storage and its size in bytes
        self.peak = 0
        self.rows: list[int] = []
        self.channels_last: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.rows.append(args[0].shape[2])
            self.channels_last.append(args[0].is_contiguous(memory_format=torch.channels_last))
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else [results]:
            storage = result.untyped_storage()
            if storage.data_ptr() not in (0, self.input_address):
                self.live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.live = {address: (ref, size) for address, (ref, size) in self.live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return results


WIDE = {
    "four levels": GeneratorConfig(width=8),
    "no gates, transposed": GeneratorConfig(width=8, gates=False, upsample="transpose"),
    "residual": GeneratorConfig(width=8, residual=True),
    "two levels, batch norm": GeneratorConfig(width=8, depth=2, norm="batch"),
}


@pytest.mark.parametrize("c", WIDE.values(), ids=WIDE.keys())
@torch.no_grad()
def test_working_memory_stays_within_the_limit(c: GeneratorConfig):
    network = make(c)
    planes = frame(network, 400, 32)
    with TensorMonitor(planes) as full:
        network(planes)
    for rows in (32, 64, 128):
        limit = memory_for(network, 32, rows)
        with TensorMonitor(planes) as streamed:
            for band in predict_bands(network, planes, memory_bytes=limit):
                del band
        assert max(streamed.rows) <= rows + 5  # plus buffered rows, and rows released at the end of the frame
        assert limit / 3 < streamed.peak <= limit < full.peak


def test_the_band_height_is_a_positive_multiple_of_the_stride(network: Generator):
    for memory_bytes in range(0, 1 << 22, 1 << 16):
        rows = band_rows(network, 100, memory_bytes, 4)
        assert rows % network.stride == 0 and rows >= network.stride
        assert rows <= band_rows(network, 100, memory_bytes + (1 << 16), 4)
        assert rows <= band_rows(network, 100, memory_bytes, 2)
        assert rows >= band_rows(network, 200, memory_bytes, 4)


def test_bands_on_a_cpu_respect_the_tensor_size_limit():
    with torch.device("meta"):
        on_meta = Generator(GeneratorConfig())
    network = Generator(GeneratorConfig())
    for width in (2128, 4752):
        rows = band_rows(network, width, 100 * MEMORY_BYTES, 4)
        assert 16 <= rows < band_rows(on_meta, width, 100 * MEMORY_BYTES, 4)
        assert 4 * 2 * 32 * (rows + 2) * width <= MAX_CPU_TENSOR_BYTES


def test_the_channels_last_layout_is_preserved(plain: Generator):
    layout = torch.channels_last
    planes = frame(plain, 61, 22)
    network = copy.deepcopy(plain).to(memory_format=layout)
    with TensorMonitor(planes) as monitor:
        image = predict(network, planes.to(memory_format=layout), memory_bytes=0)
    assert all(monitor.channels_last)
    full = predict(plain, planes)
    assert (image - full).abs().max() <= 1e-5 * max(1, full.abs().max())


def test_prediction_builds_no_autograd_graph(network: Generator):
    weights: list[Tensor] = []
    for image in predict_bands(network, frame(network, 20, 20), on_weights=lambda _, rows: weights.append(rows)):
        assert not any(each.requires_grad for each in (image, *weights))
        assert torch.is_grad_enabled()  # the caller's grad mode is unchanged between bands


def test_a_batch_of_frames_is_rejected(plain: Generator):
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\)"):
        predict(plain, torch.rand(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"\(4, 8, 8\)"):
        predict(plain, torch.rand(4, 8, 8))


def test_batch_norm_in_training_mode_is_rejected():
    network = make(NETWORKS["batch norm"])
    statistics = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match="eval"):
        predict_bands(network.train(), torch.rand(1, 4, 8, 8))  # raises before the first band is requested
    assert all(torch.equal(value, statistics[name]) for name, value in network.state_dict().items())
