"""The training step on one device, against the same update written plainly. No Ray: it runs where only torch is."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lsid_ray.config.checks import check_experiment
from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import DataConfig, Experiment
from lsid_ray.data.batch import Batch
from lsid_ray.data.preprocess import REFERENCE_MATRIX, training_pair
from lsid_ray.errors import InputError
from lsid_ray.model.losses import discriminator_loss, generator_loss, l1
from lsid_ray.progress import align_columns
from lsid_ray.raw.mosaic import LAYOUTS
from lsid_ray.train.step import GanStep

WARM_UP_STEPS = 3
MAX_COUNT = 10**6
BLACK, WHITE, RATIO = 512.0, 16383.0, 200.0


@dataclass(frozen=True)
class Step:
    """Time a preset's training step on one cached batch, and compare it with a plain loop."""

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]
    """Name of a preset, whose networks, losses, batch and crop are measured, with the adversarial loss on."""
    batch_size: int = 0
    """Samples of the batch. 0: the preset's."""
    crop: int = 0
    """Side of a crop in packed pixels. 0: the preset's."""
    steps: int = 10
    """Steps of a round."""
    rounds: int = 3
    """How often each is measured, alternately; the median counts."""
    use_gpu: bool = False
    """Run on the GPU instead of the CPU."""

    def run(self, folder: Path) -> tuple[str, Any]:
        """The table, and the figures in it."""
        times = measure_step(self)
        return step_table(times), times


@dataclass(frozen=True)
class StepTimes:
    """Measurements of one step; times are medians."""

    preset: str
    batch_size: int
    crop: int
    device: str
    step_s: float
    plain_s: float
    """The plain loop, in float32 on a CPU, else in the preset's precision."""
    flops: int
    """Floating point operations of a step, counted by torch."""
    peak_bytes: int | None
    """Of the tensors on the GPU."""

    @property
    def relative_speed(self) -> float:
        """Speed relative to the plain loop."""
        return self.plain_s / self.step_s


def measure_step(options: Step) -> StepTimes:
    """Time both, alternately. Raises: InputError for an option out of range, or if there is no GPU to use."""
    if options.preset not in PRESETS:
        raise InputError(f"{options.preset}: no such preset, expected one of {', '.join(PRESETS)}")
    for name, least in (("steps", 1), ("rounds", 1), ("batch_size", 0), ("crop", 0)):
        value = getattr(options, name)
        if not least <= value <= MAX_COUNT:
            raise InputError(f"--{name.replace('_', '-')} is {value}: expected {least} to {MAX_COUNT:,}")
    if options.use_gpu and not torch.cuda.is_available():
        raise InputError("--use-gpu: there is no GPU")
    e = PRESETS[options.preset][1]
    sizes = {"batch_size": options.batch_size, "crop": options.crop}
    training = replace(e.training, **{name: size for name, size in sizes.items() if size})
    e = replace(adversarial_from_the_start(e), training=training, cluster=replace(e.cluster, num_workers=1))
    e = replace(e, data=DataConfig(shards="none is read"))
    check_experiment(e)
    device = torch.device("cuda" if options.use_gpu else "cpu")
    batch = random_batch(e, device)
    step, plain = GanStep(e, MAX_COUNT, device), _PlainStep(e, device)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    if options.use_gpu:
        torch.cuda.reset_peak_memory_stats()
        step(batch)
    peak_bytes = torch.cuda.max_memory_allocated() if options.use_gpu else None
    for each in (step, plain):
        seconds_per_step(each, batch, WARM_UP_STEPS)
    rounds = [[seconds_per_step(each, batch, options.steps) for each in (step, plain)] for _ in range(options.rounds)]
    step_s, plain_s = (statistics.median(times) for times in zip(*rounds, strict=True))
    return StepTimes(
        preset=options.preset,
        batch_size=training.batch_size,
        crop=training.crop,
        device=torch.cuda.get_device_name() if options.use_gpu else f"CPU, {torch.get_num_threads()} threads",
        step_s=step_s,
        plain_s=plain_s,
        flops=counter.get_total_flops(),
        peak_bytes=peak_bytes,
    )


