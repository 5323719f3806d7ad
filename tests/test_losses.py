"""Losses compared with torch's criteria and with the formulas of the papers."""

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import BCEWithLogitsLoss, L1Loss

from lsid_ray.config.schema import LossConfig
from lsid_ray.model.losses import adversarial_weight, discriminator_loss, generator_loss, l1, ssim

BCE = BCEWithLogitsLoss()


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    real, fake = (3 * torch.randn(2, 1, 5, 4, generator=random, dtype=torch.float64) for _ in range(2))
    return real + 0.7, fake - 0.4


def test_the_pixel_loss_is_the_mean_absolute_error():
    image, target = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    assert l1(image, target) == L1Loss()(image, target)
    assert l1(torch.tensor([0.0, 1.0]), torch.tensor([0.5, -1.0])) == 1.25


def test_ssim_equals_scikit_image_and_falls_when_it_is_descended() -> None:
    random = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, 33, 40, generator=random)
    image = (target + 0.2 * torch.randn(2, 3, 33, 40, generator=random)).clamp(0, 1).requires_grad_()
    options = {"channel_axis": 0, "data_range": 1, "gaussian_weights": True, "sigma": 1.5}
    expected = [
        structural_similarity(x.detach().numpy(), y.numpy(), use_sample_covariance=False, **options)
        for x, y in zip(image.double(), target.double(), strict=True)
    ]
    value = ssim(image, target)
    assert value.item() == pytest.approx(sum(expected) / 2, abs=1e-5) and 0.3 < value < 0.95
    assert ssim(target, target).item() == pytest.approx(1, abs=1e-6)
    (gradient,) = torch.autograd.grad(value, image)
    assert ssim(image + 100 * gradient, target) > value


def test_bce_is_the_cross_entropy_of_pix2pix(logits: tuple[Tensor, Tensor]):
    real, fake = logits
    expected = (BCE(real, torch.ones_like(real)) + BCE(fake, torch.zeros_like(fake))) / 2
    torch.testing.assert_close(discriminator_loss("bce", real, fake).loss, expected)
    torch.testing.assert_close(generator_loss("bce", None, fake), BCE(fake, torch.ones_like(fake)))


def test_hinge_is_the_mean_of_the_margin_violations(logits: tuple[Tensor, Tensor]):
    real, fake = logits
    real_term = sum(max(0, 1 - r) for r in real.flatten().tolist()) / real.numel()
    fake_term = sum(max(0, 1 + f) for f in fake.flatten().tolist()) / fake.numel()
    assert discriminator_loss("hinge", real, fake).loss.item() == pytest.approx(real_term + fake_term)
    assert generator_loss("hinge", None, fake).item() == pytest.approx(-fake.sum().item() / fake.numel())


def test_relativistic_compares_with_the_mean_of_the_other_class(logits: tuple[Tensor, Tensor]):
    real, fake = logits
    real_term, fake_term = real - fake.mean(), fake - real.mean()
    expected = (BCE(real_term, torch.ones_like(real)) + BCE(fake_term, torch.zeros_like(fake))) / 2
    torch.testing.assert_close(discriminator_loss("relativistic", real, fake).loss, expected)
    expected = (BCE(real_term, torch.zeros_like(real)) + BCE(fake_term, torch.ones_like(fake))) / 2
    torch.testing.assert_close(generator_loss("relativistic", real, fake), expected)


@pytest.mark.parametrize("kind", ["bce", "hinge", "relativistic"])
def test_gradients_have_the_right_sign(kind: str, logits: tuple[Tensor, Tensor]):
    real, fake = (values.clone().requires_grad_() for values in logits)
    real_gradient, fake_gradient = torch.autograd.grad(discriminator_loss(kind, real, fake).loss, [real, fake])
    assert real_gradient.sum() < 0 < fake_gradient.sum()
    (fake_gradient,) = torch.autograd.grad(generator_loss(kind, real.detach(), fake), [fake])
    assert fake_gradient.sum() < 0


@pytest.mark.parametrize("kind", ["bce", "hinge", "relativistic"])
def test_losses_of_a_saturated_discriminator_are_finite(kind: str):
    real, fake = torch.full((1, 1, 2, 2), 1e4), torch.full((1, 1, 2, 2), -1e4)
    assert discriminator_loss(kind, real, fake).loss == 0
    assert torch.isfinite(discriminator_loss(kind, fake, real).loss)
    assert torch.isfinite(generator_loss(kind, real, fake))


@pytest.mark.parametrize("kind, expected", [("relativistic", (2 / 3, 1 / 2)), ("hinge", (1, 0)), ("bce", (1, 0))])
def test_accuracy_is_the_share_of_images_on_the_right_side_of_the_boundary(kind: str, expected: tuple[float, float]):
    """An image scores the mean of its logits. The boundary is 0; for "relativistic" 5 for real, 6 for fake images."""
    patches = torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2)
    real, fake = (torch.tensor(scores).view(-1, 1, 1, 1) + patches for scores in ([2.0, 7.0, 9.0], [3.0, 7.0]))
    losses = discriminator_loss(kind, real, fake)
    assert (losses.real_accuracy.item(), losses.fake_accuracy.item()) == pytest.approx(expected)


def test_the_adversarial_weight_is_zero_in_the_warmup_and_then_ramps_up_linearly():
    loss = LossConfig(adv_weight=0.4, warmup_steps=3, ramp_steps=3)
    weights = [adversarial_weight(loss, step) for step in range(9)]
    assert weights == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_without_warmup_and_ramp_the_adversarial_weight_is_constant():
    loss = LossConfig(adv_weight=0.3, warmup_steps=0, ramp_steps=0)
    assert [adversarial_weight(loss, step) for step in (0, 1, 10**6)] == [0.3, 0.3, 0.3]


def test_an_adversarial_weight_of_zero_stays_zero():
    loss = LossConfig(adv_weight=0, warmup_steps=1, ramp_steps=2)
    assert not any(adversarial_weight(loss, step) for step in range(6))
