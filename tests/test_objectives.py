"""What trials are judged by: the rule, its number for ASHA, the front."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from lsid_ray.config.checks import check_sweep
from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import SweepConfig
from lsid_ray.errors import InputError
from lsid_ray.sweep import plots
from lsid_ray.sweep.objectives import checkpoint, front, outcome, ranked, rule, scalar, with_metrics

FLIP = SweepConfig(objectives=("psnr", "flip"))
SCORES = {
    "sharpest": {"psnr_db": 20.0, "ssim": 0.5, "flip": 0.10},
    "near": {"psnr_db": 21.9, "ssim": 0.5, "flip": 0.15},
    "highest": {"psnr_db": 22.0, "ssim": 0.6, "flip": 0.20},
    "beaten": {"psnr_db": 21.0, "ssim": 0.5, "flip": 0.18},
}


def test_the_best_trial_is_the_best_by_the_second_metric_near_the_best_psnr():
    assert ranked(SCORES, SweepConfig()) == ["highest", "near", "beaten", "sharpest"]
    assert ranked(SCORES, FLIP) == ["near", "highest", "beaten", "sharpest"]
    assert ranked(SCORES, dataclasses.replace(FLIP, tolerance_db=0.05))[0] == "highest"
    assert ranked(SCORES, dataclasses.replace(FLIP, tolerance_db=3))[0] == "sharpest"
    assert ranked(SCORES, SweepConfig(objectives=("flip",)))[0] == "sharpest"
    assert ranked(SCORES, SweepConfig(objectives=("psnr", "ssim")))[0] == "highest"
    assert ranked({}, FLIP) == []
    small = {"small": {"psnr_db": 22.05, "ssim": 0.6, "flip": math.nan}, **SCORES}
    assert ranked(small, FLIP) == ["near", "highest", "small", "beaten", "sharpest"]
    assert scalar(small["small"], FLIP) < scalar(small["highest"], FLIP), "of one step of PSNR"


def test_the_rule_is_said_in_words():
    assert rule(SweepConfig()) == "the highest PSNR"
    assert rule(FLIP) == "the lowest FLIP within 0.2 dB of the best PSNR"
    assert rule(SweepConfig(objectives=("psnr", "ssim"))) == "the highest SSIM within 0.2 dB of the best PSNR"


def test_the_number_for_asha_follows_psnr_in_steps_and_the_second_metric_within_one():
    def of(psnr: float, flip: float) -> float:
        return scalar({"psnr_db": psnr, "flip": flip}, FLIP)

    assert of(20.05, 0.1) > of(20.15, 0.2), "within a step of 0.2 dB"
    assert of(20.25, 0.2) > of(20.15, 0.1), "of another step"
    assert scalar(SCORES["near"], SweepConfig()) == 21.9
    assert scalar(SCORES["near"], SweepConfig(objectives=("flip",))) == -0.15
    assert scalar(SCORES["near"], dataclasses.replace(FLIP, tolerance_db=0.0)) == 21.9


def test_the_front_holds_what_no_other_trial_beats_in_both():
    assert front(SCORES, "psnr_db", "flip") == ["sharpest", "near", "highest"]
    assert front(SCORES, "psnr_db", "ssim") == ["highest"]


def test_with_a_second_metric_trials_are_judged_by_their_last_validation_and_latest_checkpoint(tmp_path: Path):
    first, last = ({"psnr_db": psnr, "flip": 0.1} for psnr in (22.0, 21.0))
    trial = SimpleNamespace(validations=(first, last), best_validation=first)
    assert outcome(trial, SweepConfig()) is first and outcome(trial, FLIP) is last
    assert outcome(SimpleNamespace(validations=(), best_validation=None), FLIP) is None
    assert checkpoint(tmp_path, SweepConfig()) is None and checkpoint(tmp_path, FLIP) is None
    (tmp_path / "best").mkdir()
    assert checkpoint(tmp_path, SweepConfig()) == tmp_path / "best"


def test_objectives_are_measured_at_validations_and_need_their_weights(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    demo = PRESETS["demo"][1]
    assert with_metrics(demo, FLIP).training.metrics == ("flip",)
    assert with_metrics(demo, SweepConfig()) == demo
    with pytest.raises(InputError, match=r"--objectives dists: .*weights not at hand; to get them: python -c"):
        with_metrics(demo, SweepConfig(objectives=("psnr", "dists")))


@pytest.mark.parametrize(
    ("objectives", "shown"),
    [((), "empty"), (("flip", "psnr"), "flip psnr"), (("psnr", "psnr"), "psnr psnr"), (("flip", "ssim"), "flip ssim")],
)
def test_objectives_that_make_no_rule_are_refused(objectives: tuple, shown: str):
    with pytest.raises(InputError, match=f"--objectives is {shown}: expected one, or psnr and one or two others"):
        check_sweep(SweepConfig(objectives=objectives), PRESETS["demo"][1])
    with pytest.raises(InputError, match=r"--tolerance-db is -1"):
        check_sweep(SweepConfig(tolerance_db=-1), PRESETS["demo"][1])


def test_the_plot_of_the_front_shows_every_trial():
    def trial(number: int, name: str, weight: float) -> SimpleNamespace:
        return SimpleNamespace(number=number, name=name, parameters={"loss.adv_weight": weight}, state="finished")

    trials = [trial(number, name, number / 1000) for number, name in enumerate(SCORES)]
    sweep = SweepConfig(objectives=("psnr", "flip", "ssim"))
    figure = plots.front(trials, SCORES, "near", sweep)
    left, right = figure.axes[:2]
    assert [text.get_text() for text in left.texts] == ["0", "1", "2", "3"]
    assert left.get_ylabel() == "FLIP (lower is better)" and right.get_ylabel() == "SSIM (higher is better)"
    assert left.lines[0].get_xdata().tolist() == [20.0, 21.9, 22.0]
