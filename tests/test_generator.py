import pytest
import torch
from torch import Tensor, nn

from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import GeneratorConfig
from lsid_ray.model.generator import AttentionGate, Generator

SMALL = {
    "full": GeneratorConfig(width=4, depth=2),
    "half": GeneratorConfig(width=4, depth=2, output="half"),
    "batch norm": GeneratorConfig(width=4, depth=2, norm="batch", negative_slope=0),
    "no gates": GeneratorConfig(width=4, depth=2, gates=False, upsample="transpose"),
    "four levels": GeneratorConfig(width=2, depth=4),
    "residual": GeneratorConfig(width=4, depth=2, residual=True),
}


@pytest.fixture(scope="module", params=SMALL.values(), ids=SMALL.keys())
def network(request) -> Generator:
    return make(request.param)


def make(c: GeneratorConfig) -> Generator:
    """In eval mode, with larger weights than at initialization, so that distant pixels have a visible influence."""
    torch.manual_seed(0)
    network = Generator(c)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    network.train()
    for _ in range(5):  # move BatchNorm's statistics away from their initial values
        network(3 * noise(2, 32, 32))
    return network.eval()


def noise(batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 4, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


@pytest.mark.parametrize("name, parameters", [("thesia", 34_879_279), ("chen", 7_760_268)])
def test_the_published_networks_have_their_parameter_counts(name: str, parameters: int):
    with torch.device("meta"):
        network = Generator(PRESETS[name][1].generator)
    assert sum(p.numel() for p in network.parameters()) == parameters


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (3, 2), (5, 4), (8, 8), (13, 22), (16, 32), (17, 31)])
def test_the_output_has_the_expected_shape_at_any_size(network: Generator, height: int, width: int):
    image, weights = network.with_attention(noise(2, height, width))
    assert image.shape == (2, 3, network.scale * height, network.scale * width)
    assert image.isfinite().all()
    levels = range(network.config.depth if network.config.gates else 0)
    sizes = [(-(-height // 2**level), -(-width // 2**level)) for level in reversed(levels)]
    assert [each.shape for each in weights] == [(2, 1, *size) for size in sizes] and len(network.gates) == len(levels)


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(16, 32), (13, 22)])
def test_the_input_is_padded_by_repeating_the_last_row_and_column(network: Generator, height: int, width: int):
    planes, stride = noise(1, height, width), network.stride
    rows = torch.arange(-(-height // stride) * stride).clamp_max(height - 1)
    columns = torch.arange(-(-width // stride) * stride).clamp_max(width - 1)
    padded = network(planes[:, :, rows][..., columns])
    expected = padded[..., : network.scale * height, : network.scale * width]
    torch.testing.assert_close(network(planes), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pixel_shuffle_places_the_four_output_pixels_of_each_packed_pixel():
    network = make(SMALL["full"])
    head_outputs: list[Tensor] = []
    network.head.register_forward_hook(lambda *call: head_outputs.append(call[2]))
    image = network(noise(1, 8, 12))
    for color in range(3):
        for y in range(16):
            for x in range(24):
                assert image[0, color, y, x] == head_outputs[0][0, 4 * color + 2 * (y % 2) + x % 2, y // 2, x // 2]


@torch.no_grad()
def test_gates_without_batch_norm_start_open():
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(width=8, depth=3)).eval()
    weights: list[Tensor] = []
    for gate in network.gates:
        gate.register_forward_hook(lambda *call: weights.append(call[2][1]))
    network(noise(1, 32, 32))
    assert len(weights) == 3
    assert all(w.min() > 0.85 and w.max() < 1 for w in weights)


@torch.no_grad()
def test_a_gate_multiplies_the_skip_by_one_weight_per_pixel():
    torch.manual_seed(0)
    gate = AttentionGate(6, "none")
    coarse, skip = torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7)
    gated, weights = gate(coarse, skip)
    (g, _), (s, _), (last, *_) = gate.from_gate, gate.from_skip, gate.weight
    for y in range(5):
        for x in range(7):
            hidden = (
                g.weight[:, :, 0, 0] @ coarse[0, :, y, x] + g.bias + s.weight[:, :, 0, 0] @ skip[0, :, y, x] + s.bias
            )
            weight = torch.sigmoid(last.weight[0, :, 0, 0] @ hidden.clamp_min(0) + last.bias[0])
            assert weights[0, 0, y, x].item() == pytest.approx(weight.item(), abs=1e-6)
            torch.testing.assert_close(gated[0, :, y, x], skip[0, :, y, x] * weight)


@torch.no_grad()
def test_with_attention_returns_the_weights_of_all_gates():
    network = make(SMALL["full"])
    seen: list[Tensor] = []
    for gate in network.gates:
        gate.register_forward_hook(lambda *call: seen.append(call[2][1]))
    image, (coarse, fine) = network.with_attention(noise(1, 13, 22))
    assert torch.equal(fine, seen[1][..., :13, :22]) and torch.equal(coarse, seen[0][..., :7, :11])
    assert torch.equal(image, network(noise(1, 13, 22)))


@torch.no_grad()
def test_a_closed_gate_blocks_its_skip():
    network = make(SMALL["full"])
    nn.init.zeros_(network.gates[0].weight[0].weight)
    inputs = []
    network.decoders[0].register_forward_pre_hook(lambda _, call: inputs.append(call[0]))
    for bias in (-100.0, 100.0):
        nn.init.constant_(network.gates[0].weight[0].bias, bias)
        network(noise(1, 16, 16))
    width = network.config.width
    assert (inputs[0][:, :width] == 0).all() and (inputs[1][:, :width] != 0).any()
    assert torch.equal(inputs[0][:, width:], inputs[1][:, width:])


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(network: Generator):
    planes = noise(3, 20, 28)
    batch_output = network(planes)
    for i in range(3):
        torch.testing.assert_close(network(planes[i : i + 1])[0], batch_output[i], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_samples_of_a_training_batch_depend_on_each_other_only_with_batch_norm():
    for name, expected in (("full", False), ("batch norm", True)):
        network, planes = make(SMALL[name]).train(), noise(2, 16, 16)
        alone = network(planes[:1])[0]
        assert (not torch.allclose(network(planes)[0], alone, rtol=1e-3, atol=1e-4)) == expected


@torch.no_grad()
def test_eval_mode_does_not_change_batch_norm_statistics():
    network = make(SMALL["batch norm"])
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert before
    network(5 * noise(1, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


@pytest.mark.parametrize("cfa", ["bayer", "xtrans"])
def test_an_untrained_network_draws_no_grid_into_a_packed_pixel(cfa: str):
    torch.manual_seed(0)
    config = GeneratorConfig(width=4, depth=2, cfa=cfa)
    planes = torch.rand(1, Generator(config).planes, 8, 12)
    image = Generator(config)(planes)
    scale = Generator(config).scale
    tiles = image.unfold(2, scale, scale).unfold(3, scale, scale).flatten(4)
    assert torch.equal(tiles, tiles[..., :1].expand_as(tiles)) and image.std() > 1e-4
    tiles = Generator(PRESETS["chen"][1].generator)(torch.rand(1, 4, 16, 16)).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert not torch.equal(tiles, tiles[..., :1].expand_as(tiles)), "SID's network is left as it is"
