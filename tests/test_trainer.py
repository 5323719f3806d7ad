"""Complete runs under Ray Train on a real cluster: distributed, interrupted, diverging, refused."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lsid_ray.benchmark.nodes import until
from lsid_ray.config.schema import Experiment
from lsid_ray.config.serialization import from_json, to_json
from lsid_ray.data.index import open_shards
from lsid_ray.data.schedule import Schedule
from lsid_ray.data.shard import VERSION
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.evaluate.score import validate
from lsid_ray.evaluate.visibility import flip
from lsid_ray.model.checkpoint import load_generator, load_training_state
from lsid_ray.train import validator
from lsid_ray.train.events import SHOWN_ONLY, Event
from lsid_ray.train.run_folder import checkpoint_name, checkpoint_step, saved_checkpoints
from lsid_ray.train.trainer import train

MakeExperiment = Callable[..., Experiment]
LONG = {"epochs": 40, "validate_every": 4}  # long enough to be killed in the middle


def validation_psnr(folder: Path) -> dict[int, float]:
    """PSNR of each validation, by step."""
    return {event["step"]: event["psnr_db"] for event in events(folder) if event["kind"] == "validation"}


def events(folder: Path) -> list[Event]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(checkpoint: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_generator(checkpoint)[0].state_dict().values()])


def test_a_run_trains_validates_and_keeps_its_best_checkpoint(
    shards: Path, experiment: MakeExperiment, tmp_path: Path
) -> None:
    seen: list[Event] = []
    e = experiment(training={"epochs": 3, "metrics": ("flip",)})
    run = train(e, str(shards), on_event=seen.append)
    assert [event["epoch"] for event in seen if event["kind"] == "validation"] == [1, 2, 3]
    logged = [event for event in seen if event["kind"] not in SHOWN_ONLY]
    assert logged == events(run.folder), "the log holds the events that were shown"
    steps = [event for event in seen if event["kind"] == "train"]
    fields = {"l1", "adversarial", "discriminator", "samples_per_s", "seconds_left", "saving"}
    assert steps and fields | {"real_accuracy", "fake_accuracy"} <= steps[-1].keys()
    assert run.metrics["psnr_db"] == max(event["psnr_db"] for event in seen if event["kind"] == "validation")
    assert run.metrics["frames"] == len(open_shards(shards, ["validation"]).pairs), (
        "each validation frame is scored once"
    )
    assert from_json((run.folder / "experiment.json").read_text(), "") == e
    board = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert "train/fake_accuracy" in board.Tags()["scalars"]
    (images,) = (board.Images(name) for name in board.Tags()["images"])
    assert [image.step for image in images] == [
        event["step"] for event in events(run.folder) if event["kind"] == "validation"
    ]
    generator, loaded = load_generator(run.best)
    assert loaded == e
    opened = open_shards(shards, ["validation"])
    validated = validate(generator, opened, opened.pairs, torch.device("cpu"), {"flip": flip})
    scores = [score for score, *_ in validated]
    for name in ("psnr_db", "ssim", "flip"):
        assert np.mean([score[name] for score in scores]) == pytest.approx(run.metrics[name], abs=1e-4)

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ctrl-C still interrupts"

    again = train(e, str(shards))
    assert again.metrics == run.metrics and checkpoint_step(run.folder) == seen[-1]["step"]
    assert [event["kind"] for event in events(run.folder)][-1] == "start", "a finished run does not train"

    frozen = replace(e, name="initialized", init=str(run.folder), training=replace(e.training, epochs=1))
    frozen = replace(frozen, optimizer=replace(e.optimizer, generator_lr=1e-12, discriminator_lr=1e-12))
    frozen = replace(frozen, cluster=replace(e.cluster, num_workers=1))
    initialized = train(frozen, str(shards), on_event=seen.append)
    torch.testing.assert_close(weights(initialized.best), weights(run.best))
    assert any(event["kind"] == "warning" and "took the generator and the disc" in event["message"] for event in seen)

    with pytest.raises(InputError, match=r"another experiment \(loss.adv_weight is 0.01 there, 0.5 here\)"):
        train(replace(e, loss=replace(e.loss, adv_weight=0.5)), str(shards))

    other = shutil.copytree(shards, tmp_path / "other")
    index = json.loads((other / "index.json").read_text())
    next(pair for pair in index["pairs"] if pair["split"] == "train")["ratio"] = 200.0
    (other / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="was trained on other data"):
        train(e, str(other))


def test_neither_a_stop_at_an_epoch_nor_the_number_of_workers_nor_accumulation_changes_the_result(
    shards: Path, experiment: MakeExperiment
) -> None:
    e = experiment("halves", training={"epochs": 4})
    first = train(e, str(shards), until_epoch=2)
    assert (
        checkpoint_step(first.folder) == 6
        and [event["kind"] for event in events(first.folder)].count("validation") == 2
    )
    train(e, str(shards), until_epoch=2)
    assert [event["step"] for event in events(first.folder) if event["kind"] == "start"] == [0, 6], (
        "the second call trains nothing"
    )
    three = replace(e, cluster=replace(e.cluster, num_workers=3, cpus_per_worker=0.5))  # with 2, 1 and 1 samples
    train(three, str(shards))
    workers = [event["workers"] for event in events(first.folder) if event["kind"] == "start" and "workers" in event]
    assert workers == [2, 3]
    board = EventAccumulator(str(first.folder / "tensorboard")).Reload()
    assert [scalar.step for scalar in board.Scalars("validation/psnr_db")] == [3, 6, 9, 12], "none is lost or doubled"
    in_parts = replace(e.training, accumulate=4)
    one_worker = replace(e, name="complete", training=in_parts, cluster=replace(e.cluster, num_workers=1))
    complete = train(one_worker, str(shards))
    assert validation_psnr(first.folder) == pytest.approx(validation_psnr(complete.folder), abs=1e-4)
    torch.testing.assert_close(weights(first.folder / "best"), weights(complete.best), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_epochs_added_to_a_finished_run_are_trained(shards: Path, experiment: MakeExperiment) -> None:
    e = experiment("more", training={"epochs": 1}, optimizer={"schedule": "constant"}, cluster={"num_workers": 1})
    train(e, str(shards))
    run = train(replace(e, training=replace(e.training, epochs=2)), str(shards))
    seen = [(event["kind"], event["step"]) for event in events(run.folder) if event["kind"] in ("start", "validation")]
    assert seen == [("start", 0), ("validation", 3), ("start", 3), ("validation", 6)]


def test_a_stop_file_ends_a_run_with_a_checkpoint_of_its_last_step(shards: Path, experiment: MakeExperiment) -> None:
    training = {"epochs": 4000, "validate_every": 80, "checkpoint_every": "30steps"}
    e = experiment("stopped", training=training, cluster={"num_workers": 1})
    folder = Path(e.storage, e.name)

    def stop(event: Event) -> None:
        if event["kind"] == "train" and checkpoint_step(folder):
            with pytest.raises(InputError, match=rf"--name stopped: {folder} is in use by process {os.getpid()} "):
                train(e, str(shards))
            (folder / "stop").touch()

    with pytest.raises(PartialFailure, match="stopped before its first validation; the same command resumes from"):
        train(e, str(shards), on_event=stop)
    step = checkpoint_step(folder)
    trained = [event["step"] for event in events(folder) if event["kind"] == "train"]
    assert 30 <= trained[-1] <= step < 240

    def stop_at_a_validation(event: Event) -> None:
        if event["kind"] == "validation":
            (folder / "stop").touch()

    e = replace(e, training=replace(e.training, checkpoint_every="1min"))  # may change
    run = train(e, str(shards), on_event=stop_at_a_validation)
    assert [event["step"] for event in events(folder) if event["kind"] == "start"] == [0, step]
    assert run.metrics["step"] == 240 <= checkpoint_step(folder) < 12000 and run.metrics["psnr_db"] > 0


@pytest.mark.slow
def test_a_killed_worker_loses_only_the_steps_since_the_latest_checkpoint(
    shards: Path, experiment: MakeExperiment
) -> None:
    # Twice, with a new checkpoint between: only failures in a row count.
    e = experiment("killed", training={"epochs": 40, "validate_every": 4}, cluster={"max_failures": 1})
    killed: list[int] = []

    def kill(event: Event) -> None:
        if event["kind"] == "validation" and event["epoch"] >= (8, 24, 999)[len(killed)]:
            killed.append(worker_processes()[0])
            os.kill(killed[-1], signal.SIGKILL)

    run = train(e, str(shards), on_event=kill)
    assert len(killed) == 2
    starts = [event["step"] for event in events(run.folder) if event["kind"] == "start"]
    assert len(starts) == 3 and 0 < starts[1] < starts[2], "each new worker group resumed from a checkpoint"
    reasons = [event["reason"] for event in events(run.folder) if event["kind"] == "failure"]
    assert len(reasons) == 2 and any("died (process" in reason for reason in reasons)
    undisturbed = train(replace(e, name="undisturbed"), str(shards))
    assert validation_psnr(run.folder) == pytest.approx(validation_psnr(undisturbed.folder), abs=1e-3)
    torch.testing.assert_close(weights(run.best), weights(undisturbed.best), atol=1e-4, rtol=1e-3)


def worker_processes() -> list[int]:
    """Process IDs of the live training workers of this session's cluster, and of no other."""
    session = ray.get_runtime_context().get_session_name()
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()) and session in " ".join(process.parent().cmdline()):
                processes.append(process.pid)
    return processes


