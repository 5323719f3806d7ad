"""Checkpoints that are validated apart from training."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from lsid_ray.config.schema import Experiment
from lsid_ray.data.index import open_shards
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.evaluate.score import validate
from lsid_ray.model.checkpoint import METRICS, load_metrics, save_checkpoint
from lsid_ray.model.generator import Generator
from lsid_ray.train.events import Event
from lsid_ray.train.run_folder import AWAITS_VALIDATION, checkpoint_name
from lsid_ray.train.run_log import open_log, read_events
from lsid_ray.train.validator import Validator

MakeExperiment = Callable[..., Experiment]
STEPS = (3, 6)


class Measures:
    """In place of `evaluate.measures.Measures`: counts its calls in a folder, and may fail at the first ones."""

    def __init__(self, folder: Path, failure: str = "", failures: int = 0):
        self.folder, self.failure, self.failures = folder, failure, failures

    def load(self, device: torch.device) -> dict[str, Callable]:
        def flip(image: torch.Tensor, target: torch.Tensor) -> float:
            number = len(list(self.folder.iterdir()))
            (self.folder / str(number)).touch()
            if number < self.failures and self.failure == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if number < self.failures:
                raise OSError(f"{self.failure} {number}")
            return float((image - target).abs().mean())

        return {"flip": flip}


@pytest.fixture
def run(tmp_path: Path, experiment: MakeExperiment) -> Path:
    """The folder of a run with two checkpoints that await their validation."""
    folder, e = tmp_path / "run", experiment()
    for step in STEPS:
        torch.manual_seed(step)
        path = folder / checkpoint_name(step)
        path.mkdir(parents=True)
        save_checkpoint(
            path, e, Generator(e.generator), {}, {"step": step, "epoch": step // 3, AWAITS_VALIDATION: True}
        )
    return folder


def finish(run: Path, e: Experiment, shards: Path, measures: Measures) -> list[Event]:
    """Validate what awaits it; returns what was shown."""
    seen: list[Event] = []
    with open_log(run, seen.append) as log:
        log.write({"kind": "start", "step": 6, "total_steps": 6})
        validator = Validator(run, e, str(shards), ray.put(measures), log, apart=True)
        try:
            validator.finish()
        finally:
            validator.cancel()
    return seen


def counting(tmp_path: Path, failure: str = "", failures: int = 0) -> Measures:
    (tmp_path / "calls").mkdir()
    return Measures(tmp_path / "calls", failure, failures)


def test_checkpoints_get_their_scores_although_a_task_is_killed_and_another_cannot_read(
    run: Path, shards: Path, experiment: MakeExperiment, tmp_path: Path
) -> None:
    measures = counting(tmp_path, "killed", 1)
    seen = finish(run, experiment(), shards, measures)
    opened = open_shards(shards, ["validation"])
    for step in STEPS:
        torch.manual_seed(step)
        generator = Generator(experiment().generator).eval().to(memory_format=torch.channels_last)
        plain = {"flip": lambda image, target: float((image - target).abs().mean())}
        rows = [row for row, *_ in validate(generator, opened, opened.pairs, torch.device("cpu"), plain)]
        expected = {name: np.mean([row[name] for row in rows]) for name in ("psnr_db", "ssim", "flip")}
        metrics = load_metrics(run / checkpoint_name(step))
        expected |= {"step": step, "epoch": step // 3, "frames": len(opened.pairs)}
        assert metrics == pytest.approx(expected, abs=1e-6), "a mean in float32 depends on the number of threads"
        assert (run / checkpoint_name(step) / METRICS).read_text().count("generator.safetensors") == 1
    logged = [event for event in read_events(run) if event["kind"] == "validation"]
    assert [event["step"] for event in logged] == list(STEPS) and logged[0]["seconds"] > 0
    assert [event["step"] for event in seen if event["kind"] == "image"] == list(STEPS)
    assert sum(1 for _ in measures.folder.iterdir()) == 2 * len(opened.pairs) + 1, "only what was lost is repeated"


def test_a_validation_whose_tasks_keep_failing_ends_the_run_and_one_that_failed_once_does_not(
    run: Path, shards: Path, experiment: MakeExperiment, tmp_path: Path
) -> None:
    e = experiment(cluster={"max_failures": 1})
    message = r"the validation of step 3 failed: a task: no disk 1; the same command tries it again"
    with pytest.raises(PartialFailure, match=message):
        finish(run, e, shards, counting(tmp_path, "no disk", 2))
    assert load_metrics(run / checkpoint_name(3))[AWAITS_VALIDATION]
    seen = finish(run, e, shards, Measures(tmp_path / "calls", "no disk", 3))
    assert [event["step"] for event in seen if event["kind"] == "validation"] == list(STEPS)
    lines = [event["message"] for event in seen if event["kind"] == "warning"]
    assert "validation of step 3: a task: no disk 2; trying again" in lines


def test_a_validation_frame_that_is_missing_is_an_input_error(
    run: Path, shards: Path, experiment: MakeExperiment, tmp_path: Path
) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    pair = open_shards(copy, ["validation"]).pairs[0]
    (copy / pair.short.shard.path).unlink()
    with pytest.raises(InputError, match=pair.short.shard.path):
        finish(run, experiment(), copy, counting(tmp_path))
