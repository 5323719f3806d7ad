import ast
import dataclasses
import inspect
import json
import math
import re
from typing import Any

import pytest
import tyro

from lsid_ray.config import schema
from lsid_ray.config.checks import check_experiment
from lsid_ray.config.presets import PRESETS
from lsid_ray.config.schema import Experiment
from lsid_ray.config.serialization import from_json, identity, to_json
from lsid_ray.errors import InputError


def preset(name: str) -> Experiment:
    """With a data folder, which the user must give."""
    experiment = PRESETS[name][1]
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, root="data/sid"))


def changed(experiment: Experiment, option: str, value: Any) -> Experiment:
    """The experiment with one option, spelled as on the command line, set to a value."""
    *group, name = option.removeprefix("--").replace("-", "_").split(".")
    if not group:
        return dataclasses.replace(experiment, **{name: value})
    part = dataclasses.replace(getattr(experiment, group[0]), **{name: value})
    return dataclasses.replace(experiment, **{group[0]: part})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_run(name: str):
    check_experiment(preset(name))
    assert PRESETS[name][1].name == name


def test_the_demo_needs_no_options():
    check_experiment(PRESETS["demo"][1])


def test_the_thesia_preset_has_the_baselines_values():
    e = PRESETS["thesia"][1]
    g, d, o, t = e.generator, e.discriminator, e.optimizer, e.training
    assert (g.width, g.depth, g.gates, g.norm, g.upsample, g.negative_slope) == (64, 4, True, "batch", "nearest", 0)
    assert (g.output, g.white_balance) == ("half", False)
    assert (d.width, d.layers, d.norm) == (64, 3, "batch")
    assert (e.loss.adversarial, e.loss.l1_weight / e.loss.adv_weight) == ("bce", 100)
    assert (e.loss.warmup_steps, e.loss.ramp_steps) == (0, 0)
    assert (o.generator_lr, o.discriminator_lr, o.betas, o.schedule) == (2e-4, 2e-4, (0.5, 0.999), "constant")
    assert o.ema_decay == 0
    assert (t.batch_size, t.crop, t.epochs, t.epoch_draw) == (16, 512, 500, "pairs")
    assert (t.flip_probability, t.transpose_probability, t.precision) == (0.2, 0, "bfloat16")


def test_the_chen_preset_has_the_values_of_the_paper():
    e = PRESETS["chen"][1]
    g, o, t = e.generator, e.optimizer, e.training
    assert (g.width, g.depth, g.gates, g.norm, g.upsample, g.negative_slope) == (32, 4, False, "none", "transpose", 0.2)
    assert (g.output, g.white_balance, e.loss.adv_weight) == ("full", False, 0)
    assert (o.generator_lr, o.betas, o.schedule) == (1e-4, (0.9, 0.999), "drop")
    assert (t.batch_size, t.crop, t.epochs, t.epoch_draw) == (1, 512, 4000, "scenes")
    assert (t.flip_probability, t.transpose_probability) == (0.5, 0.5)


@pytest.mark.parametrize("name", PRESETS)
def test_an_experiment_survives_a_round_trip_through_json(name: str):
    experiment = preset(name)
    again = from_json(to_json(experiment), "x.json")
    assert again == experiment and hash(again) == hash(experiment)


def without(fields: dict, *path: str) -> None:
    del (fields[path[0]] if len(path) > 1 else fields)[path[-1]]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.update(colour=1), "the field colour is unknown"),
        (lambda f: f["training"].update(colour=1), r"the field training\.colour is unknown"),
        (lambda f: without(f, "name"), "the field name is missing"),
        (lambda f: f["generator"].update(width="64"), r"generator\.width is '64': Input should be a valid integer"),
        (lambda f: f["generator"].update(width=64.0), r"generator\.width is 64\.0: Input should be a valid integer"),
        (lambda f: f["generator"].update(width=True), r"generator\.width is True: Input should be a valid integer"),
        (lambda f: f["generator"].update(gates=1), r"generator\.gates is 1: Input should be a valid boolean"),
        (lambda f: f["loss"].update(l1_weight=None), r"loss\.l1_weight is None: Input should be a valid number"),
        (
            lambda f: f["loss"].update(adversarial="wgan"),
            r"adversarial is 'wgan': Input should be 'relativistic', 'hinge'",
        ),
        (
            lambda f: f["optimizer"].update(betas=[0.5, "x"]),
            r"optimizer\.betas\.1 is 'x': Input should be a valid number",
        ),
        (lambda f: f.update(data="folder"), r"data is 'folder': Input should be an object"),
        (lambda f: f.update(name=3), r"name is 3: Input should be a valid string"),
    ],
)
def test_an_invalid_field_is_named(change, message: str):
    fields = json.loads(to_json(preset("thesia")))
    change(fields)
    with pytest.raises(InputError, match=message) as caught:
        from_json(json.dumps(fields), "runs/x/experiment.json")
    assert str(caught.value).startswith("runs/x/experiment.json ")
    assert "\n" not in str(caught.value)


