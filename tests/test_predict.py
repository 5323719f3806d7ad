import pytest
import torch
from torch import Tensor, nn

from lsid_ray import config
from lsid_ray.evaluate.predict import predict
from lsid_ray.model.generator import Generator

NETWORKS = {
    "gates, full resolution": config.Generator(width=4, depth=2),
    "gates, half resolution": config.Generator(width=4, depth=2, output="half"),
    "no gates, transposed": config.Generator(width=4, depth=2, gates=False, upsample="transpose"),
    "four levels": config.Generator(width=2, depth=4),
}


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request) -> Generator:
    torch.manual_seed(0)
    network = Generator(request.param).eval()
    for parameter in network.parameters():
        if parameter.ndim == 4:  # larger than at the start of training, so that what is far away shows
            nn.init.kaiming_normal_(parameter)
    return network


def frame(height: int, width: int) -> Tensor:
    return torch.rand(1, 4, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


@pytest.mark.parametrize("height, width", [(64, 96), (61, 83), (50, 33), (330, 18), (7, 90), (3, 2), (1, 1)])
@pytest.mark.parametrize("tile", [16, 30, 64])
def test_tiled_equals_untiled_at_any_size(network: Generator, height: int, width: int, tile: int):
    planes = frame(height, width)
    whole = predict(network, planes, tile=None)
    tiled = predict(network, planes, tile=tile)
    assert tiled.shape == (1, 3, network.scale * height, network.scale * width)
    assert (tiled - whole).abs().max() <= 1e-5 * max(1, whole.abs().max())


def test_too_small_a_halo_would_show(network: Generator):
    class ShortSighted(nn.Module):
        stride, scale, receptive_radius = network.stride, network.scale, 0

        def forward(self, planes: Tensor) -> Tensor:
            return network(planes)

    planes = frame(64, 64)
    seams = predict(ShortSighted(), planes, tile=16) - predict(network, planes, tile=None)
    assert seams.abs().max() > 1e-2


@torch.no_grad()
def test_no_output_pixel_sees_further_than_the_receptive_radius(network: Generator):
    radius, scale = network.receptive_radius, network.scale
    side = 2 * radius + 2 * network.stride
    plain = torch.full((1, 4, side, side), 0.5)
    for phase in range(0, network.stride, max(1, network.stride // 4)):
        centre = radius + phase
        touched = plain.clone()
        touched[..., centre, centre] += 100
        changed = (network(touched) != network(plain)).any(dim=1)[0].nonzero() // scale
        assert len(changed) > 0 and (changed - centre).abs().max() <= radius


def test_no_pass_sees_more_than_a_tile_and_its_halo(network: Generator):
    seen: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].shape[2:]))
    predict(network, frame(400, 150), tile=32)
    hook.remove()
    halo = -(-network.receptive_radius // network.stride) * network.stride
    assert len(seen) > 2 and max(seen) <= 32 + 2 * halo


def test_prediction_keeps_no_graph(network: Generator):
    assert not predict(network, frame(20, 20), tile=16).requires_grad
    assert not predict(network, frame(20, 20), tile=None).requires_grad


def test_a_batch_or_an_empty_tile_is_refused(network: Generator):
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\)"):
        predict(network, torch.rand(2, 4, 8, 8), tile=None)
    with pytest.raises(ValueError, match="got 0"):
        predict(network, torch.rand(1, 4, 8, 8), tile=0)
