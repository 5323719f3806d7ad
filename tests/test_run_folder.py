"""The folder of a run: which checkpoints count, and what is deleted."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from lsid_ray import storage
from lsid_ray.config.schema import Experiment, GeneratorConfig
from lsid_ray.config.serialization import from_json, to_json
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.model.checkpoint import (
    METRICS,
    TRAINING_STATE,
    WEIGHTS,
    load_generator,
    load_metrics,
    save_checkpoint,
    write_metrics,
)
from lsid_ray.model.generator import Generator
from lsid_ray.storage import AnyPath, to_path
from lsid_ray.train.run_folder import (
    AWAITS_VALIDATION,
    Rollback,
    add_rollback,
    checkpoint_name,
    checkpoint_step,
    claim_run,
    copy_best,
    rate_scale,
    read_rollbacks,
    remove_leftovers,
    remove_superseded,
    saved_checkpoints,
)
from lsid_ray.train.run_log import LOG, open_log, read_events

SCORES = {3: 20.0, 6: 22.0, 9: 21.0}  # PSNR by step


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, experiment) -> AnyPath:
    """The folder of a run with three checkpoints, the second of which is the best."""
    if request.param == "store":
        request.getfixturevalue("store")
    folder = to_path("s3://bucket/test/run") if request.param == "store" else tmp_path / "run"
    e = replace(experiment(), generator=GeneratorConfig(width=2, depth=1))
    for step, psnr in SCORES.items():
        with storage.atomic_folder(folder / checkpoint_name(step), last=METRICS) as partial:
            save_checkpoint(partial, e, Generator(e.generator), {"step": step}, {"step": step, "psnr_db": psnr})
    return folder


def steps(folder: AnyPath) -> list[int]:
    return [checkpoint.step for checkpoint in saved_checkpoints(folder)]


def test_checkpoints_are_listed_by_step_and_only_the_best_and_the_latest_are_kept(folder: AnyPath) -> None:
    assert steps(folder) == [3, 6, 9] and checkpoint_step(folder) == 9
    (folder / "checkpoint_manager_snapshot.json").write_text("{")
    (folder / "metrics.jsonl").write_text("")
    half_written = folder / ".checkpoint_000000012.0.partial"
    half_written.mkdir()
    (half_written / WEIGHTS).write_bytes(b"half")
    assert remove_leftovers(folder) == [], "none of them was incomplete"
    assert steps(folder) == [6, 9]
    assert {path.name for path in folder.iterdir()} == {"checkpoint_000000006", "checkpoint_000000009", "metrics.jsonl"}
    best, metrics = copy_best(folder)
    assert metrics == {"step": 6, "psnr_db": 22.0} and load_generator(best)[1].name == "tiny"


def test_rollbacks_skip_a_batch_and_halve_the_rates_if_no_checkpoint_was_made_since(folder: AnyPath) -> None:
    assert read_rollbacks(folder) == ()
    expected = (Rollback(11, 9, False), Rollback(10, 9, True))
    assert tuple(add_rollback(folder, step) for step in (11, 10)) == expected == read_rollbacks(folder)
    storage.remove_tree(folder / checkpoint_name(9))
    assert add_rollback(folder, 8) == Rollback(8, 6, False)
    assert [rate_scale(read_rollbacks(folder), step) for step in (6, 8, 9, 20)] == [1, 1, 0.5, 0.5]


def test_a_checkpoint_without_a_validation_is_kept_only_while_it_is_the_latest(folder: AnyPath) -> None:
    for step in (7, 12):
        path = folder / checkpoint_name(step)
        with storage.atomic_folder(path, last=METRICS) as partial:
            generator, e = load_generator(folder / checkpoint_name(6))
            save_checkpoint(partial, e, generator, {"step": step}, {"step": step, "epoch": 1})
    remove_leftovers(folder)
    assert steps(folder) == [6, 12] and checkpoint_step(folder) == 12
    assert copy_best(folder)[1]["step"] == 6
    storage.remove_tree(folder / checkpoint_name(6))
    with pytest.raises(PartialFailure, match="stopped before its first validation; the same command resumes from step"):
        copy_best(folder)


def test_a_checkpoint_that_awaits_its_validation_is_kept_and_is_not_the_best(folder: AnyPath) -> None:
    for step in (3, 6):
        write_metrics(folder / checkpoint_name(step), {"step": step, AWAITS_VALIDATION: True})
    remove_superseded(folder)
    assert steps(folder) == [3, 6, 9] and copy_best(folder)[1]["step"] == 9
    write_metrics(folder / checkpoint_name(3), {"step": 3, "psnr_db": 30.0})
    write_metrics(folder / checkpoint_name(6), {"step": 6, "psnr_db": 29.0})
    remove_superseded(folder)
    assert steps(folder) == [3, 9] and copy_best(folder)[1] == {"step": 3, "psnr_db": 30.0}


@pytest.mark.parametrize("missing", [WEIGHTS, TRAINING_STATE, METRICS])
def test_a_checkpoint_that_lacks_a_file_does_not_count(folder: AnyPath, missing: str) -> None:
    (folder / checkpoint_name(9) / missing).unlink()
    assert steps(folder) == [3, 6]
    assert remove_leftovers(folder) == [folder / checkpoint_name(9)]
    assert steps(folder) == [6] and not (folder / checkpoint_name(9)).exists()


def test_a_cut_checkpoint_does_not_count(folder: AnyPath) -> None:
    weights = folder / checkpoint_name(6) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    (folder / checkpoint_name(3) / METRICS).write_text('{"step": 3, "ps')
    assert steps(folder) == [9] and copy_best(folder)[1]["step"] == 9


def test_a_checkpoint_of_an_older_version_counts_if_it_has_all_files(folder: AnyPath) -> None:
    """They had no list of their files."""
    for step in (6, 9):
        path = folder / checkpoint_name(step) / METRICS
        content = json.loads(path.read_text())
        del content["files"]
        path.write_text(json.dumps(content))
    (folder / checkpoint_name(9) / WEIGHTS).unlink()
    assert steps(folder) == [3, 6]


def test_a_run_without_a_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert saved_checkpoints(tmp_path / "none") == [] and checkpoint_step(tmp_path / "none") == 0


def test_a_validation_that_a_killed_driver_has_not_logged_is_taken_from_its_checkpoint(folder: AnyPath) -> None:
    for _ in range(2):  # the second time it is there
        with open_log(folder, lambda event: None) as log:
            log.write({"kind": "start", "step": 9, "total_steps": 12})
    validations = [event for event in read_events(folder) if event["kind"] == "validation"]
    assert {event["step"]: event["psnr_db"] for event in validations} == SCORES and len(validations) == 3


def test_a_metric_that_could_not_be_computed_is_null_in_the_files_and_nan_to_those_who_read_them(
    folder: AnyPath, experiment
) -> None:
    def no_number(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    def is_as_measured(metrics: dict) -> bool:
        return metrics["psnr_db"] == 23.0 and math.isnan(metrics["texture"])

    metrics = {"step": 12, "epoch": 4, "psnr_db": 23.0, "texture": math.nan}
    e = replace(experiment(), generator=GeneratorConfig(width=2, depth=1))
    with storage.atomic_folder(folder / checkpoint_name(12), last=METRICS) as partial:
        save_checkpoint(partial, e, Generator(e.generator), {"step": 12}, metrics)
    with open_log(folder, lambda event: None) as log:
        log.write({"kind": "validation", **metrics, "seconds": 1.0})
    with open_log(folder, lambda event: None) as log:  # writes the log anew
        log.write({"kind": "start", "step": 12, "total_steps": 24})
    best, of_best = copy_best(folder)
    for text in (
        *(folder / LOG).read_text().splitlines(),
        *[(path / METRICS).read_text() for path in (best, folder / checkpoint_name(12))],
    ):
        content = json.loads(text, parse_constant=no_number)
        assert content.get("texture", "absent") is None or content["step"] < 12 or content["kind"] == "start"
    (logged,) = (event for event in read_events(folder) if event["kind"] == "validation" and event["step"] == 12)
    assert all(map(is_as_measured, (logged, of_best, load_metrics(best), saved_checkpoints(folder)[-1].metrics)))


def test_only_epochs_may_be_added_to_a_run_and_only_with_a_constant_learning_rate(tmp_path: Path, experiment) -> None:
    def longer(e: Experiment, epochs: int) -> Experiment:
        return replace(e, training=replace(e.training, epochs=epochs))

    for schedule in ("constant", "cosine", "drop"):
        folder = tmp_path / schedule
        e = experiment(optimizer={"schedule": schedule}, training={"epochs": 4})
        claim_run(folder, e, "digest")
        if schedule == "constant":
            claim_run(folder, longer(e, 6), "digest")
            assert from_json((folder / "experiment.json").read_text(), "") == longer(e, 6)
            e = longer(e, 6)
            with pytest.raises(InputError, match="was trained on other data"):
                claim_run(folder, longer(e, 8), "other")
        for epochs in (3, *([] if schedule == "constant" else [8])):
            message = rf"another experiment \(training.epochs is {e.training.epochs} there, {epochs} here\)"
            with pytest.raises(InputError, match=message):
                claim_run(folder, longer(e, epochs), "digest")
        with pytest.raises(InputError, match=r"\(training.crop is 16 there, 32 here\)"):
            claim_run(folder, replace(e, training=replace(e.training, crop=32)), "digest")
        assert (folder / "experiment.json").read_text() == to_json(e), "a refused one changes nothing"