def test_fields_of_later_versions_take_their_defaults():
    fields = json.loads(to_json(preset("thesia")))
    without(fields, "storage")
    without(fields, "cluster", "wait_minutes")
    without(fields, "loss")
    read = from_json(json.dumps(fields), "x.json")
    assert read == dataclasses.replace(preset("thesia"), loss=schema.LossConfig())


@pytest.mark.parametrize("betas", [[0.5], [0.5, 0.9, 0.9], 0.5, None])
def test_a_tuple_of_the_wrong_length_is_named(betas: Any):
    fields = json.loads(to_json(preset("thesia")))
    fields["optimizer"]["betas"] = betas
    with pytest.raises(InputError, match=r"optimizer\.betas"):
        from_json(json.dumps(fields), "x.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_text_that_is_not_an_experiment_is_refused(text: str):
    with pytest.raises(InputError, match=r"x\.json is not an experiment"):
        from_json(text, "x.json")


def test_an_integer_is_accepted_as_a_float():
    fields = json.loads(to_json(preset("thesia")))
    fields["loss"]["adv_weight"] = 1
    assert type(from_json(json.dumps(fields), "x.json").loss.adv_weight) is float


POSITIVE = [
    "--generator.width",
    "--generator.depth",
    "--discriminator.width",
    "--discriminator.layers",
    "--optimizer.generator-lr",
    "--optimizer.discriminator-lr",
    "--training.epochs",
    "--training.batch-size",
    "--training.crop",
    "--training.crops-per-pair",
    "--training.validate-every",
    "--cluster.readers",
    "--cluster.num-workers",
    "--cluster.cpus-per-worker",
    "--loss.l1-weight",
]
NOT_NEGATIVE = [
    "--loss.adv-weight",
    "--loss.warmup-steps",
    "--loss.ramp-steps",
    "--cluster.max-failures",
    "--training.seed",
]
PROBABILITIES = ["--training.flip-probability", "--training.transpose-probability", "--optimizer.ema-decay"]


@pytest.mark.parametrize(
    "option, value",
    [(option, value) for option in POSITIVE for value in (0, -1, float("nan"))]
    + [(option, value) for option in NOT_NEGATIVE for value in (-1, float("nan"))]
    + [(option, value) for option in PROBABILITIES for value in (-0.01, 1.01, float("nan"))]
    + [
        ("--training.checkpoint-every", value)
        for value in ("0min", "5", "steps", "often", "-1min", "0steps", "1.5steps")
    ]
    + [("--name", ""), ("--name", "a/b"), ("--name", ".."), ("--optimizer.generator-lr", math.inf)]
    + [("--optimizer.betas", (0.9, 1.0)), ("--optimizer.betas", (-0.1, 0.9))]
    + [("--generator.width", 4_000_000), ("--generator.depth", 10**300), ("--generator.negative-slope", math.nan)]
    + [("--loss.adv-weight", 1e300), ("--optimizer.generator-lr", 1e-300), ("--cluster.gpus-per-worker", 1e-300)]
    + [("--name", " "), ("--name", "a\0b"), ("--training.seed", 2**32)],
)
def test_a_value_out_of_range_is_refused_with_its_option(option: str, value: Any):
    with pytest.raises(InputError, match=f"^{option} is {re.escape(repr(value))}: expected ") as caught:
        check_experiment(changed(preset("sid-sony"), option, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "option, value",
    [(option, 0) for option in NOT_NEGATIVE] + [(option, value) for option in PROBABILITIES for value in (0, 1)],
)
def test_the_ends_of_a_range_are_allowed(option: str, value: Any):
    check_experiment(changed(preset("sid-sony"), option, value))


@pytest.mark.parametrize("option", ["--training.crop"])
def test_a_crop_that_is_no_multiple_of_the_networks_stride_is_refused(option: str):
    check_experiment(changed(preset("sid-sony"), option, 144))
    with pytest.raises(InputError, match=rf"{option} is 136: expected a multiple of 16 \(--generator\.depth 4\)"):
        check_experiment(changed(preset("sid-sony"), option, 136))


def test_a_crop_too_small_for_the_discriminator_is_refused_only_if_there_is_one():
    small = changed(preset("sid-sony"), "--training.crop", 16)
    with pytest.raises(InputError, match=r"crop is 16: too small for --discriminator\.layers 3, expected at least 24"):
        check_experiment(small)
    alone = changed(small, "--loss.adv-weight", 0)
    check_experiment(alone)
    check_experiment(changed(alone, "--loss.ssim-weight", 0.5))
    smaller = changed(changed(alone, "--generator.depth", 3), "--training.crop", 8)
    check_experiment(smaller)
    with pytest.raises(InputError, match=r"crop is 8: too small for --loss\.ssim-weight 0\.5, expected at least 11"):
        check_experiment(changed(smaller, "--loss.ssim-weight", 0.5))


def test_workers_without_a_sample_are_refused():
    check_experiment(changed(preset("sid-sony"), "--cluster.num-workers", 8))
    with pytest.raises(InputError, match=r"batch-size is 16: expected at least --cluster\.num-workers 17"):
        check_experiment(changed(preset("sid-sony"), "--cluster.num-workers", 17))
    parts = changed(preset("sid-sony"), "--training.accumulate", 16)
    check_experiment(parts)
    with pytest.raises(
        InputError, match=r"is 16: expected at least --cluster\.num-workers 2 times --training\.acc.* 16"
    ):
        check_experiment(changed(parts, "--cluster.num-workers", 2))
    with pytest.raises(InputError, match=r"--cluster\.min-workers is 2: expected 0 to --cluster\.num-workers 1"):
        check_experiment(changed(preset("sid-sony"), "--cluster.min-workers", 2))


def test_a_run_needs_raw_files_or_shards():
    with pytest.raises(InputError, match=r"--data\.root is empty"):
        check_experiment(PRESETS["sid-sony"][1])
    check_experiment(changed(PRESETS["sid-sony"][1], "--data.shards", "shards"))


def test_where_a_run_is_stored_is_not_part_of_its_identity():
    experiment = preset("sid-sony")
    places = {"--name": "b", "--storage": "/b", "--data.root": "/b", "--cluster.num-workers": 8}
    for option, value in {**places, "--training.accumulate": 2, "--training.max-rollbacks": 0}.items():
        assert identity(changed(experiment, option, value)) == identity(experiment)
    for option, value in {"--training.crop": 128, "--loss.adv-weight": 0.5, "--optimizer.ema-decay": 0.5}.items():
        assert identity(changed(experiment, option, value)) != identity(experiment)


@pytest.mark.parametrize("name", PRESETS)
def test_the_command_line_starts_from_a_preset(name: str):
    assert tyro.extras.overridable_config_cli(PRESETS, args=[name]) == PRESETS[name][1]


def test_the_command_line_overrides_single_options():
    arguments = "thesia --name mine --training.batch-size 8 --optimizer.betas 0.9 0.95 --cluster.no-use-gpu"
    given = tyro.extras.overridable_config_cli(PRESETS, args=arguments.split())
    expected = PRESETS["thesia"][1]
    for option, value in {"--name": "mine", "--training.batch-size": 8, "--optimizer.betas": (0.9, 0.95)}.items():
        expected = changed(expected, option, value)
    assert given == changed(expected, "--cluster.use-gpu", False)


@pytest.mark.parametrize("arguments", ["thesia --colour red", "nosuch", "thesia --loss.adversarial wgan"])
def test_an_unknown_option_ends_the_command(arguments: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        tyro.extras.overridable_config_cli(PRESETS, args=arguments.split())
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert arguments.split()[-2 if "red" in arguments else -1] in shown.out + shown.err


def test_every_option_has_a_docstring():
    tree = ast.parse(inspect.getsource(schema))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in classes.values():
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) not in classes:
                explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert explained, f"{node.name}.{ast.unparse(field.target)} has no docstring"


def test_an_experiment_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["demo"][1].training.crop = 3  # type: ignore[misc]
