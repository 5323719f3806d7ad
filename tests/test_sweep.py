"""Whole sweeps under Ray Tune on a real cluster: stopped, failing, killed and taken up again, concluded."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from test_launch import worker_processes

from lsid_ray import config
from lsid_ray.config import Sweep
from lsid_ray.errors import InputError, PartFailure
from lsid_ray.sweep.conclude import conclude, verdict
from lsid_ray.sweep.record import Definition, Trial, begin_trial, claim, end_trial, read_trials
from lsid_ray.sweep.report import trial_table, write_sweep_report
from lsid_ray.sweep.search import run_trials
from lsid_ray.sweep.space import read_space
from lsid_ray.sweep.stopping import Asha, grace_epochs
from lsid_ray.sweep.suggest import Search
from lsid_ray.train.launch import last_step

MakeExperiment = Callable[..., config.Experiment]
MakeDefinition = Callable[..., Definition]


@pytest.fixture
def definition(shards: Path, experiment: MakeExperiment, tmp_path: Path) -> MakeDefinition:
    """Makes sweeps of tiny runs: definition({"optimizer.generator-lr": "choice:0.1"}, trials=3)."""

    def make(search: dict[str, str] | None = None, training: dict | None = None, **sweep: object) -> Definition:
        e = experiment("sweep", training={"epochs": 2, **(training or {})}, cluster={"num_workers": 1})
        space = read_space({"optimizer.generator-lr": "loguniform:1e-4:1e-2", **(search or {})}, e)
        made = Definition(Path(e.storage, e.name).resolve(), e, space, Sweep(**sweep), str(shards))
        claim(made)
        return made

    return make


def starts(trial: Trial) -> list[int]:
    """Steps at which a trial's run was started."""
    lines = (trial.folder / "metrics.jsonl").read_text().splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["kind"] == "start"]


def test_a_sweep_finds_a_winner_and_tests_it_beside_its_twin(definition: MakeDefinition) -> None:
    made = definition(trials=4, zero_every=2, best=2)
    seen: list[list[Trial]] = []
    run_trials(made, seen.append)
    trials = read_trials(made)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert {trial.state for trial in trials} <= {"finished", "stopped"} and trials[0].state == "finished"
    assert [trial.parameters["loss.adv_weight"] == 0 for trial in trials] == [True, False, True, False]
    assert len({trial.parameters["optimizer.generator_lr"] for trial in trials}) == 4
    for trial in trials:
        assert trial.best and 0 < trial.overhead_s < 120 and trial.busy_s > 0
        kept = config.from_json((trial.folder / "experiment.json").read_text(), "")
        assert kept.training == made.experiment.training, "they differ in what is searched alone"
    running = [sum(trial.state == "running" for trial in at_once) for at_once in seen]
    assert max(running) <= 2, "no more at once than the cluster's four CPUs hold"
    table = trial_table(made, trials)
    assert table[0].startswith("4 trials: ") and len(table) == 6 and "adv-weight" in table[1]

    before = [starts(trial) for trial in trials]
    done = conclude(made)
    best = max(trials, key=lambda trial: trial.best["psnr_db"])
    assert len(done.candidates) == 2 and next(iter(done.candidates)) == best.name
    assert (done.winner.weight == 0) != (done.twin.weight == 0)
    assert done.winner.parameters["optimizer.generator_lr"] == done.twin.parameters["optimizer.generator_lr"]
    assert verdict(done).startswith("Winner: ")
    report = write_sweep_report(made, done)
    for name in ("weight", "curves", "parallel", "pairs"):
        assert f"pictures/{name}.png" in report.read_text() and (report.parent / "pictures" / f"{name}.png").exists()
    written = json.loads((made.folder / "sweep.json").read_text())
    assert len(written["trials"]) == 4 and written["winner"] == best.name
    assert len((made.folder / "trials.csv").read_text().splitlines()) == 5
    again = config.from_json((made.folder / "winner.json").read_text(), "winner.json")
    assert again.optimizer.generator_lr == best.parameters["optimizer.generator_lr"]
    assert again.storage == made.experiment.storage and again.training == made.experiment.training

    run_trials(made)
    assert [starts(trial)[: len(first)] for trial, first in zip(read_trials(made), before, strict=True)] == before
    assert len(read_trials(made)) == 4, "a finished sweep begins nothing"


