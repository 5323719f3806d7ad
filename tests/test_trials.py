"""Trials as a sweep reads them: again and again while they run, of each log only what was added."""

import json

import pytest
from conftest import Store

from lsid_ray.config.schema import SweepConfig
from lsid_ray.storage import to_path
from lsid_ray.sweep.report import trial_table
from lsid_ray.sweep.trials import SweepDefinition, Trial, begin_trial, end_trial, read_trials


def train(step: int) -> dict:
    times = {"time": 100.0 + step, "seconds": 2.0, "waiting_for_data": 0.25, "seconds_left": 50.0 - step}
    return {"kind": "train", "step": step, "epoch": step // 2, "l1": 0.1, **times}


def validation(step: int) -> dict:
    return {"kind": "validation", "step": step, "epoch": step // 2, "psnr_db": 20.0 + step, "ssim": 0.5, "seconds": 3.0}


@pytest.mark.parametrize("place", ["disk", "store"])
def test_a_log_is_read_on_from_where_it_ended(place: str, store: Store, tmp_path, experiment) -> None:
    folder = tmp_path / "sweep" if place == "disk" else to_path("s3://bucket/test/sweep")
    definition = SweepDefinition(folder, experiment(), (), SweepConfig(), "shards")
    log = begin_trial(definition, 0, {"training.batch_size": 5}) / "metrics.jsonl"

    def trial_after(*events: dict, then: str = "") -> tuple[Trial, int]:
        """The trial once its log holds these events, and how many bytes of the log were read."""
        log.write_text("".join(json.dumps(event) + "\n" for event in events) + then)
        store.requests.clear()
        (trial,) = read_trials(definition)
        assert read_trials(definition) == [trial]
        return trial, sum(size for verb, path, size in store.requests if verb == "GET" and path.endswith("jsonl"))

    assert read_trials(definition)[0].overhead_s is None
    start = {"kind": "start", "step": 0, "total_steps": 99, "time": 99.0}
    events = [start, *(train(step) for step in range(1, 60)), validation(60)]
    trial, _ = trial_after(*events, then='{"kind": "val')
    assert (trial.epoch, trial.samples, trial.validations) == (30, 300, (validation(60),))
    assert trial.busy_s == 59 * 1.5 + 3 and trial.seconds_left == 50 - 59
    assert trial.overhead_s == pytest.approx(101.0 - 1.5 - trial.began)

    events += [train(61), validation(62)]
    trial, read = trial_after(*events)
    assert (trial.samples, trial.validations) == (310, (validation(60), validation(62)))
    assert trial.busy_s == 60 * 1.5 + 6
    assert read < 3 * len(json.dumps(train(61))) and (place == "disk" or read), "not the whole log"

    resumed = [*events[:40], {**start, "step": 39, "time": 300.0}]  # from step 39: what came after it is dropped
    again = [{**train(step), "time": 400.0 + step} for step in range(40, 90)]  # longer than before
    for more in ([], again):
        trial, _ = trial_after(*resumed, *more)
        assert trial.samples == 5 * (89 if more else 39) and trial.validations == ()
        assert trial.busy_s == (39 + len(more)) * 1.5
    trial, _ = trial_after(*events)
    assert trial.validations == (validation(60), validation(62)) and trial.busy_s == 60 * 1.5 + 6

    end_trial(folder / "trials" / "trial-000", "stopped", "by ASHA")
    assert [(trial.state, trial.reason) for trial in read_trials(definition)] == [("stopped", "by ASHA")]
    log.unlink()
    assert read_trials(definition)[0].validations == ()


def test_how_often_a_discriminator_is_right_is_that_of_its_last_epoch(tmp_path, experiment) -> None:
    definition = SweepDefinition(tmp_path, experiment(), (), SweepConfig(), "shards")
    log = begin_trial(definition, 0, {}) / "metrics.jsonl"
    warmup = train(1)
    log.write_text(json.dumps(warmup) + "\n")
    assert read_trials(definition)[0].discriminator_accuracy is None
    accuracies = [(0.9, 0.9), (0.9, 0.8), (0.5, 0.7), (0.3, 0.5)]  # two events each of epochs 1 and 2
    judged = [
        {**train(2 + number), "real_accuracy": real, "fake_accuracy": fake}
        for number, (real, fake) in enumerate(accuracies)
    ]
    log.write_text("".join(json.dumps(event) + "\n" for event in (warmup, *judged)))
    (trial,) = read_trials(definition)
    assert trial.discriminator_accuracy == pytest.approx(0.5)
    assert " 50% " in trial_table(definition, [trial])[2]
