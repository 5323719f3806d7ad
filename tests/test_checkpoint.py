from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lsid_ray import config
from lsid_ray.config import Experiment
from lsid_ray.errors import InputError
from lsid_ray.model import checkpoint
from lsid_ray.model.generator import Generator
from lsid_ray.model.inputs import Batch
from lsid_ray.train.step import GanStep

CPU = torch.device("cpu")
FILES = ["checkpoint.json", "experiment.json", "generator.safetensors", "training.pt"]


def small(norm: str = "none", d_norm: str = "spectral", kind: str = "relativistic", decay: float = 0.9) -> Experiment:
    """In the middle of its ramp after three steps, so that the step number matters."""
    return Experiment(
        name="small",
        generator=config.Generator(width=4, depth=2, norm=norm),
        discriminator=config.Discriminator(width=4, layers=2, norm=d_norm),
        loss=config.Loss(adv_weight=0.1, adversarial=kind, warmup_steps=1, ramp_steps=3),
        optimizer=config.Optimizer(generator_lr=1e-3, schedule="cosine", ema_decay=decay),
    )


def save(folder: Path, experiment: Experiment) -> Generator:
    torch.manual_seed(3)
    generator = Generator(experiment.generator)
    checkpoint.save(folder, experiment, generator, {"step": 3}, {"step": 3, "psnr_db": 28.5})
    return generator


def assert_equal(a: Any, b: Any) -> None:
    """Bit by bit, whatever is nested in what."""
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
def test_a_generator_comes_back_as_it_was_saved(norm: str, tmp_path: Path):
    experiment = small(norm)
    saved = save(tmp_path, experiment)
    loaded, described = checkpoint.load_generator(tmp_path)
    assert described == experiment and not loaded.training
    assert_equal(dict(loaded.state_dict()), dict(saved.state_dict()))
    planes = torch.rand(1, 4, 9, 7)
    with torch.no_grad():
        assert torch.equal(loaded(planes), saved.eval()(planes))


def test_a_checkpoint_is_four_files_and_its_facts_are_readable(tmp_path: Path):
    save(tmp_path, small())
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert checkpoint.load_facts(tmp_path) == {"step": 3, "psnr_db": 28.5}
    assert checkpoint.load_training(str(tmp_path)) == {"step": 3}


def test_weights_in_another_memory_layout_are_saved_too(tmp_path: Path):
    generator = Generator(small().generator).to(memory_format=torch.channels_last)
    checkpoint.save(tmp_path, small(), generator, {}, {})
    assert_equal(dict(checkpoint.load_generator(tmp_path)[0].state_dict()), dict(generator.state_dict()))


@pytest.mark.parametrize("changes", [{"width": 8}, {"depth": 3}, {"gates": False}, {"output": "half"}], ids=str)
def test_weights_of_another_shape_are_refused(changes: dict[str, Any], tmp_path: Path):
    save(tmp_path, small())
    other = replace(small(), generator=replace(small().generator, **changes))
    (tmp_path / "experiment.json").write_text(config.to_json(other))
    with pytest.raises(InputError, match=r"generator\.safetensors does not fit experiment\.json") as caught:
        checkpoint.load_generator(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"<html>"], ids=["empty", "zeros", "html"])
def test_weights_that_are_broken_are_refused(content: bytes, tmp_path: Path):
    save(tmp_path, small())
    (tmp_path / "generator.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"generator\.safetensors does not fit"):
        checkpoint.load_generator(tmp_path)


def test_weights_cut_short_are_refused(tmp_path: Path):
    save(tmp_path, small())
    path = tmp_path / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"generator\.safetensors does not fit"):
        checkpoint.load_generator(tmp_path)


@pytest.mark.parametrize("name", ["generator.safetensors", "experiment.json"])
def test_a_folder_without_one_of_its_files_is_not_a_checkpoint(name: str, tmp_path: Path):
    save(tmp_path, small())
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"is not a checkpoint: expected {name} in it"):
        checkpoint.load_generator(tmp_path)


def test_a_folder_that_is_not_there_is_not_a_checkpoint(tmp_path: Path):
    with pytest.raises(InputError, match="nowhere is not a checkpoint"):
        checkpoint.load_generator(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [None, "{"])
def test_facts_that_are_missing_or_broken_are_named(content: str | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(InputError, match=r"checkpoint\.json"):
        checkpoint.load_facts(tmp_path)


def test_an_experiment_of_another_version_is_refused(tmp_path: Path):
    save(tmp_path, small())
    (tmp_path / "experiment.json").write_text('{"name": "old"}')
    with pytest.raises(InputError, match=r"experiment\.json is not an experiment of this version"):
        checkpoint.load_generator(tmp_path)


@pytest.mark.parametrize(
    "experiment",
    [
        small(kind="relativistic"),
        small(kind="hinge", d_norm="none"),
        small(kind="bce", norm="batch", d_norm="batch", decay=0),
        small(kind="relativistic", norm="batch", d_norm="batch"),
        replace(small(), loss=config.Loss(adv_weight=0)),
    ],
    ids=["relativistic spectral", "hinge", "bce batch, no average", "relativistic batch", "l1"],
)
def test_a_run_that_stops_and_continues_equals_one_that_does_not(
    experiment: Experiment, make_batch: Callable[..., Batch], tmp_path: Path
):
    batches = [make_batch(2, 16, seed) for seed in range(5)]
    straight = GanStep(experiment, 5, CPU)
    expected = [straight(batch) for batch in batches]
    stopped = GanStep(experiment, 5, CPU)
    for batch in batches[:3]:
        stopped(batch)
    checkpoint.save(tmp_path, experiment, stopped.scored, stopped.state_dict(), {})
    del stopped
    resumed = GanStep(experiment, 5, CPU)
    resumed.load_state_dict(checkpoint.load_training(tmp_path))
    assert resumed.step == 3
    assert_equal([resumed(batch) for batch in batches[3:]], expected[3:])
    assert_equal(resumed.state_dict(), straight.state_dict())


def test_what_is_saved_is_what_was_scored(make_batch: Callable[..., Batch], tmp_path: Path):
    step = GanStep(small(), 5, CPU)
    step(make_batch())
    checkpoint.save(tmp_path, small(), step.scored, step.state_dict(), {})
    loaded, _ = checkpoint.load_generator(tmp_path)
    assert_equal(dict(loaded.state_dict()), dict(step.average.state_dict()))
    assert not torch.equal(loaded.head.weight, step.generator.head.weight)
