import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import DiscriminatorConfig
from lsid_ray.model.discriminator import Discriminator


def first_input(network: Discriminator, planes: Tensor, image: Tensor) -> Tensor:
    """The input of the first convolution."""
    captured: list[Tensor] = []
    hook = network.layers[0].register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    network(planes, image)
    hook.remove()
    return captured[0]


def test_the_baseline_discriminator_has_its_parameter_count():
    with torch.device("meta"):
        network = Discriminator(PRESETS["thesia"][1].discriminator, planes=4, scale=1)
    assert sum(p.numel() for p in network.parameters()) == 2_770_625


def test_the_baseline_discriminator_has_its_layers():
    with torch.device("meta"):
        network = Discriminator(PRESETS["thesia"][1].discriminator, planes=4, scale=1)
    convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.stride[0]) for c in convolutions] == [(64, 2), (128, 2), (256, 2), (512, 1), (1, 1)]
    assert all(c.kernel_size == (4, 4) and c.padding == (1, 1) for c in convolutions)
    assert [layer.num_features for layer in network.layers if isinstance(layer, nn.BatchNorm2d)] == [128, 256, 512]
    assert {layer.negative_slope for layer in network.layers if isinstance(layer, nn.LeakyReLU)} == {0.2}


@pytest.mark.parametrize("layers, expected", [(2, 34), (3, 70)])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_logit_has_a_receptive_field_of_34_or_70_packed_pixels(layers: int, expected: int, scale: int):
    network = Discriminator(DiscriminatorConfig(width=2, layers=layers, norm="none"), 4, scale)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.01)  # so that no paths cancel
    planes = torch.rand(1, 4, 128, 128, requires_grad=True)
    image = torch.rand(1, 3, 128 * scale, 128 * scale, requires_grad=True)
    logits = network(planes, image)
    middle = logits.shape[-1] // 2
    gradients = torch.autograd.grad(logits[0, 0, middle, middle], [planes, image])
    for gradient, side in zip(gradients, (1, scale), strict=True):
        nonzero = gradient.abs().sum(dim=(0, 1)).nonzero()
        assert (nonzero.amax(0) - nonzero.amin(0) + 1).tolist() == [expected * side] * 2


def test_a_full_resolution_image_is_unshuffled_without_loss():
    network = Discriminator(DiscriminatorConfig(width=2, layers=2), planes=4, scale=2)
    planes, image = torch.rand(1, 4, 16, 20), torch.rand(1, 3, 32, 40)
    joined = first_input(network, planes, image)
    assert joined.shape == (1, 16, 16, 20)
    assert torch.equal(joined[:, :4], planes)
    assert torch.equal(F.pixel_shuffle(joined[:, 4:], 2), image)


def test_planes_and_image_are_aligned():
    network = Discriminator(DiscriminatorConfig(width=2, layers=2), planes=4, scale=2)
    image = torch.zeros(1, 3, 32, 40)
    image[..., 2 * 7 : 2 * 7 + 2, 2 * 5 : 2 * 5 + 2] = 1
    joined = first_input(network, torch.zeros(1, 4, 16, 20), image)
    assert joined.sum(1)[0].nonzero().tolist() == [[7, 5]]


def test_a_half_resolution_image_is_used_unchanged():
    network = Discriminator(DiscriminatorConfig(width=2, layers=2), planes=4, scale=1)
    planes, image = torch.rand(2, 4, 16, 20), torch.rand(2, 3, 16, 20)
    assert torch.equal(first_input(network, planes, image), torch.cat([planes, image], 1))
    assert network(planes, image).shape == (2, 1, 2, 3)


def test_an_image_of_another_scale_is_rejected():
    network = Discriminator(DiscriminatorConfig(width=2, layers=2), planes=4, scale=2)
    with pytest.raises(RuntimeError):
        network(torch.rand(1, 4, 16, 16), torch.rand(1, 3, 16, 16))


def test_spectral_norm_keeps_the_largest_singular_value_of_every_layer_at_one():
    torch.manual_seed(0)
    network = Discriminator(DiscriminatorConfig(width=4, layers=2, norm="spectral"), planes=4, scale=1)
    planes, image = torch.rand(1, 4, 16, 16), torch.rand(1, 3, 16, 16)
    for _ in range(50):
        network(planes, image)
    convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 4
    for convolution in convolutions:
        largest = torch.linalg.matrix_norm(convolution.weight.flatten(1), ord=2)
        assert largest.item() == pytest.approx(1, abs=0.01)
