"""The search space of a sweep: parsing and drawing."""

import math
import re

import optuna
import pytest

from lsid_ray.config.presets import PRESETS
from lsid_ray.errors import InputError
from lsid_ray.sweep.space import DEFAULTS, draw, read_space, with_parameters

DEMO = PRESETS["demo"][1]


def random_trial(seed: int) -> optuna.Trial:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()


def test_the_weight_and_both_learning_rates_are_searched_by_default() -> None:
    assert {dimension.field: dimension.text for dimension in read_space({}, DEMO)} == DEFAULTS
    space = read_space({"loss.adv-weight": "uniform:0:0.05", "training.crop": "choice:32,48"}, DEMO)
    assert [dimension.field for dimension in space] == [*DEFAULTS, "training.crop"]
    assert space[0].kind == "uniform" and space[0].values == (0.0, 0.05) and space[-1].values == (32, 48)


def test_drawn_values_are_in_range_and_have_the_type_of_their_field() -> None:
    search = {"loss.warmup-steps": "uniform:2:8", "loss.adversarial": "choice:bce,hinge", "training.seed": "choice:7"}
    space = read_space({**search, "generator.gates": "choice:true,false"}, with_parameters(DEMO, {}))
    draws = [draw(space, random_trial(seed), zero=False) for seed in range(200)]
    weights = [parameters["loss.adv_weight"] for parameters in draws]
    assert all(1e-4 <= weight <= 1e-1 for weight in weights)
    below = sum(weight < math.sqrt(1e-4 * 1e-1) for weight in weights)
    assert 70 < below < 130, "half of a loguniform range is below its geometric mean"
    assert {parameters["loss.warmup_steps"] for parameters in draws} == set(range(2, 9))
    assert {parameters["loss.adversarial"] for parameters in draws} == {"bce", "hinge"}
    assert {parameters["generator.gates"] for parameters in draws} == {True, False}
    assert {parameters["training.seed"] for parameters in draws} == {7}


def test_trials_without_adversarial_loss_draw_only_fields_that_they_use() -> None:
    space = read_space({"loss.warmup-steps": "uniform:0:10", "discriminator.width": "choice:8,16"}, DEMO)
    assert set(draw(space, random_trial(0), zero=True)) == {"loss.adv_weight", "optimizer.generator_lr"}
    assert draw(space, random_trial(0), zero=True)["loss.adv_weight"] == 0.0
    space = read_space({"loss.warmup-steps": "uniform:0:10", "loss.ssim-weight": "uniform:0:0.2"}, DEMO)
    assert "loss.ssim_weight" in draw(space, random_trial(0), zero=True), "L1 and SSIM have no need of an adversary"


def test_parameters_change_only_their_fields() -> None:
    changed = with_parameters(DEMO, {"loss.adv_weight": 0.5, "training.crop": 32})
    assert (changed.loss.adv_weight, changed.training.crop) == (0.5, 32)
    assert with_parameters(changed, {"loss.adv_weight": DEMO.loss.adv_weight, "training.crop": 48}) == DEMO


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("loss.adv-weight", "loguniform:0.1:0.0001", "is loguniform:0.1:0.0001: expected LOW below HIGH"),
        ("loss.adv-weight", "uniform:1:1", "expected LOW below HIGH"),
        ("loss.adv-weight", "uniform:nan:1", "expected LOW below HIGH"),
        ("loss.adv-weight", "loguniform:0:1", "expected LOW above 0"),
        ("loss.adv-weight", "uniform:-1:1", "--loss.adv-weight is -1.0: expected 0 to 1,000,000"),
        ("loss.adv-weight", "normal:0:1", "expected loguniform:LOW:HIGH, uniform:LOW:HIGH or choice"),
        ("loss.adv-weight", "", "expected loguniform:LOW:HIGH, uniform:LOW:HIGH or choice"),
        ("loss.adv-weight", "uniform:a:1", "is 'a': Input should be a valid number"),
        ("loss.weight", "uniform:0:1", "loss has no such field, expected one of l1-weight, ssim-weight, adv-weight"),
        ("cluster.readers", "choice:1,2", "expected a field of generator, discriminator, loss, optimizer, training"),
        ("name", "choice:a,b", "expected a field of generator"),
        ("training.crop", "uniform:32:33", "--training.crop is 33: expected a multiple of 8"),
        (
            "training.batch-size",
            "uniform:1:16",
            "--training.batch-size is 1: expected at least --cluster.num-workers 2",
        ),
        ("training.crop", "choice:1.5", "is '1.5': Input should be a valid integer"),
        ("loss.adversarial", "choice:bce,lsgan", "is 'lsgan': Input should be 'relativistic', 'hinge' or 'bce'"),
        ("loss.adversarial", "uniform:0:1", "expected choice:A,B,... for a field that is not a number"),
        ("optimizer.betas", "choice:0.5", "a field with several values cannot be searched"),
    ],
)
def test_an_invalid_distribution_names_its_option_and_what_was_expected(field: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^--search\.{re.escape(field)}.*{re.escape(message)}"):
        read_space({field: text}, DEMO)
