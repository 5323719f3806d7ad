"""Losses against torch's own criteria and the papers' formulas written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import BCEWithLogitsLoss, L1Loss

from lsid_ray import config
from lsid_ray.model.losses import adversarial_weight, discriminator_loss, generator_loss, l1

BCE = BCEWithLogitsLoss()


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    real, fake = (3 * torch.randn(2, 1, 5, 4, generator=random, dtype=torch.float64) for _ in range(2))
    return real + 0.7, fake - 0.4


def ones(like: Tensor) -> Tensor:
    return torch.ones_like(like)


def zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like)


def test_the_pixel_loss_is_the_mean_absolute_error():
    image, target = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    assert l1(image, target) == L1Loss()(image, target)
    assert l1(torch.tensor([0.0, 1.0]), torch.tensor([0.5, -1.0])) == 1.25


def test_cross_entropy_is_pix2pixs(logits: tuple[Tensor, Tensor]):
    real, fake = logits
    expected = (BCE(real, ones(real)) + BCE(fake, zeros(fake))) / 2
    torch.testing.assert_close(discriminator_loss("bce", real, fake), expected)
    torch.testing.assert_close(generator_loss("bce", None, fake), BCE(fake, ones(fake)))


def test_hinge_is_the_mean_of_the_margins(logits: tuple[Tensor, Tensor]):
    real, fake = logits
    of_real = sum(max(0, 1 - r) for r in real.flatten().tolist()) / real.numel()
    of_fake = sum(max(0, 1 + f) for f in fake.flatten().tolist()) / fake.numel()
    assert discriminator_loss("hinge", real, fake).item() == pytest.approx(of_real + of_fake)
    assert generator_loss("hinge", None, fake).item() == pytest.approx(-fake.sum().item() / fake.numel())


def test_relativistic_compares_with_the_other_sides_mean(logits: tuple[Tensor, Tensor]):
    real, fake = logits
    of_real, of_fake = real - fake.mean(), fake - real.mean()
    expected = (BCE(of_real, ones(real)) + BCE(of_fake, zeros(fake))) / 2
    torch.testing.assert_close(discriminator_loss("relativistic", real, fake), expected)
    expected = (BCE(of_real, zeros(real)) + BCE(of_fake, ones(fake))) / 2
    torch.testing.assert_close(generator_loss("relativistic", real, fake), expected)


@pytest.mark.parametrize("kind", ["bce", "hinge", "relativistic"])
def test_each_side_gains_from_its_own_direction(kind: str, logits: tuple[Tensor, Tensor]):
    real, fake = (side.clone().requires_grad_() for side in logits)
    of_real, of_fake = torch.autograd.grad(discriminator_loss(kind, real, fake), [real, fake])
    assert of_real.sum() < 0 < of_fake.sum()
    (of_fake,) = torch.autograd.grad(generator_loss(kind, real.detach(), fake), [fake])
    assert of_fake.sum() < 0


@pytest.mark.parametrize("kind", ["bce", "hinge", "relativistic"])
def test_losses_of_a_certain_discriminator_are_finite(kind: str):
    real, fake = torch.full((1, 1, 2, 2), 1e4), torch.full((1, 1, 2, 2), -1e4)
    assert discriminator_loss(kind, real, fake) == 0
    assert torch.isfinite(discriminator_loss(kind, fake, real))
    assert torch.isfinite(generator_loss(kind, real, fake))


def test_the_adversarial_weight_waits_and_then_rises_linearly():
    loss = config.Loss(adv_weight=0.4, warmup_steps=3, ramp_steps=3)
    weights = [adversarial_weight(loss, step) for step in range(9)]
    assert weights == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_without_warmup_or_ramp_the_adversarial_weight_is_whole_at_once():
    loss = config.Loss(adv_weight=0.3, warmup_steps=0, ramp_steps=0)
    assert [adversarial_weight(loss, step) for step in (0, 1, 10**6)] == [0.3, 0.3, 0.3]


def test_a_weight_of_zero_stays_zero():
    loss = config.Loss(adv_weight=0, warmup_steps=1, ramp_steps=2)
    assert not any(adversarial_weight(loss, step) for step in range(6))
