from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lsid_ray.config.schema import DiscriminatorConfig, Experiment, GeneratorConfig, LossConfig, OptimizerConfig
from lsid_ray.config.serialization import to_json
from lsid_ray.data.batch import Batch
from lsid_ray.errors import InputError
from lsid_ray.model.checkpoint import load_generator, load_metrics, load_training_state, save_checkpoint
from lsid_ray.model.generator import Generator
from lsid_ray.train.step import GanStep

CPU = torch.device("cpu")
FILES = ["checkpoint.json", "experiment.json", "generator.safetensors", "training.pt"]


def small(norm: str = "none", d_norm: str = "spectral", kind: str = "relativistic", decay: float = 0.9) -> Experiment:
    """A tiny experiment, still in its ramp after three steps, so that the step number matters."""
    return Experiment(
        name="small",
        generator=GeneratorConfig(width=4, depth=2, norm=norm),
        discriminator=DiscriminatorConfig(width=4, layers=2, norm=d_norm),
        loss=LossConfig(adv_weight=0.1, adversarial=kind, warmup_steps=1, ramp_steps=3),
        optimizer=OptimizerConfig(generator_lr=1e-3, schedule="cosine", ema_decay=decay),
    )


def save(folder: Path, experiment: Experiment) -> Generator:
    torch.manual_seed(3)
    generator = Generator(experiment.generator)
    save_checkpoint(folder, experiment, generator, {"step": 3}, {"step": 3, "psnr_db": 28.5})
    return generator