def test_asha_stops_the_weak_and_compares_with_trials_of_before_a_kill(definition: MakeDefinition) -> None:
    made = definition(training={"epochs": 9}, grace_epochs=1, keep=1 / 3)
    for number, psnr in enumerate((20.0, 21.0, 22.0)):
        folder = begin_trial(made, number, {"loss.adv_weight": 0.0})
        event = {"kind": "validation", "step": 1, "epoch": 1, "psnr_db": psnr, "ssim": 0.5, "seconds": 1.0, "time": 0.0}
        (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
        end_trial(folder, "finished", "")
    asha = Asha(made)

    def new(number: int, weight: float) -> SimpleNamespace:
        parameters = {"loss.adv_weight": weight}
        begin_trial(made, number, parameters)
        trial = SimpleNamespace(trial_id="any", config={"number": number, "parameters": parameters})
        asha.on_trial_add(None, trial)
        return trial

    weak, adversarial = new(3, 0.0), new(4, 0.01)
    assert asha.on_trial_result(None, weak, {"epoch": 1, "psnr_db": 19.0}) == "STOP"
    assert read_trials(made)[3].state == "stopped" and "epoch 1" in read_trials(made)[3].reason
    assert asha.on_trial_result(None, weak, {"epoch": 9, "psnr_db": 10.0}) == "CONTINUE", "it is at its end"
    assert asha.on_trial_result(None, adversarial, {"epoch": 1, "psnr_db": 19.0}) == "CONTINUE", "not of the plain"
    assert grace_epochs(made) == 1
    later = replace(made, experiment=replace(made.experiment, loss=config.Loss(warmup_steps=7, ramp_steps=1)))
    assert grace_epochs(replace(later, sweep=Sweep())) == 3, "12 samples are 3 steps an epoch"


def test_a_trial_that_fails_is_recorded_and_the_sweep_goes_on_until_too_many_do(definition: MakeDefinition) -> None:
    made = definition({"optimizer.generator-lr": "choice:1e30,1e-3"}, trials=4, zero_every=1, max_failed=0.5, seed=1)
    run_trials(made)
    by_rate = {
        rate: [t for t in read_trials(made) if t.parameters["optimizer.generator_lr"] == rate] for rate in (1e30, 1e-3)
    }
    assert by_rate[1e30] and by_rate[1e-3], "both were drawn"
    assert all(trial.state == "failed" and "not finite" in trial.reason for trial in by_rate[1e30])
    assert all(trial.state in ("finished", "stopped") for trial in by_rate[1e-3])
    with pytest.raises(PartFailure, match=r"failed, more than --max-failed 0 allows; trial-00\d: .* not finite"):
        run_trials(replace(made, sweep=replace(made.sweep, max_failed=0.0)))


def test_optuna_learns_from_the_trials_of_before(definition: MakeDefinition) -> None:
    made = definition(searcher="optuna", objectives="psnr-ssim")
    for number in range(3):
        folder = begin_trial(
            made, number, {"loss.adv_weight": 0.01, "optimizer.generator_lr": 1e-3, "optimizer.discriminator_lr": 1e-4}
        )
        event = {"kind": "validation", "step": 1, "epoch": 1, "psnr_db": 20.0, "ssim": 0.5, "seconds": 1.0, "time": 0.0}
        if number:
            (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
            end_trial(folder, "finished", "")
    search = Search(made)
    states = [trial.state.name for trial in search.study.trials]
    assert states == ["COMPLETE", "COMPLETE"] and search.study.trials[0].values == [20.0, 0.5]
    left = search.suggest("a")
    assert left["number"] == 0 and left["parameters"]["optimizer.generator_lr"] == 1e-3, "goes on as it was"
    assert search.suggest("b")["number"] == 3
    assert Search(made).suggest("c") == left


def test_another_space_and_a_folder_of_something_else_are_refused(
    definition: MakeDefinition, experiment: MakeExperiment
) -> None:
    made = definition()
    with pytest.raises(InputError, match=r"holds another sweep \(search.loss.adv_weight is loguniform:1e-4:1e-1 there"):
        definition({"loss.adv-weight": "uniform:0:1"})
    with pytest.raises(InputError, match=r"another sweep \(experiment.training.epochs is 2 there, 3 here\)"):
        definition(training={"epochs": 3})
    definition(trials=99, hours=3.0)  # the budget may grow
    (made.folder / "sweep-definition.json").unlink()
    (made.folder / "experiment.json").write_text("{}")
    with pytest.raises(InputError, match="holds a run, not a sweep"):
        claim(made)


def test_resources_that_no_node_has_are_refused_at_once(definition: MakeDefinition) -> None:
    made = definition()
    wide = replace(made.experiment, cluster=config.Cluster(cpus_per_worker=64))
    began = time.monotonic()
    with pytest.raises(InputError, match=r"--cluster.cpus-per-worker 64 needs 65.5 CPUs .* the cluster has 4"):
        run_trials(replace(made, experiment=wide))
    assert time.monotonic() - began < 30


def test_a_killed_sweep_goes_on_and_runs_nothing_twice(definition: MakeDefinition, tmp_path: Path) -> None:
    made = definition(training={"epochs": 30, "validate_every": 3}, trials=2, scheduler="none")
    script = tmp_path / "sweep.py"
    script.write_text(
        "import pickle, sys\n"
        "from lsid_ray import cluster\n"
        "from lsid_ray.sweep.search import run_trials\n"
        "cluster.connect()\n"
        "run_trials(pickle.load(open(sys.argv[1], 'rb')))\n"
    )
    (tmp_path / "definition").write_bytes(pickle.dumps(made))
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with (tmp_path / "output").open("w") as output:
        job = subprocess.Popen(
            [sys.executable, script, tmp_path / "definition"], stdout=output, stderr=output, env=environment
        )
        wait(lambda: any(t.epoch >= 3 and last_step(t.folder) for t in read_trials(made)), tmp_path / "output")
        job.kill()
        job.wait()
    wait(lambda: not worker_processes(), tmp_path / "output")
    left = {trial.name: last_step(trial.folder) for trial in read_trials(made) if trial.state == "running"}
    assert left and max(left.values()) > 0
    killed: list[int] = []

    def kill_one(trials: list[Trial]) -> None:  # and a worker is lost as well
        if not killed and any(trial.epoch >= 12 and len(starts(trial)) > 1 for trial in trials) and worker_processes():
            killed.append(worker_processes()[0])
            os.kill(killed[0], signal.SIGKILL)

    run_trials(made, kill_one)
    trials = read_trials(made)
    assert killed and [trial.state for trial in trials] == ["finished", "finished"]
    for trial in trials:
        epochs = [validation["epoch"] for validation in trial.validations]
        assert epochs == list(range(3, 31, 3)), "no validation twice, none missing"
    assert any(left[name] in starts(trial) for trial in trials for name in left if trial.name == name and left[name])


def wait(until: Callable[[], bool], output: Path) -> None:
    deadline = time.monotonic() + 150
    while not until():
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)