def test_a_killed_driver_resumes_and_a_run_whose_validations_find_no_room_validates_in_line_with_equal_results(
    shards: Path, experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"epochs": 210, "validate_every": 70}  # 210 steps to each validation
    e = experiment("interrupted", training=training, cluster={"num_workers": 1})  # which leaves CPUs free
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        "from lsid_ray import cluster\n"
        "from lsid_ray.config.serialization import from_json\n"
        "from lsid_ray.train.trainer import train\n"
        "cluster.connect()\n"
        "train(from_json(open(sys.argv[1]).read(), sys.argv[1]), sys.argv[2], lambda e: print(e, flush=True))\n"
    )
    (tmp_path / "e.json").write_text(to_json(e))
    folder, output = Path(e.storage, e.name), tmp_path / "output"
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with output.open("w") as file:
        command = [sys.executable, script, tmp_path / "e.json", shards]
        job = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        assert until(lambda: "'kind': 'train'" in output.read_text() or job.poll() is not None, 60), output.read_text()
        held = placement_group([{"CPU": 1}, {"CPU": 1}])  # beside worker and reader there is no CPU for a validation
        assert until(lambda: "'message': 'the validation of step 210'" in output.read_text(), 60), output.read_text()
    finally:
        job.kill()
        job.wait()
    remove_placement_group(held)
    awaiting = [(each.step, each.is_scored, each.awaits_validation) for each in saved_checkpoints(folder)]
    assert awaiting == [(210, False, True), (420, False, True)], "training was one validation ahead"
    assert until(lambda: not worker_processes(), 60), "the killed job's workers are still alive"
    resumed = train(e, str(shards))
    assert [event["step"] for event in events(folder) if event["kind"] == "start"] == [0, 420]

    monkeypatch.setattr(validator, "STARVED_S", 1.0)
    warnings: list[str] = []
    groups: list[PlacementGroup] = []

    def hold(event: Event) -> None:
        if event["kind"] == "train" and not groups:
            groups.append(placement_group([{"CPU": 1}, {"CPU": 1}]))
        if event["kind"] == "warning":
            warnings.append(event["message"])
            remove_placement_group(groups[0])  # or the run, which starts again, would wait for the other job

    starved = train(replace(e, name="starved"), str(shards), on_event=hold)
    assert len(warnings) == 1 and warnings[0].startswith("no room for the validation of step 210: 0.5 of 4 CPUs free")
    starts = [event["step"] for event in events(starved.folder) if event["kind"] == "start"]
    assert len(starts) == 2 and starts[1] >= 420, "it has trained on meanwhile"

    apart, starved_rows = (  # of the starved run, the last one is in line
        [{name: event[name] for name in event.keys() - {"time", "seconds"}} for event in events(each.folder)
         if event["kind"] == "validation"]
        for each in (resumed, starved)
    )  # fmt: skip
    assert sorted(apart, key=lambda row: row["step"]) == sorted(starved_rows, key=lambda row: row["step"])
    assert sorted(row["epoch"] for row in apart) == [70, 140, 210]
    assert resumed.metrics == starved.metrics
    states = (load_training_state(each.folder / checkpoint_name(630)) for each in (resumed, starved))
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_after_a_non_finite_loss_a_run_goes_back_or_ends_and_names_the_step_and_files(
    shards: Path, experiment: MakeExperiment, tmp_path: Path
) -> None:
    broken = shutil.copytree(shards, tmp_path / "broken")
    index = json.loads((broken / "index.json").read_text())
    victim = next(pair for pair in index["pairs"] if pair["split"] == "train")
    index["frames"][victim["short"]]["white_balance"] = [float("nan"), 1.0, 1.0]
    (broken / "index.json").write_text(json.dumps(index))
    e = experiment("returning", training={"crops_per_pair": 1, "epochs": 2, "max_rollbacks": 1})
    schedule = Schedule(open_shards(broken, ["train"]).pairs, e.training)
    pairs = [schedule.pairs[crop.pair].name for crop in schedule.samples(range(4 * schedule.total_steps))]
    bad = [step for step in range(schedule.total_steps) if victim["name"] in pairs[4 * step : 4 * step + 4]]
    assert len(bad) == 2 and bad[0] > 0, "else the test needs another seed"
    seen: list[Event] = []
    way_on = r"after 1 return to a .* best checkpoint with --init \S+, with another --name and a lower --optimizer"
    with pytest.raises(
        PartialFailure, match=rf"step {bad[1]}: a loss is not finite \(l1 nan.*{victim['name']}.*{way_on}"
    ):
        train(e, str(broken), on_event=seen.append)
    (rollback,) = [event for event in seen if event["kind"] == "rollback"]
    assert rollback["skipped_step"] == bad[0] and f"step {bad[0]}: a loss is not finite" in rollback["reason"]
    folder = Path(e.storage, e.name)
    state = load_training_state(folder / checkpoint_name(checkpoint_step(folder)))
    assert bad[0] < state["step"] <= bad[1] and all(each.isfinite().all() for each in state["generator"].values())


