"""A run that starts from another run's checkpoint takes what fits, says so, and refuses what cannot fit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lsid_ray.config.schema import Experiment
from lsid_ray.errors import InputError
from lsid_ray.model.checkpoint import TRAINING_STATE, WEIGHTS, save_checkpoint
from lsid_ray.train.initial_weights import InitialWeights, read_initial_weights
from lsid_ray.train.run_folder import checkpoint_name
from lsid_ray.train.step import GanStep
from lsid_ray.train.trainer import train

CPU = torch.device("cpu")
MakeExperiment = Callable[..., Experiment]


@pytest.fixture
def source(experiment: MakeExperiment, tmp_path: Path) -> GanStep:
    """A network whose run is in tmp_path / "run", with a best/ of its own."""
    e = experiment("source", training={"seed": 5})
    step = GanStep(e, 10, CPU)
    step.step = 3
    with torch.no_grad():
        for average in step.average.parameters():
            average.add_(0.01)
    for number, psnr in ((3, 20.0), (6, 19.0)):
        folder = tmp_path / "run" / checkpoint_name(number)
        folder.mkdir(parents=True)
        metrics = {"step": number, "epoch": number // 3, "psnr_db": psnr}
        save_checkpoint(folder, e, step.scored if number == 3 else step.generator, step.state_dict(), metrics)
    names = (WEIGHTS, "experiment.json", "checkpoint.json")
    (tmp_path / "run" / "best").mkdir()
    for name in names:
        shutil.copy(tmp_path / "run" / checkpoint_name(3) / name, tmp_path / "run" / "best" / name)
    return step


def start(e: Experiment) -> tuple[GanStep, InitialWeights]:
    """The step of a run that starts from `e.init`, and what it took."""
    step, initial = GanStep(e, 10, CPU), read_initial_weights(e)
    step.start_from(initial.generator, initial.discriminator)
    return step, initial


def equal(state: dict[str, Tensor], other: dict[str, Tensor], prefix: str = "") -> bool:
    return all(torch.equal(value, other[name]) for name, value in state.items() if name.startswith(prefix))


def test_a_run_starts_from_the_scored_generator_and_the_discriminator_of_the_best_checkpoint(
    source: GanStep, experiment: MakeExperiment, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / checkpoint_name(3)
    for init in (tmp_path / "run", folder):
        step, initial = start(replace(experiment(), init=str(init)))
        for network in (step.generator, step.average):
            assert equal(network.state_dict(), source.average.state_dict())
        assert equal(step.discriminator.state_dict(), source.discriminator.state_dict())
        assert step.step == 0 and not step.optimizer_g.state_dict()["state"], "the optimizers start anew"
        assert initial.description == f"starting from {folder}: took the generator and the discriminator"


def test_what_does_not_fit_stays_random_and_is_reported(
    source: GanStep, experiment: MakeExperiment, tmp_path: Path
) -> None:
    best = str(tmp_path / "run" / "best")
    half = replace(experiment(generator={"output": "half", "white_balance": False}), init=best)
    (step, initial), fresh = start(half), GanStep(half, 10, CPU)
    assert equal(step.generator.state_dict(), source.average.state_dict(), "decoders")
    assert equal(step.generator.state_dict(), fresh.generator.state_dict(), "head")
    assert equal(step.discriminator.state_dict(), fresh.discriminator.state_dict())
    assert initial.description == (
        f"starting from {best}: took the generator but its head; a new discriminator, as best holds none; "
        "generator.output was full; generator.white_balance was True"
    )
    xtrans = replace(experiment(generator={"cfa": "xtrans"}), init=str(tmp_path / "run"))
    step, initial = start(xtrans)
    assert equal(step.generator.state_dict(), source.average.state_dict(), "encoders.1")
    assert "took the generator but its first convolution and head; a new discriminator, as the one there" in (
        initial.description
    )
    alone = replace(experiment(loss={"adv_weight": 0.0}), init=best)
    assert read_initial_weights(alone).description == f"starting from {best}: took the generator"


def test_with_an_unusable_checkpoint_no_folder_is_claimed(shards: Path, experiment: MakeExperiment) -> None:
    e = replace(experiment("new"), init="missing")
    with pytest.raises(InputError, match="missing is not a checkpoint"):
        train(e, str(shards))
    assert not Path(e.storage, "new").exists()


def test_an_unusable_checkpoint_is_refused(source: GanStep, experiment: MakeExperiment, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def refused(init: Path, e: Experiment) -> str:
        with pytest.raises(InputError) as caught:
            read_initial_weights(replace(e, init=str(init)))
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"--init {init}: ")

    e = experiment()
    assert refused(run, experiment(generator={"width": 8})) == "its generator.width is 4, expected 8 as here"
    message = "its generator.input_ratio is False, expected True as here"
    assert refused(run, experiment(generator={"input_ratio": True})) == message
    assert refused(run, experiment(generator={"residual": True})) == message.replace("input_ratio", "residual")
    assert refused(run, experiment(generator={"norm": "batch"})).startswith("its generator.norm is none")
    assert "is not a checkpoint" in refused(tmp_path / "missing", e)
    for name in ("best", checkpoint_name(3)):
        shutil.copytree(run / name, tmp_path / "copy")
        (tmp_path / "copy" / WEIGHTS).write_bytes((run / name / WEIGHTS).read_bytes()[:-9])
        assert "is damaged" in refused(tmp_path / "copy", e)
        shutil.rmtree(tmp_path / "copy")
    cut = shutil.copytree(run / checkpoint_name(3), tmp_path / "cut")
    (cut / TRAINING_STATE).write_bytes((cut / TRAINING_STATE).read_bytes()[:-9])
    assert "is not complete" in refused(cut, e)
    newer = shutil.copytree(run / "best", tmp_path / "newer")
    described = json.loads((newer / "experiment.json").read_text())
    described["generator"]["windows"] = 3
    (newer / "experiment.json").write_text(json.dumps(described))
    assert "the field generator.windows is unknown" in refused(newer, e)
