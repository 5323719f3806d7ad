import copy

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lsid_ray import config
from lsid_ray.evaluate import predict as module
from lsid_ray.evaluate.predict import MEMORY_BYTES, MOST_CPU_BYTES, band_rows, predict, predict_bands
from lsid_ray.model.generator import Generator

NETWORKS = {
    "gates, full resolution": config.Generator(width=4, depth=2),
    "gates, half resolution": config.Generator(width=4, depth=2, output="half"),
    "no gates, transposed": config.Generator(width=4, depth=2, gates=False, upsample="transpose"),
    "batch norm": config.Generator(width=4, depth=2, norm="batch", negative_slope=0),
    "X-Trans": config.Generator(width=4, depth=2, cfa="xtrans"),
    "four levels": config.Generator(width=2, depth=4),
    "four levels, no gates, transposed": config.Generator(width=2, depth=4, gates=False, upsample="transpose"),
}


def make(c: config.Generator) -> Generator:
    """In evaluation mode, with weights larger than at the start of training, so that what is far away shows."""
    torch.manual_seed(0)
    network = Generator(c)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    with torch.no_grad():
        for _ in range(5):  # statistics of BatchNorm that are not those of the start
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
    """The least memory, to a kilobyte, that allows bands of so many rows."""
    return next(m for m in range(0, MEMORY_BYTES, 1 << 10) if band_rows(network, width, m, 4) >= rows)