def test_a_run_that_does_not_fit_the_cluster_is_refused_at_once(shards: Path, experiment: MakeExperiment) -> None:
    with pytest.raises(InputError, match=r"--cluster.num-workers 4 .* needs 5.5 CPUs .* the cluster has 4"):
        train(experiment(cluster={"num_workers": 4}), str(shards))
    with pytest.raises(InputError, match="needs 2 GPUs, the cluster has 0"):
        train(experiment(cluster={"use_gpu": True}), str(shards))


def test_unusable_shards_and_crops_are_refused_at_once(
    shards: Path, experiment: MakeExperiment, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"until_epoch is 3: expected a multiple of --training\.validate-every 2"):
        train(experiment(training={"epochs": 4, "validate_every": 2}), str(shards), until_epoch=3)
    with pytest.raises(InputError, match=r"--training\.crop is 128"):
        train(experiment(training={"crop": 128}), str(shards))
    with pytest.raises(InputError, match=r"holds no index\.json"):
        train(experiment(), str(tmp_path / "nothing"))
    old = shutil.copytree(shards, tmp_path / "old")
    current = f'"version": {VERSION}'
    (old / "index.json").write_text((old / "index.json").read_text().replace(current, '"version": 4'))
    with pytest.raises(InputError, match=f"has version 4, this program reads {VERSION}"):
        train(experiment(), str(old))
    assert not Path(experiment().storage).exists(), "nothing was begun"