def assert_equal(a: Any, b: Any) -> None:
    """Compare nested containers; tensors must be bitwise equal."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for name in a:
            assert_equal(a[name], b[name])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_loaded_generator_equals_the_saved_one(norm: str, tmp_path: Path):
    experiment = small(norm)
    saved = save(tmp_path, experiment)
    loaded, loaded_experiment = load_generator(tmp_path)
    assert loaded_experiment == experiment and not loaded.training
    assert_equal(dict(loaded.state_dict()), dict(saved.state_dict()))
    planes = torch.rand(1, 4, 9, 7)
    with torch.no_grad():
        assert torch.equal(loaded(planes), saved.eval()(planes))


def test_a_checkpoint_has_four_files_and_its_metrics_and_state_are_readable(tmp_path: Path):
    save(tmp_path, small())
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert load_metrics(tmp_path) == {"step": 3, "psnr_db": 28.5}
    assert load_training_state(tmp_path) == {"step": 3}


def test_channels_last_weights_can_be_saved(tmp_path: Path):
    generator = Generator(small().generator).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path, small(), generator, {}, {})
    assert_equal(dict(load_generator(tmp_path)[0].state_dict()), dict(generator.state_dict()))


@pytest.mark.parametrize("changes", [{"width": 8}, {"depth": 3}, {"gates": False}, {"output": "half"}], ids=str)
def test_weights_that_do_not_fit_the_experiment_are_rejected(changes: dict[str, Any], tmp_path: Path):
    save(tmp_path, small())
    other = replace(small(), generator=replace(small().generator, **changes))
    (tmp_path / "experiment.json").write_text(to_json(other))
    with pytest.raises(InputError, match=r"generator\.safetensors does not fit experiment\.json") as caught:
        load_generator(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"<html>"], ids=["empty", "zeros", "html"])
def test_broken_weights_are_rejected(content: bytes, tmp_path: Path):
    save(tmp_path, small())
    (tmp_path / "generator.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"generator\.safetensors is damaged"):
        load_generator(tmp_path)


def test_truncated_weights_are_rejected(tmp_path: Path):
    save(tmp_path, small())
    path = tmp_path / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"generator\.safetensors is damaged"):
        load_generator(tmp_path)


def test_values_that_are_not_finite_are_rejected(tmp_path: Path):
    generator = save(tmp_path, small())
    with torch.no_grad():
        generator.head.bias[0] = float("nan")
    save_checkpoint(tmp_path, small(), generator, {}, {})
    with pytest.raises(InputError, match=r"generator\.safetensors is damaged: values that are not finite"):
        load_generator(tmp_path)


def test_an_experiment_of_a_huge_network_beside_small_weights_takes_no_memory(tmp_path: Path):
    save(tmp_path, small())
    for width, message in ((4096, "does not fit"), (4_000_000, "width is 4000000: expected 1 to 4,096")):
        huge = replace(small(), generator=replace(small().generator, width=width, depth=10))
        (tmp_path / "experiment.json").write_text(to_json(huge))
        with pytest.raises(InputError, match=message):  # the first would take 10 TB
            load_generator(tmp_path)


@pytest.mark.parametrize("name", ["generator.safetensors", "experiment.json"])
def test_a_file_without_read_permission_is_refused_as_such(
    name: str, tmp_path: Path, unreadable: Callable[[Path], Path]
):
    save(tmp_path, small())
    with pytest.raises(PermissionError, match=f"Permission denied.*{name}"):
        load_generator(unreadable(tmp_path / name).parent)


@pytest.mark.parametrize("name", ["generator.safetensors", "experiment.json"])
def test_a_folder_in_place_of_a_file_is_named(name: str, tmp_path: Path):
    save(tmp_path, small())
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name}: not a file"):
        load_generator(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]"])
def test_an_experiment_that_is_no_json_object_is_refused(content: bytes, tmp_path: Path):
    save(tmp_path, small())
    (tmp_path / "experiment.json").write_bytes(content)
    with pytest.raises(InputError, match=r"experiment\.json is not an experiment of this version"):
        load_generator(tmp_path)


@pytest.mark.parametrize("name", ["generator.safetensors", "experiment.json"])
def test_a_folder_with_a_missing_file_is_not_a_checkpoint(name: str, tmp_path: Path):
    save(tmp_path, small())
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"is not a checkpoint: expected {name} in it"):
        load_generator(tmp_path)


def test_the_folder_of_a_run_is_refused_with_its_best_checkpoint(tmp_path: Path):
    (tmp_path / "best").mkdir()
    save(tmp_path / "best", small())
    with pytest.raises(InputError, match=r"expected generator\.safetensors in it, as in .*/best$"):
        load_generator(tmp_path)


def test_a_folder_whose_name_is_not_utf8_is_refused_as_such(tmp_path: Path):
    with pytest.raises(InputError, match="its name is not UTF-8"):
        load_generator(tmp_path / "a\udcffb")


def test_a_missing_folder_is_not_a_checkpoint(tmp_path: Path):
    with pytest.raises(InputError, match="missing is not a checkpoint"):
        load_generator(tmp_path / "missing")


@pytest.mark.parametrize("content", [None, "{", "[]", "3"])
def test_missing_or_broken_metrics_are_reported_with_their_file(content: str | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(InputError, match=r"checkpoint\.json"):
        load_metrics(tmp_path)


def test_an_experiment_of_another_version_is_rejected(tmp_path: Path):
    save(tmp_path, small())
    (tmp_path / "experiment.json").write_text('{"name": "new", "field": 1}')
    with pytest.raises(InputError, match=r"experiment\.json is not an experiment of this version: the field field is"):
        load_generator(tmp_path)
    (tmp_path / "experiment.json").write_text('{"name": "defaults"}')
    with pytest.raises(InputError, match=r"generator\.safetensors does not fit"):
        load_generator(tmp_path)


@pytest.mark.parametrize(
    "experiment",
    [
        small(kind="relativistic"),
        small(kind="hinge", d_norm="none"),
        small(kind="bce", norm="batch", d_norm="batch", decay=0),
        small(kind="relativistic", norm="batch", d_norm="batch"),
        replace(small(), loss=LossConfig(adv_weight=0)),
    ],
    ids=["relativistic spectral", "hinge", "bce batch, no average", "relativistic batch", "l1"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    experiment: Experiment, make_batch: Callable[..., Batch], tmp_path: Path
):
    batches = [make_batch(2, 16, seed) for seed in range(5)]
    uninterrupted = GanStep(experiment, 5, CPU)
    expected = [uninterrupted(batch) for batch in batches]
    interrupted = GanStep(experiment, 5, CPU)
    for batch in batches[:3]:
        interrupted(batch)
    save_checkpoint(tmp_path, experiment, interrupted.scored, interrupted.state_dict(), {})
    del interrupted
    resumed = GanStep(experiment, 5, CPU)
    resumed.load_state_dict(load_training_state(tmp_path))
    assert resumed.step == 3
    assert_equal([resumed(batch) for batch in batches[3:]], expected[3:])
    assert_equal(resumed.state_dict(), uninterrupted.state_dict())


def test_the_saved_generator_is_the_scored_one(make_batch: Callable[..., Batch], tmp_path: Path):
    step = GanStep(small(), 5, CPU)
    step(make_batch())
    save_checkpoint(tmp_path, small(), step.scored, step.state_dict(), {})
    loaded, _ = load_generator(tmp_path)
    assert_equal(dict(loaded.state_dict()), dict(step.average.state_dict()))
    assert not torch.equal(loaded.head.weight, step.generator.head.weight)
