"""The preset `thesia` trains as its source does: steps written out, without this package's losses and loop."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lsid_ray.config.presets import PRESETS
from lsid_ray.data.batch import Batch
from lsid_ray.train.step import GanStep

CPU = torch.device("cpu")
MakeBatch = Callable[..., Batch]
THESIA = replace(
    PRESETS["thesia"][1],
    generator=replace(PRESETS["thesia"][1].generator, width=4, depth=2),
    discriminator=replace(PRESETS["thesia"][1].discriminator, width=4, layers=2),
)


def baseline_discriminator(network: nn.Module, planes: Tensor, image: Tensor) -> Tensor:
    return network.layers(torch.cat([planes, image], dim=1))


def test_steps_of_the_baseline_equal_its_recipe_written_out(make_batch: MakeBatch):
    step = GanStep(THESIA, 10, CPU)
    generator, discriminator = copy.deepcopy(step.generator).train(), copy.deepcopy(step.discriminator).train()
    adam_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    bce, l1 = nn.BCEWithLogitsLoss(), nn.L1Loss()
    for seed in range(4):
        batch = replace(make_batch(4, 16, seed), flips=torch.zeros(4, 3, dtype=torch.bool))
        planes = ((batch.short.float() - 512).clamp(min=0) / (16383 - 512) * 100).clamp(0, 1)[..., :16, :16]
        long = batch.long.float()[..., :32, :32] / 65535
        target = (long[..., ::2, ::2] + long[..., 1::2, ::2] + long[..., ::2, 1::2] + long[..., 1::2, 1::2]) / 4

        image = generator(planes)
        real = baseline_discriminator(discriminator, planes, target)
        fake = baseline_discriminator(discriminator, planes, image.detach())
        loss_d = (bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))) / 2
        adam_d.zero_grad()
        loss_d.backward()
        gradients_d = [p.grad.clone() for p in discriminator.parameters()]
        adam_d.step()
        fake = baseline_discriminator(discriminator, planes, image)
        adversarial, pixel = bce(fake, torch.ones_like(fake)), l1(image, target)
        adam_g.zero_grad()
        (adversarial + 100 * pixel).backward()
        adam_g.step()

        losses = step(batch)
        expected = {"l1": pixel, "adversarial": adversarial, "discriminator": loss_d}
        for name, loss in expected.items():
            assert losses[name].item() == pytest.approx(loss.item(), rel=1e-4), (seed, name)
        if seed == 0:  # later, Adam turns the rounding errors of zero gradients into steps of either sign
            gradients = [*gradients_d, *(p.grad for p in generator.parameters())]
            actual = [p.grad for network in (step.discriminator, step.generator) for p in network.parameters()]
            for a, b in zip(actual, gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
