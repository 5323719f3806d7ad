"""The training loop that every worker runs. The only file that reports to Ray Train."""

import time
from collections import deque
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model

from lsid_ray import storage
from lsid_ray.config.schema import Experiment
from lsid_ray.config.serialization import from_json
from lsid_ray.data.index import open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.stream import check_order, local_batches
from lsid_ray.model.checkpoint import load_training_state
from lsid_ray.train.collective import from_first, gather
from lsid_ray.train.heartbeat import SAVING, TRAINING, WAITING_FOR_DATA, Heartbeat
from lsid_ray.train.initial_weights import read_initial_weights
from lsid_ray.train.preemption import PreemptionWatch
from lsid_ray.train.run_folder import rate_scale
from lsid_ray.train.saver import Saver
from lsid_ray.train.step import GanStep
from lsid_ray.train.validation import WorkerValidation

LOG_SECONDS = 1.0  # between "train" events
PACE_EVENTS = 300  # of a second each: what the time left is estimated from
MIN_PACE_S = 5.0
CHANCE = 0.55  # of a discriminator that tells nothing: right about half of the images, give or take
MIN_JUDGED_STEPS = 100


def training_loop(options: dict[str, Any]) -> None:
    """Train from a checkpoint, or from the initial weights, to `stop_step`.

    options: "experiment" (JSON), "shards" (folder), "folder" (of the run), "checkpoint" (folder, or None), "events"
    (handle of the `train.events.EventBuffer` to which rank 0 writes), "rollbacks" (of the run so far), "measures"
    (reference to the `evaluate.measures.Measures` of validations), "validates_apart" (see `train.validation`), and
    "stop_step" (where this call ends, while all schedules follow the whole experiment).
    """
    # --- Initialize
    experiment = from_json(options["experiment"], "the experiment")
    training, events = experiment.training, options["events"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device()
    folder, stop_step = storage.to_path(options["folder"]), options["stop_step"]
    heartbeat = Heartbeat(events, rank)
    saver = Saver(folder, training, events, heartbeat, experiment.cluster.wait_minutes)
    preemption = PreemptionWatch(rank, events)

    # --- Load dataset: the schedule of this run, and full frames to validate on
    schedule = Schedule(open_shards(options["shards"], ["train"]).pairs, training)
    validation = WorkerValidation(experiment, options, world_size, device, heartbeat)
    stream = ray.train.get_dataset_shard("train")

    # --- Construct networks and optimizers
    def wrap(network: torch.nn.Module) -> torch.nn.Module:
        # BatchNorm statistics stay local to each worker while training; rank 0's are validated and saved.
        return prepare_model(network, parallel_strategy_kwargs={"forward_sync_buffers": False})

    gan_step = GanStep(experiment, schedule.total_steps, device, wrap)

    # --- Resume
    is_abandoned = ray.get(events.is_stopping.remote())
    if from_first(is_abandoned, world_size):  # the driver gave up while the workers were starting
        return heartbeat.end()
    if options["checkpoint"]:
        gan_step.load_state_dict(load_training_state(storage.to_path(options["checkpoint"])))
    elif experiment.init:
        initial = read_initial_weights(experiment)
        gan_step.start_from(initial.generator, initial.discriminator)
    first_step = saved_step = saver.last_step = gan_step.step
    if rank == 0:
        start = {"step": gan_step.step, "total_steps": schedule.total_steps, "workers": world_size}
        events.put.remote({"kind": "start", **start})

    # --- Train
    skipped_steps = {rollback.skipped_step for rollback in options["rollbacks"]}
    batches = local_batches(stream, training.batch_size, world_size, device)
    pending: deque[tuple[int, list[str], torch.Tensor, list[str]]] = deque()
    window, pace, judged = _LogWindow(), _Pace(), _Judged()
    while gan_step.step < stop_step:
        heartbeat.begin(WAITING_FOR_DATA, gan_step.step)
        wait_start = time.perf_counter()
        batch = next(batches)
        window.waiting += time.perf_counter() - wait_start
        heartbeat.begin(TRAINING, gan_step.step)
        check_order(batch.sample, gan_step.step, training.batch_size, world_size)
        if gan_step.step in skipped_steps:
            gan_step.skip()
            losses = {}
        else:
            gan_step.rate_scale = rate_scale(options["rollbacks"], gan_step.step)
            losses = gan_step(batch)
        requests = [heartbeat.stopping, saver.is_due(gan_step.step), preemption.is_due()]
        requested = [torch.full((), float(request and rank == 0), device=device) for request in requests]
        total = torch.stack([*losses.values(), *requested]) / world_size
        if world_size > 1:
            dist.all_reduce(total)

        # --- Check the losses, one step late: `tolist` waits for the device, which then has the next step queued
        epoch, step_in_epoch = divmod(gan_step.step, schedule.steps_per_epoch)
        validating = step_in_epoch == 0 and (epoch % training.validate_every == 0 or gan_step.step == stop_step)
        saving = stopping = False
        pending.append((gan_step.step - 1, list(losses), total, batch.pair))
        while len(pending) > (0 if validating or saving else 1):
            number, names, values, pairs = pending.popleft()
            *values, stop, due, ask = values.tolist()  # every worker sees the same means, and so the same requests
            stopping = stopping or bool(stop)
            saving = saving or stopping or (bool(due) and number >= saved_step) or (bool(ask) and preemption.ask())
            means = dict(zip(names, values, strict=True))
            if not np.isfinite(list(means.values())).all():
                _report_divergence(events, rank, world_size, number, means, pairs)
                return heartbeat.end()
            if means:
                window.add(means)
                judged.add(means)
        if gan_step.step == first_step + 1 and not window.steps:
            window = _LogWindow()  # the first wait for data belongs to the start, not to the rate
        if window.steps and (validating or window.seconds >= LOG_SECONDS):
            if rank == 0:
                seconds_left = pace.seconds_left(gan_step.step, gan_step.total_steps)
                event = _train_event(window, gan_step, epoch, training.batch_size)
                events.put.remote(event | {"seconds_left": seconds_left})
            window = _LogWindow()
        if validating and rank == 0 and (message := judged.message()):
            events.put.remote({"kind": "warning", "message": message})
        if validating or saving:
            saved_step, save_start = gan_step.step, time.perf_counter()
            metrics = {"step": gan_step.step, "epoch": epoch}
            if validating:
                metrics |= validation.scores(gan_step.scored, metrics)
                heartbeat.begin(SAVING, gan_step.step)
            _save(saver, rank, experiment, gan_step, metrics)
            window.saving += time.perf_counter() - save_start
        if stopping:
            return heartbeat.end()
        if validating and gan_step.step < stop_step:
            validation.wait(gan_step.step)
            window = _LogWindow()
    heartbeat.end()


def _save(saver: Saver, rank: int, experiment: Experiment, gan_step: GanStep, metrics: dict[str, Any]) -> None:
    """Save a checkpoint; all workers take part in Ray Train's report."""
    if rank == 0:
        saver.save(experiment, gan_step, metrics)
    else:
        ray.train.report(metrics)


class _LogWindow:
    """Losses and times since the last "train" event."""

    def __init__(self) -> None:
        self.start, self.steps, self.waiting, self.saving = time.perf_counter(), 0, 0.0, 0.0
        self.losses: dict[str, list[float]] = {}

    def add(self, losses: dict[str, float]) -> None:
        self.steps += 1
        for name, value in losses.items():
            self.losses.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """Of each loss over the steps that have it."""
        return {name: sum(values) / len(values) for name, values in self.losses.items()}

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


class _Judged:
    """How often the discriminator was right since the last validation: at chance, it has nothing to teach."""

    def __init__(self) -> None:
        self.accuracies: list[float] = []
        self.has_warned = False

    def add(self, losses: dict[str, float]) -> None:
        if "real_accuracy" in losses:
            self.accuracies.append((losses["real_accuracy"] + losses["fake_accuracy"]) / 2)

    def message(self) -> str:
        """A warning if that is no more than chance, once; to be called at each validation."""
        accuracies, self.accuracies = self.accuracies, []
        if self.has_warned or len(accuracies) < MIN_JUDGED_STEPS or np.mean(accuracies) > CHANCE:
            return ""
        self.has_warned = True
        return (
            f"the discriminator was right about {np.mean(accuracies):.0%} of the images in the last {len(accuracies)} "
            "steps, as by chance: its loss teaches nothing; try a lower --optimizer.discriminator-lr or "
            "--loss.adv-weight"
        )


class _Pace:
    """The time left, from the last minutes: with their validations and checkpoints, without the slow first steps."""

    def __init__(self) -> None:
        self.logged: deque[tuple[float, int]] = deque(maxlen=PACE_EVENTS)

    def seconds_left(self, step: int, total_steps: int) -> float | None:
        """To be called at each "train" event. None: it is too early to say."""
        now = time.perf_counter()
        self.logged.append((now, step))
        began, first_step = self.logged[0]
        return (total_steps - step) * (now - began) / (step - first_step) if now - began >= MIN_PACE_S else None


def _train_event(window: _LogWindow, gan_step: GanStep, epoch: int, batch_size: int) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": gan_step.step,
        "epoch": epoch,
        **window.means(),
        "learning_rate": gan_step.optimizer_g.param_groups[0]["lr"],
        "seconds": window.seconds,
        "samples_per_s": window.steps * batch_size / window.seconds,
        "waiting_for_data": window.waiting / window.seconds,
        "saving": window.saving / window.seconds,
    }


def _report_divergence(
    events: Any, rank: int, world_size: int, step: int, losses: dict[str, float], pairs: list[str]
) -> None:
    """Report the step and all pairs of its batch."""
    names = sorted(set(gather(pairs, world_size)))
    if rank == 0:
        events.put.remote({"kind": "diverged", "step": step, "losses": losses, "pairs": names})
