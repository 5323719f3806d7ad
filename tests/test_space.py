"""What a sweep searches, as it is given and as it is drawn."""

import math
import re

import optuna
import pytest

from lsid_ray.errors import InputError
from lsid_ray.presets import PRESETS
from lsid_ray.sweep.space import DEFAULTS, draw, read_space, with_parameters

DEMO = PRESETS["demo"][1]


def ask(number: int) -> optuna.Trial:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number)).ask()


def test_the_weight_and_both_learning_rates_are_searched_unless_said_otherwise() -> None:
    assert {dimension.field: dimension.text for dimension in read_space({}, DEMO)} == DEFAULTS
    space = read_space({"loss.adv-weight": "uniform:0:0.05", "training.crop": "choice:32,48"}, DEMO)
    assert [dimension.field for dimension in space] == [*DEFAULTS, "training.crop"]
    assert space[0].kind == "uniform" and space[0].values == (0.0, 0.05) and space[-1].values == (32, 48)


def test_draws_lie_in_their_ranges_and_have_their_fields_types() -> None:
    given = {"training.batch-size": "uniform:2:8", "loss.adversarial": "choice:bce,hinge", "training.seed": "choice:7"}
    space = read_space({**given, "generator.gates": "choice:true,false"}, with_parameters(DEMO, {}))
    drawn = [draw(space, ask(number), zero=False) for number in range(200)]
    weights = [parameters["loss.adv_weight"] for parameters in drawn]
    assert all(1e-4 <= weight <= 1e-1 for weight in weights)
    below = sum(weight < math.sqrt(1e-4 * 1e-1) for weight in weights)
    assert 70 < below < 130, "half of a logarithmic range lies below its geometric mean"
    assert {parameters["training.batch_size"] for parameters in drawn} == set(range(2, 9))
    assert {parameters["loss.adversarial"] for parameters in drawn} == {"bce", "hinge"}
    assert {parameters["generator.gates"] for parameters in drawn} == {True, False}
    assert {parameters["training.seed"] for parameters in drawn} == {7}


def test_without_adversarial_loss_only_what_counts_then_is_drawn() -> None:
    space = read_space({"loss.warmup-steps": "uniform:0:10", "discriminator.width": "choice:8,16"}, DEMO)
    assert set(draw(space, ask(0), zero=True)) == {"loss.adv_weight", "optimizer.generator_lr"}
    assert draw(space, ask(0), zero=True)["loss.adv_weight"] == 0.0


def test_parameters_change_their_fields_alone() -> None:
    changed = with_parameters(DEMO, {"loss.adv_weight": 0.5, "training.crop": 32})
    assert (changed.loss.adv_weight, changed.training.crop) == (0.5, 32)
    assert with_parameters(changed, {"loss.adv_weight": DEMO.loss.adv_weight, "training.crop": 48}) == DEMO


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("loss.adv-weight", "loguniform:0.1:0.0001", "is loguniform:0.1:0.0001: expected LOW below HIGH"),
        ("loss.adv-weight", "uniform:1:1", "expected LOW below HIGH"),
        ("loss.adv-weight", "uniform:nan:1", "expected LOW below HIGH"),
        ("loss.adv-weight", "loguniform:0:1", "expected LOW above 0"),
        ("loss.adv-weight", "uniform:-1:1", "--loss.adv-weight is -1.0: expected 0 or more"),
        ("loss.adv-weight", "normal:0:1", "expected loguniform:LOW:HIGH, uniform:LOW:HIGH or choice"),
        ("loss.adv-weight", "", "expected loguniform:LOW:HIGH, uniform:LOW:HIGH or choice"),
        ("loss.adv-weight", "uniform:a:1", "holds 'a': expected float"),
        ("loss.weight", "uniform:0:1", "loss has no such field, expected one of l1-weight, adv-weight"),
        ("cluster.readers", "choice:1,2", "expected a field of generator, discriminator, loss, optimizer, training"),
        ("name", "choice:a,b", "expected a field of generator"),
        ("training.crop", "uniform:32:33", "--training.crop is 33: expected a multiple of 8"),
        ("training.crop", "choice:1.5", "holds '1.5': expected int"),
        ("loss.adversarial", "choice:bce,lsgan", "holds 'lsgan': expected one of relativistic, hinge, bce"),
        ("loss.adversarial", "uniform:0:1", "expected choice:A,B,... for what is not a number"),
        ("optimizer.betas", "choice:0.5", "a field of several values cannot be searched"),
    ],
)
def test_a_mistake_names_the_option_and_what_was_expected(field: str, text: str, said: str) -> None:
    with pytest.raises(InputError, match=rf"^--search\.{re.escape(field)}.*{re.escape(said)}"):
        read_space({field: text}, DEMO)