def step_table(times: StepTimes) -> str:
    """The measurements as a table, with a summary below."""
    head = ("preset", "batch, crop", "ms", "samples/s", "GFLOP", "TFLOP/s", "plain loop, ms", "GPU GiB")
    row = (
        times.preset,
        f"{times.batch_size} of {times.crop}",
        f"{1000 * times.step_s:.1f}",
        f"{times.batch_size / times.step_s:.1f}",
        f"{times.flops / 1e9:.1f}",
        f"{times.flops / times.step_s / 1e12:.3f}",
        f"{1000 * times.plain_s:.1f}",
        "-" if times.peak_bytes is None else f"{times.peak_bytes / 2**30:.1f}",
    )
    verdict = f"The step is {times.relative_speed:.2f} times as fast as the plain loop ({times.device})."
    return "\n".join([*align_columns([head, row]), "", verdict])


def adversarial_from_the_start(e: Experiment) -> Experiment:
    """The experiment with the full weight of its adversarial loss in the first step."""
    return replace(e, loss=replace(e.loss, warmup_steps=0, ramp_steps=0))


def seconds_per_step(step: Callable[[Batch], Any], batch: Batch, count: int) -> float:
    """Mean time of a step."""
    start = time.perf_counter()
    for _ in range(count):
        step(batch)
    if batch.short.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def random_batch(e: Experiment, device: torch.device) -> Batch:
    """A batch of an experiment's sizes, of random counts."""
    layout, size = LAYOUTS[e.generator.cfa], e.training.batch_size
    side = e.training.crop + layout.repeat
    random = torch.Generator().manual_seed(0)

    def counts(*shape: int) -> Tensor:
        return torch.randint(0, 1 << 14, shape, generator=random).to(torch.uint16).to(device)

    return Batch(
        sample=list(range(size)),
        pair=[str(number) for number in range(size)],
        short=counts(size, len(layout.colors), side, side),
        long=counts(size, 3, layout.block * side, layout.block * side),
        black=torch.full((size, len(layout.colors), layout.repeat, layout.repeat), BLACK, device=device),
        white=torch.full((size,), WHITE, device=device),
        white_balance=torch.ones(size, 3, device=device),
        srgb_from_camera=REFERENCE_MATRIX.repeat(size, 1, 1),
        ratio=torch.full((size,), RATIO, device=device),
        flips=torch.rand(size, 3, generator=random) < 0.5,
    )


class _PlainStep:
    """The update as it is usually written: NCHW, a pass of the discriminator each for real and fake images, and its
    gradients computed once more, in vain, with the generator's."""

    def __init__(self, e: Experiment, device: torch.device):
        step = GanStep(e, MAX_COUNT, device)
        self.e, self.device = e, device
        self.generator: nn.Module = step.generator.to(memory_format=torch.contiguous_format).train()
        self.discriminator = step.discriminator and step.discriminator.to(memory_format=torch.contiguous_format).train()
        self.average = copy.deepcopy(self.generator) if e.optimizer.ema_decay else None
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=e.optimizer.generator_lr, betas=e.optimizer.betas)
            for network in (self.generator, self.discriminator)
            if network is not None
        ]

    def __call__(self, batch: Batch) -> float:
        e = self.e
        planes, target = training_pair(batch, e.generator)
        autocast = torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.device.type == "cuda" and e.training.precision == "bfloat16",
        )
        with autocast:
            image = self.generator(planes)
        total = e.loss.l1_weight * l1(image.float(), target)
        if self.discriminator is not None:
            with autocast:
                real, fake = self.discriminator(planes, target), self.discriminator(planes, image.detach())
            self._descend(discriminator_loss(e.loss.adversarial, real.float(), fake.float()).loss, 1)
            with autocast:
                real, fake = self.discriminator(planes, target), self.discriminator(planes, image)
            adversarial = generator_loss(e.loss.adversarial, real.float().detach(), fake.float())
            total = total + e.loss.adv_weight * adversarial
        self._descend(total, 0)
        if self.average is not None:
            with torch.no_grad():
                for average, value in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                    average.lerp_(value, 1 - e.optimizer.ema_decay)
        return total.item()

    def _descend(self, loss: Tensor, number: int) -> None:
        self.optimizers[number].zero_grad()
        loss.backward()
        self.optimizers[number].step()
