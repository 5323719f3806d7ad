"""The same gradients on any number of workers, and in any number of parts."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_step import BASE, CPU, TENSORS, THESIA, MakeBatch, equal, with_loss
from torch import Tensor
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from lsid_ray.config.schema import Experiment
from lsid_ray.data.batch import Batch
from lsid_ray.train.step import GanStep

STEPS = 2  # after the first, DDP sorts its buckets


def part_of(batch: Batch, part: slice) -> Batch:
    return replace(batch, **{name: getattr(batch, name)[part] for name in TENSORS})


def with_parts(experiment: Experiment, batch_size: int, num_workers: int = 1, accumulate: int = 1) -> Experiment:
    training = replace(experiment.training, batch_size=batch_size, accumulate=accumulate)
    return replace(experiment, training=training, cluster=replace(experiment.cluster, num_workers=num_workers))


def gradients_of(step: GanStep) -> list[Tensor]:
    return [p.grad for network in (step.generator, step.discriminator) for p in network.parameters()]


def train_as_a_worker(rank: int, file: Path, world_size: int, experiments: list[Experiment]) -> None:
    """Save the losses and gradients of some steps on this worker's share of the batch in `file`, per experiment."""
    if world_size > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{file}-rendezvous", rank=rank, world_size=world_size)
    batch = torch.load(file, weights_only=False)
    ends = np.cumsum([0, *map(len, np.array_split(np.arange(len(batch.ratio)), world_size))])
    batch = part_of(batch, [slice(*each) for each in pairwise(ends)][rank])
    results = []
    for experiment in experiments:
        wrap = partial(DistributedDataParallel, forward_sync_buffers=False) if world_size > 1 else lambda same: same
        step = GanStep(experiment, 10, CPU, wrap)
        with torch.no_grad():
            for parameter in step.discriminator.parameters():
                parameter.mul_(5)  # the logits of an untrained discriminator hardly differ
        for _ in range(STEPS):
            total = torch.stack(list(step(batch).values())) / world_size
            if world_size > 1:
                dist.all_reduce(total)
            gradients = [
                p.grad.clone() for network in (step.generator, step.discriminator) for p in network.parameters()
            ]
            results.append((total, gradients))
    torch.save(results, f"{file}-{world_size}-{rank}")
    if world_size > 1:
        dist.destroy_process_group()


def save_batch(make_batch: MakeBatch, file: Path) -> Path:
    """Six samples of different brightness, so that each worker gets other scenes."""
    batch = make_batch(6)
    brightness = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]).view(-1, 1, 1, 1)
    torch.save(replace(batch, long=(batch.long.float() * brightness).to(torch.uint16)), file)
    return file


def differs_by(gradients: list[Tensor], others: list[Tensor]) -> float:
    """Norm of the difference, relative to that of `others`."""
    a, b = (torch.cat([value.flatten() for value in values]) for values in (gradients, others))
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("workers", [2, 3, pytest.param(4, id="4, of which two have a sample less")])
def test_losses_and_gradients_do_not_depend_on_the_number_of_workers(
    workers: int, make_batch: MakeBatch, tmp_path: Path
) -> None:
    file = save_batch(make_batch, tmp_path / "batch")
    plain = replace(BASE, discriminator=replace(BASE.discriminator, norm="none"))
    experiments = [
        with_parts(replace(plain, loss=replace(plain.loss, adversarial=kind)), 6, parts)
        for kind in ("relativistic", "hinge", "bce")
        for parts in (1, 6)  # for 6 workers: with fewer, a worker takes its samples one after the other
    ]
    train_as_a_worker(0, file, 1, [with_parts(experiment, 6) for experiment in experiments])
    spawn(train_as_a_worker, (file, workers, experiments), nprocs=workers)
    alone, first, last = (torch.load(f"{file}-{name}") for name in ("1-0", f"{workers}-0", f"{workers}-{workers - 1}"))
    for (losses, expected), (some_losses, some), (_, others) in zip(alone, first, last, strict=True):
        assert equal(some, others), "DDP averages"
        torch.testing.assert_close(some_losses, losses, rtol=1e-5, atol=1e-6)
        assert differs_by(some, expected) < 1e-4


@pytest.mark.parametrize("norm", ["none", "spectral"])
@pytest.mark.parametrize("kind", ["relativistic", "hinge", "bce"])
def test_a_batch_in_parts_gives_the_same_losses_and_gradients(kind: str, norm: str, make_batch: MakeBatch) -> None:
    experiment = replace(
        with_loss(adversarial=kind, ssim_weight=0.3), discriminator=replace(BASE.discriminator, norm=norm)
    )
    if kind == "hinge":  # the gradient of the last bias is 0: Adam turns rounding errors into steps of either sign
        experiment = replace(experiment, optimizer=replace(experiment.optimizer, discriminator_lr=1e-12))
    batch, seen = make_batch(5), []
    for parts in (1, 2, 5):
        step = GanStep(with_parts(experiment, 5, accumulate=parts), 10, CPU)
        sizes: list[int] = []
        step.generator.register_forward_hook(lambda _, inputs, output, sizes=sizes: sizes.append(len(output)))
        losses = [step(batch) for _ in range(3)][-1]
        assert max(sizes) == -(-5 // parts), "no more at once"
        seen.append((losses, gradients_of(step)))
    (expected, gradients), *others = seen
    for losses, some in others:
        assert losses.keys() == expected.keys()
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
        assert differs_by(some, gradients) < 1e-3


def test_with_batchnorm_the_gradients_are_the_mean_of_what_each_worker_computes_alone(
    make_batch: MakeBatch, tmp_path: Path
) -> None:
    file = save_batch(make_batch, tmp_path / "batch")
    spawn(train_as_a_worker, (file, 2, [with_parts(THESIA, 6, 2)]), nprocs=2)
    first, second = (torch.load(f"{file}-2-{rank}") for rank in range(2))
    for (_, some), (_, others) in zip(first, second, strict=True):
        assert equal(some, others), "DDP averages"
    batch = torch.load(file, weights_only=False)
    halves = []
    for half in (slice(3), slice(3, 6)):
        step = GanStep(with_parts(THESIA, 3), 10, CPU)
        with torch.no_grad():
            for parameter in step.discriminator.parameters():
                parameter.mul_(5)
        step(part_of(batch, half))
        halves.append([p.grad for p in step.discriminator.parameters()])
    expected = [(a + b) / 2 for a, b in zip(*halves, strict=True)]
    assert differs_by(first[0][1][-len(expected) :], expected) < 1e-4
    assert differs_by(halves[0], expected) > 0.01, "the halves differ"
