"""THE training loop: what every worker runs. The only file that reports to Ray Train or restores from it."""

import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model

from lsid_ray import storage
from lsid_ray.config import from_json
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.shards import open_shards
from lsid_ray.data.stream import check_order
from lsid_ray.evaluate.score import validate
from lsid_ray.model import checkpoint
from lsid_ray.model.inputs import Batch
from lsid_ray.train.step import GanStep

LOG_SECONDS = 1.0  # between two events of the same kind


def train_worker(options: dict[str, Any]) -> None:
    """Train from the last checkpoint, or from the start, to the end.

    options: "experiment" (JSON), "shards" (folder), "events" (a ray.util.queue.Queue that takes dictionaries from
    rank 0: "start", "train", "validation" and "diverged", as `launch` reads them), "stop_file" (whose
    presence ends the run) and "last_step" (where it ends, however long the experiment is).
    """
    # --- Initialise
    experiment = from_json(options["experiment"], "the experiment")
    training, events = experiment.training, options["events"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()

    # --- Data: the schedule of this run; full frames to validate on
    schedule = Schedule(open_shards(options["shards"], ["train"]).pairs, training)
    validation = open_shards(options["shards"], ["validation"], experiment.cluster.cache_gb)
    stream = ray.train.get_dataset_shard("train")

    # --- Networks and optimisers
    def wrap(network: torch.nn.Module) -> torch.nn.Module:
        # BatchNorm's statistics stay each worker's own while it trains; rank 0's are validated and kept.
        return prepare_model(network, parallel_strategy_kwargs={"forward_sync_buffers": False})

    step = GanStep(experiment, schedule.total_steps, device, wrap)

    # --- Resume
    resumed = ray.train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as folder:
            step.load_state_dict(checkpoint.load_training(folder))
    if rank == 0:
        events.put({"kind": "start", "step": step.step, "total_steps": schedule.total_steps})

    # --- Train
    batches = iter(stream.iter_batches(batch_size=training.batch_size // world, prefetch_batches=2))
    pending: deque[tuple[int, list[str], torch.Tensor, list[str]]] = deque()
    window = _Window()
    stop_file, last_step = storage.path(options["stop_file"]), options["last_step"]
    looked = time.perf_counter()  # for it
    while step.step < last_step:
        waited = time.perf_counter()
        columns = next(batches)
        window.waiting += time.perf_counter() - waited
        check_order(columns["number"], step.step, training.batch_size, world)
        batch = Batch.of(columns, device)
        losses = step(batch)
        stopping = 0.0
        if rank == 0 and time.perf_counter() - looked >= LOG_SECONDS:
            looked, stopping = time.perf_counter(), float(stop_file.exists())
        total = torch.stack([*losses.values(), torch.full((), stopping, device=device)]) / world
        if world > 1:
            dist.all_reduce(total)

        # --- Watch the losses, one step late, so that the device never waits for it
        epoch, at_end = divmod(step.step, schedule.steps_per_epoch)
        validating = at_end == 0 and (epoch % training.validate_every == 0 or step.step == last_step)
        pending.append((step.step - 1, list(losses), total, batch.names))
        while len(pending) > (0 if validating else 1):
            number, names, values, files = pending.popleft()
            *values, stopped = values.tolist()
            if stopped:  # every worker has seen the same mean and ends here too
                return
            means = dict(zip(names, values, strict=True))
            if not np.isfinite(list(means.values())).all():
                _diverged(events, rank, world, number, means, files)
                return
            window.add(means)
        if window.steps and (validating or window.seconds >= LOG_SECONDS):
            if rank == 0:
                events.put(_progress(window, step, epoch, training.batch_size))
            window = _Window()
        if not validating:
            continue

        # --- Validate on full frames, spread over the workers
        if world > 1:
            for buffer in step.scored.buffers():
                dist.broadcast(buffer, src=0)
        step.scored.eval()
        began = time.perf_counter()
        scores = validate(step.scored, validation, list(validation.pairs[rank::world]), device)
        everyone: list[Any] = [scores]
        if world > 1:
            everyone = [None] * world
            dist.all_gather_object(everyone, scores)
        rows = [row for part in everyone for row in part]
        facts = {"step": step.step, "epoch": epoch, "frames": len(rows)}
        facts |= {name: float(np.mean([row[name] for row in rows])) for name in ("psnr_db", "ssim")}
        if rank == 0:
            events.put({"kind": "validation", **facts, "seconds": time.perf_counter() - began})

        # --- Keep a checkpoint
        kept = None
        if rank == 0:
            folder = tempfile.mkdtemp(prefix="lsid-checkpoint-")  # Ray deletes it after its upload
            checkpoint.save(Path(folder), experiment, step.scored, step.state_dict(), facts)
            kept = ray.train.Checkpoint.from_directory(folder)
            kept.set_metadata({"step": step.step})
        ray.train.report(facts, checkpoint=kept, checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC)
        window = _Window()


class _Window:
    """Losses and times since the last event."""

    def __init__(self) -> None:
        self.started, self.steps, self.waiting, self.sums = time.perf_counter(), 0, 0.0, {}

    def add(self, losses: dict[str, float]) -> None:
        self.steps += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: total / self.steps for name, total in self.sums.items()}

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def _progress(window: _Window, step: GanStep, epoch: int, batch_size: int) -> dict[str, Any]:
    rate = window.steps * batch_size / window.seconds
    return {
        "kind": "train",
        "step": step.step,
        "epoch": epoch,
        **window.means(),
        "learning_rate": step.optimizer_g.param_groups[0]["lr"],
        "seconds": window.seconds,
        "samples_per_s": rate,
        "waiting_for_data": window.waiting / window.seconds,
        "seconds_left": (step.total_steps - step.step) * batch_size / rate,
    }


def _diverged(events: Any, rank: int, world: int, number: int, losses: dict[str, float], files: list[str]) -> None:
    """Say which step and which files; every worker has seen the same mean and stops here too."""
    everyone: list[Any] = [files]
    if world > 1:
        everyone = [None] * world
        dist.all_gather_object(everyone, files)
    if rank == 0:
        names = sorted({name for part in everyone for name in part})
        events.put({"kind": "diverged", "step": number, "losses": losses, "files": names})
