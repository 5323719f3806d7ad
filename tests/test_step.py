import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_baseline import THESIA
from torch import Tensor, nn

from lsid_ray.config.schema import DiscriminatorConfig, Experiment, GeneratorConfig, LossConfig, OptimizerConfig
from lsid_ray.data.batch import Batch
from lsid_ray.data.preprocess import training_pair
from lsid_ray.train.step import GanStep

CPU = torch.device("cpu")
TENSORS = ("short", "long", "black", "white", "white_balance", "srgb_from_camera", "ratio", "flips")
MakeBatch = Callable[..., Batch]
BASE = Experiment(
    name="small",
    generator=GeneratorConfig(width=4, depth=2),
    discriminator=DiscriminatorConfig(width=4, layers=2),
    loss=LossConfig(adv_weight=0.1),
    optimizer=OptimizerConfig(generator_lr=1e-3, discriminator_lr=1e-3, schedule="constant"),
)


def with_loss(**changes) -> Experiment:
    return replace(BASE, loss=replace(BASE.loss, **changes))


def values(network: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [value.clone() for value in network.state_dict().values()]


def parameters(network: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in network.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_weight_zero_builds_no_discriminator(make_batch: MakeBatch):
    step = GanStep(with_loss(adv_weight=0), 10, CPU)
    assert step.discriminator is None and not hasattr(step, "optimizer_d")
    assert set(step(make_batch())) == {"l1"}
    assert "discriminator" not in step.state_dict()
    structural = GanStep(with_loss(adv_weight=0, ssim_weight=0.5), 10, CPU)
    losses = [structural(make_batch()) for _ in range(10)]
    assert set(losses[0]) == {"l1", "ssim_loss"} and 0 < losses[-1]["ssim_loss"] < losses[0]["ssim_loss"] < 2
    assert GanStep(BASE, 10, CPU).discriminator is not None


@pytest.mark.parametrize("kind", ["relativistic", "hinge", "bce"])
@pytest.mark.parametrize("norm", ["none", "batch", "spectral"])
def test_both_networks_learn_and_all_losses_are_returned(kind: str, norm: str, make_batch: MakeBatch):
    experiment = with_loss(adversarial=kind)
    step = GanStep(replace(experiment, discriminator=replace(experiment.discriminator, norm=norm)), 10, CPU)
    before = parameters(step.generator), parameters(step.discriminator)
    losses = step(make_batch())
    assert set(losses) == {"l1", "adversarial", "discriminator", "real_accuracy", "fake_accuracy"}
    assert all(loss.ndim == 0 and loss.isfinite() and not loss.requires_grad for loss in losses.values())
    for old, network in zip(before, (step.generator, step.discriminator), strict=True):
        kernels = [not torch.equal(a, b) for a, b in zip(old, network.parameters(), strict=True) if a.ndim == 4]
        assert sum(kernels) >= len(kernels) - 3  # a gate of two units may be off at the start
    assert step.step == 1


@pytest.mark.parametrize("kind", ["relativistic", "bce"])
def test_the_generator_update_changes_no_weights_or_gradients_of_the_discriminator(kind: str, make_batch: MakeBatch):
    step = GanStep(with_loss(adversarial=kind), 10, CPU)
    update, after = step._update_discriminator, []

    def watched(*arguments) -> Tensor:
        loss = update(*arguments)
        after.append((parameters(step.discriminator), [p.grad.clone() for p in step.discriminator.parameters()]))
        return loss

    step._update_discriminator = watched
    for seed in range(2):
        step(make_batch(seed=seed))
        weights, gradients = after[seed]
        assert equal(weights, parameters(step.discriminator))
        assert equal(gradients, [p.grad for p in step.discriminator.parameters()])
        assert any(g.any() for g in gradients)
    assert not equal(after[0][0], after[1][0])


def test_the_discriminator_update_leaves_no_gradients_in_the_generator(make_batch: MakeBatch):
    step = GanStep(with_loss(adv_weight=1e-30), 10, CPU)
    without = GanStep(with_loss(adv_weight=0), 10, CPU)
    step(make_batch())
    without(make_batch())
    for a, b in zip(step.generator.parameters(), without.generator.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_warmup_trains_without_a_discriminator(make_batch: MakeBatch):
    step = GanStep(with_loss(warmup_steps=3), 10, CPU)
    without = GanStep(with_loss(adv_weight=0), 10, CPU)
    untouched = values(step.discriminator)
    for seed in range(3):
        losses, expected = step(make_batch(seed=seed)), without(make_batch(seed=seed))
        assert torch.equal(losses["l1"], expected["l1"])
        assert losses["adversarial"] == losses["discriminator"] == 0 and "real_accuracy" not in losses
        assert equal(values(step.generator), values(without.generator))
        assert equal(values(step.average), values(without.average))
    assert equal(values(step.discriminator), untouched)
    losses = step(make_batch(seed=3))
    without(make_batch(seed=3))
    assert losses["discriminator"] > 0
    assert not equal(values(step.generator), values(without.generator))
    assert not equal(values(step.discriminator), untouched)


def test_initial_weights_depend_on_the_seed_only():
    torch.manual_seed(77)
    step = GanStep(BASE, 10, CPU)
    torch.manual_seed(78)
    without = GanStep(with_loss(adv_weight=0.7), 99, CPU)
    other = GanStep(replace(BASE, training=replace(BASE.training, seed=1)), 10, CPU)
    assert equal(values(step.generator), values(without.generator))
    assert equal(values(step.discriminator), values(without.discriminator))
    assert equal(values(step.generator), values(step.average))
    assert not equal(values(step.generator), values(other.generator))
    assert not equal(values(step.discriminator), values(other.discriminator))


def test_the_moving_average_follows_its_formula_and_copies_buffers(make_batch: MakeBatch):
    experiment = replace(
        BASE,
        generator=replace(BASE.generator, norm="batch"),
        optimizer=replace(BASE.optimizer, ema_decay=0.3),
    )
    step = GanStep(experiment, 10, CPU)
    expected = [p.double() for p in parameters(step.generator)]
    for number in range(6):
        step(make_batch(seed=number))
        decay = min(0.3, (1 + number) / (10 + number))
        expected = [
            decay * old + (1 - decay) * new.double()
            for old, new in zip(expected, step.generator.parameters(), strict=True)
        ]
        for average, value in zip(step.average.parameters(), expected, strict=True):
            torch.testing.assert_close(average.double(), value, rtol=1e-5, atol=1e-6)
        buffers = dict(step.generator.named_buffers())
        assert buffers and all(torch.equal(value, buffers[name]) for name, value in step.average.named_buffers())
    assert step.scored is step.average and not step.average.training
    assert not any(p.requires_grad for p in step.average.parameters())


def test_without_a_moving_average_the_generator_itself_is_scored(make_batch: MakeBatch):
    step = GanStep(THESIA, 10, CPU)
    assert step.average is None and step.scored is step.generator
    assert "average" not in step.state_dict()


@pytest.mark.parametrize("schedule", ["constant", "drop", "cosine"])
def test_learning_rates_follow_their_schedule(schedule: str, make_batch: MakeBatch):
    rates = {"generator_lr": 1e-3, "discriminator_lr": 4e-3}
    step = GanStep(replace(BASE, optimizer=OptimizerConfig(**rates, schedule=schedule)), 6, CPU)
    expected = {
        "constant": [1] * 6,
        "drop": [1, 1, 1, 0.1, 0.1, 0.1],
        "cosine": [0.01 + 0.99 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)],
    }[schedule]
    for factor in expected:
        step(make_batch(1))
        assert step.optimizer_g.param_groups[0]["lr"] == pytest.approx(1e-3 * factor)
        assert step.optimizer_d.param_groups[0]["lr"] == pytest.approx(4e-3 * factor)


def test_both_learning_rates_are_scaled(make_batch: MakeBatch):
    step = GanStep(BASE, 6, CPU)
    step.rate_scale = 0.5
    step(make_batch(1))
    assert [optimizer.param_groups[0]["lr"] for optimizer in (step.optimizer_g, step.optimizer_d)] == [5e-4, 5e-4]


def test_the_cosine_schedule_ends_at_a_hundredth():
    step = GanStep(replace(BASE, optimizer=OptimizerConfig(schedule="cosine")), 1000, CPU)
    step.step = 1000
    assert step._learning_rate_factor() == pytest.approx(0.01)


def test_a_learning_rate_scales_the_first_step(make_batch: MakeBatch):
    """Adam's first step is the learning rate, in the direction of the gradient's sign."""
    step = GanStep(with_loss(adv_weight=0), 10, CPU)
    before = parameters(step.generator)
    step(make_batch())
    moved = max((a - b).abs().max().item() for a, b in zip(before, step.generator.parameters(), strict=True))
    assert moved == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("experiment", [with_loss(adv_weight=0), with_loss(adv_weight=0.01)], ids=["l1", "gan"])
def test_the_loss_falls_on_a_repeated_batch(experiment: Experiment, make_batch: MakeBatch):
    optimizer = replace(experiment.optimizer, generator_lr=5e-3)
    step, batch = GanStep(replace(experiment, optimizer=optimizer), 30, CPU), make_batch()
    errors = [step(batch)["l1"].item() for _ in range(30)]
    assert errors[-1] < 0.6 * errors[0]


def test_gradients_of_half_batches_average_to_those_of_the_full_batch(make_batch: MakeBatch):
    def gradients(batch: Batch) -> list[Tensor]:
        step = GanStep(with_loss(adv_weight=0), 10, CPU)
        step(batch)
        return [p.grad for p in step.generator.parameters()]

    batch = make_batch(4)
    halves = [
        replace(batch, **{name: getattr(batch, name)[part] for name in TENSORS}) for part in (slice(2), slice(2, 4))
    ]
    for whole, first, second in zip(gradients(batch), *map(gradients, halves), strict=True):
        torch.testing.assert_close((first + second) / 2, whole, rtol=1e-4, atol=1e-6)


def test_long_gradients_are_clipped_and_their_norms_returned(make_batch: MakeBatch):
    def norms(clip_norm: float) -> tuple[dict[str, float], list[float]]:
        experiment = replace(with_loss(warmup_steps=1), training=replace(BASE.training, clip_norm=clip_norm))
        step = GanStep(experiment, 10, CPU)
        assert step(make_batch()).get("discriminator_gradient_norm", 0.0) == 0, "the warm-up"
        losses = {name: loss.item() for name, loss in step(make_batch(seed=1)).items()}
        networks = (step.generator, step.discriminator)
        return losses, [
            math.sqrt(sum(p.grad.double().square().sum().item() for p in network.parameters() if p.grad is not None))
            for network in networks
        ]

    losses, (generator, discriminator) = norms(0.0)
    assert "gradient_norm" not in losses
    wide, applied = norms(1e6)
    assert wide["gradient_norm"] == pytest.approx(generator, rel=1e-5)
    assert wide["discriminator_gradient_norm"] == pytest.approx(discriminator, rel=1e-5)
    assert {name: wide[name] for name in losses} == losses and applied == pytest.approx([generator, discriminator])
    narrow, applied = norms(1e-4)
    assert min(generator, discriminator) > 1e-4 < narrow["gradient_norm"]
    assert applied == pytest.approx([1e-4, 1e-4], rel=0.02)


def test_the_networks_are_trained_through_their_wrappers(make_batch: MakeBatch):
    calls: list[nn.Module] = []

    class Wrapper(nn.Module):
        def __init__(self, network: nn.Module):
            super().__init__()
            self.network = network

        def forward(self, *inputs: Tensor) -> Tensor:
            calls.append(self.network)
            return self.network(*inputs)

    step = GanStep(BASE, 10, CPU, wrap=Wrapper)
    step(make_batch())
    assert calls == [step.generator, step.discriminator]  # one forward pass each: DDP would wait for a second backward
    assert not any("network." in name for part in ("generator", "discriminator") for name in step.state_dict()[part])


def test_a_batch_is_amplified_and_flipped_before_the_network_sees_it(make_batch: MakeBatch):
    step, batch, seen = GanStep(BASE, 10, CPU), make_batch(), []
    step.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    step(batch)
    assert torch.equal(seen[0], training_pair(batch, BASE.generator)[0])


@pytest.mark.parametrize("kind", ["relativistic", "hinge", "bce"])
def test_bfloat16_gives_about_the_same_losses_and_keeps_the_weights_in_float32(
    kind: str, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
):
    """As on a GPU; CPUs train in float32."""
    exact = GanStep(with_loss(adversarial=kind), 10, CPU)(make_batch())
    monkeypatch.setattr(GanStep, "_autocast", lambda self: torch.autocast("cpu", torch.bfloat16))
    step = GanStep(with_loss(adversarial=kind), 10, CPU)
    rounded = step(make_batch())
    for name in ("l1", "adversarial", "discriminator"):
        loss = exact[name]
        assert rounded[name].dtype == torch.float32 and rounded[name].item() != loss.item()
        assert rounded[name].item() == pytest.approx(loss.item(), rel=0.02, abs=0.005), name
    for value in (*parameters(step.generator), *parameters(step.discriminator), *parameters(step.average)):
        assert value.dtype == torch.float32 and value.isfinite().all()