SIZES = [(64, 96), (61, 83), (50, 33), (330, 18), (7, 90), (3, 2), (1, 1), (129, 1)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("rows", [16, 48, 128])
@torch.no_grad()
def test_bands_together_equal_the_whole_frame_at_any_size(network: Generator, height: int, width: int, rows: int):
    planes = frame(network, height, width)
    whole, whole_weights = network.with_attention(planes)
    bands = list(predict_bands(network, planes, memory_bytes=memory_for(network, width, rows)))
    image = torch.cat([band for band, _ in bands], dim=2)
    assert image.shape == whole.shape == (1, 3, network.scale * height, network.scale * width)
    assert (image - whole).abs().max() <= 1e-5 * max(1, whole.abs().max())
    if whole_weights is None:
        assert all(weights is None for _, weights in bands)
    else:
        assert all(band.shape[2] == network.scale * weights.shape[2] for band, weights in bands)
        weights = torch.cat([weights for _, weights in bands], dim=2)
        assert weights.shape == (1, 1, height, width)
        assert (weights - whole_weights).abs().max() <= 1e-5


def test_prediction_is_its_bands_together(network: Generator):
    planes = frame(network, 61, 22)
    bands = [band for band, _ in predict_bands(network, planes, memory_bytes=0)]
    assert len(bands) > 2
    assert torch.equal(predict(network, planes, memory_bytes=0), torch.cat(bands, dim=2))


def test_double_precision_agrees_to_its_own_rounding(plain: Generator):
    double = copy.deepcopy(plain).double()
    planes = frame(plain, 61, 22).double()
    with torch.no_grad():
        whole = double(planes)
    image = predict(double, planes, memory_bytes=0)
    assert image.dtype == torch.float64
    assert (image - whole).abs().max() <= 1e-13 * max(1, whole.abs().max())


@torch.no_grad()
def test_autocast_gives_the_dtype_and_values_of_the_whole_frame(plain: Generator):
    planes = frame(plain, 61, 22)
    with torch.autocast("cpu", torch.bfloat16):
        whole, image = plain(planes), predict(plain, planes, memory_bytes=0)
    assert image.dtype == whole.dtype == torch.bfloat16
    assert (image - whole).abs().max() <= 0.02 * whole.abs().max()


@torch.no_grad()
def test_a_whole_network_for_each_band_would_show(network: Generator):
    planes = frame(network, 64, 64)
    bands = torch.cat([network(band) for band in planes.split(network.stride, dim=2)], dim=2)
    assert (bands - network(planes)).abs().max() > 1e-2


CONVOLUTIONS = 6 + 2 + 4  # of 3x3 in `plain`: encoders, ups, decoders


@pytest.mark.parametrize("number", range(CONVOLUTIONS))
def test_rows_forgotten_by_any_one_convolution_would_show(plain: Generator, number: int, monkeypatch):
    class Forgetful(module._Layer):
        def push(self, rows: Tensor, last: bool) -> Tensor | None:
            if self.kept is not None:
                self.kept = torch.zeros_like(self.kept)
            return super().push(rows, last)

    remember, met = module._layers, []

    def forget(block: nn.Module) -> list[module._Layer]:
        layers = remember(block)
        for place, layer in enumerate(layers):
            if layer.overlap:
                met.append(layer)
                if len(met) == number + 1:
                    layers[place] = Forgetful(layer.function, layer.overlap, layer.step)
        return layers

    planes = frame(plain, 64, 32)
    whole = predict(plain, planes, memory_bytes=0)
    monkeypatch.setattr(module, "_layers", forget)
    seams = predict(plain, planes, memory_bytes=0) - whole
    assert len(met) == CONVOLUTIONS
    assert seams.abs().max() > 1e-2


@pytest.mark.parametrize("height, width", [(330, 18), (61, 83), (1, 1)])
@torch.no_grad()
def test_nothing_is_computed_twice(network: Generator, height: int, width: int):
    planes = frame(network, height, width)
    with FlopCounterMode(display=False) as whole:
        network(planes)
    for memory_bytes in (0, MEMORY_BYTES):
        with FlopCounterMode(display=False) as streamed:
            predict(network, planes, memory_bytes=memory_bytes)
        assert streamed.get_total_flops() == whole.get_total_flops() > 0


class Watch(TorchDispatchMode):
    """Peak bytes of the tensors made under it and not yet freed, and what its convolutions were given."""

    def __init__(self, planes: Tensor):
        super().__init__()
        self.given = planes.untyped_storage().data_ptr()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
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
            if storage.data_ptr() not in (0, self.given):
                self.live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.live = {place: (held, size) for place, (held, size) in self.live.items() if not held.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return results


WIDE = {
    "four levels": config.Generator(width=8),
    "no gates, transposed": config.Generator(width=8, gates=False, upsample="transpose"),
    "two levels, batch norm": config.Generator(width=8, depth=2, norm="batch"),
}


@pytest.mark.parametrize("c", WIDE.values(), ids=WIDE.keys())
@torch.no_grad()
def test_working_memory_stays_in_the_budget(c: config.Generator):
    network = make(c)
    planes = frame(network, 400, 32)
    with Watch(planes) as whole:
        network(planes)
    for rows in (32, 64, 128):
        budget = memory_for(network, 32, rows)
        with Watch(planes) as streamed:
            for band in predict_bands(network, planes, memory_bytes=budget):
                del band
        assert max(streamed.rows) <= rows + 5  # those kept, and those that the frame's end completes
        assert budget / 3 < streamed.peak <= budget < whole.peak


def test_a_band_has_whole_strides_and_at_least_one(network: Generator):
    for memory_bytes in range(0, 1 << 22, 1 << 16):
        rows = band_rows(network, 100, memory_bytes, 4)
        assert rows % network.stride == 0 and rows >= network.stride
        assert rows <= band_rows(network, 100, memory_bytes + (1 << 16), 4)
        assert rows <= band_rows(network, 100, memory_bytes, 2)
        assert rows >= band_rows(network, 200, memory_bytes, 4)


def test_no_tensor_on_a_cpu_is_so_large_that_it_is_slow():
    with torch.device("meta"):
        elsewhere = Generator(config.Generator())
    network = Generator(config.Generator())
    for width in (2128, 4752):
        rows = band_rows(network, width, 100 * MEMORY_BYTES, 4)
        assert 16 <= rows < band_rows(elsewhere, width, 100 * MEMORY_BYTES, 4)
        assert 4 * 2 * 32 * (rows + 2) * width <= MOST_CPU_BYTES


def test_channels_last_stays_so(plain: Generator):
    layout = torch.channels_last
    planes = frame(plain, 61, 22)
    network = copy.deepcopy(plain).to(memory_format=layout)
    with Watch(planes) as watch:
        image = predict(network, planes.to(memory_format=layout), memory_bytes=0)
    assert all(watch.channels_last)
    whole = predict(plain, planes)
    assert (image - whole).abs().max() <= 1e-5 * max(1, whole.abs().max())


def test_prediction_keeps_no_graph(network: Generator):
    for image, weights in predict_bands(network, frame(network, 20, 20)):
        assert not image.requires_grad
        assert weights is None or not weights.requires_grad
        assert torch.is_grad_enabled()  # between bands the caller's own work is not touched


def test_a_batch_is_refused(plain: Generator):
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\)"):
        predict(plain, torch.rand(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"\(4, 8, 8\)"):
        predict(plain, torch.rand(4, 8, 8))


def test_batch_norm_in_training_mode_is_refused():
    network = make(NETWORKS["batch norm"])
    statistics = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match="eval"):
        predict_bands(network.train(), torch.rand(1, 4, 8, 8))  # before any band is asked for
    assert all(torch.equal(value, statistics[name]) for name, value in network.state_dict().items())
