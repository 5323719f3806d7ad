"""Complete sweeps with Ray Tune on a real cluster: early stopping, failures, resuming after a kill, the comparison."""

import json
import os
import pickle
import re
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
from test_trainer import worker_processes

from lsid_ray.config.schema import ClusterConfig, Experiment, LossConfig, SweepConfig
from lsid_ray.config.serialization import from_json
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.sweep.comparison import compare_best, summary_line
from lsid_ray.sweep.objectives import with_metrics
from lsid_ray.sweep.report import trial_table, write_sweep_report
from lsid_ray.sweep.searcher import FolderSearcher
from lsid_ray.sweep.space import read_space
from lsid_ray.sweep.stopping import JUDGED, Asha, grace_epochs
from lsid_ray.sweep.trials import SweepDefinition, Trial, begin_trial, claim_sweep, end_trial, read_trials
from lsid_ray.sweep.tuner import run_trials
from lsid_ray.train.run_folder import checkpoint_step

MakeExperiment = Callable[..., Experiment]
MakeDefinition = Callable[..., SweepDefinition]


@pytest.fixture
def make_definition(shards: Path, experiment: MakeExperiment, tmp_path: Path) -> MakeDefinition:
    """Makes sweeps of tiny runs: make_definition({"optimizer.generator-lr": "choice:0.1"}, trials=3)."""

    def make(search: dict[str, str] | None = None, training: dict | None = None, **sweep: object) -> SweepDefinition:
        e = experiment("sweep", training={"epochs": 2, **(training or {})}, cluster={"num_workers": 1})
        e = with_metrics(e, SweepConfig(**sweep))
        space = read_space({"optimizer.generator-lr": "loguniform:1e-4:1e-2", **(search or {})}, e)
        definition = SweepDefinition(Path(e.storage, e.name).resolve(), e, space, SweepConfig(**sweep), str(shards))
        claim_sweep(definition)
        return definition

    return make


def start_steps(trial: Trial) -> list[int]:
    """Steps at which the workers of a trial were started."""
    lines = (trial.folder / "metrics.jsonl").read_text().splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["kind"] == "start"]


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sweep_finds_the_best_trial_and_tests_it_and_its_ablation(
    make_definition: MakeDefinition, seeds: int
) -> None:
    objectives = {"objectives": ("psnr", "flip", "ssim"), "tolerance_db": 9.0}
    definition = make_definition(trials=2, zero_every=2, finalists=2, test_seeds=seeds, **objectives)
    snapshots: list[list[Trial]] = []
    run_trials(definition, snapshots.append)
    trials = read_trials(definition)
    assert [trial.number for trial in trials] == [0, 1]
    assert {trial.state for trial in trials} <= {"finished", "stopped"} and trials[0].state == "finished"
    assert [trial.parameters["loss.adv_weight"] == 0 for trial in trials] == [True, False]
    assert [trial.discriminator_accuracy is None for trial in trials] == [True, False]
    assert len({trial.parameters["optimizer.generator_lr"] for trial in trials}) == 2
    for trial in trials:
        assert trial.best_validation and 0 < trial.overhead_s < 120 and trial.busy_s > 0
        trial_experiment = from_json((trial.folder / "experiment.json").read_text(), "")
        assert all(0 < validation["flip"] < 1 for validation in trial.validations)
        expected = replace(definition.experiment.training, max_rollbacks=0)  # a trial that diverges has failed
        assert trial_experiment.training == expected, "trials differ only in searched fields"
    assert not list(definition.folder.glob("trials/*/lock.json")), "the run of a stopped trial ends in order too"
    running = [sum(trial.state == "running" for trial in snapshot) for snapshot in snapshots]
    assert max(running) <= 2, "no more trials at once than the cluster's four CPUs hold"
    table = trial_table(definition, trials)
    assert table[0].startswith("2 trials: ") and len(table) == 4 and "adv-weight" in table[1] and "FLIP" in table[1]

    steps_before = [start_steps(trial) for trial in trials]
    result = compare_best(definition)
    best = min(trials, key=lambda trial: trial.validations[-1]["flip"])  # all PSNRs are within 9 dB
    assert len(result.finalists) == 2 and next(iter(result.finalists)) == best.name
    assert (result.best.adv_weight == 0) != (result.ablation.adv_weight == 0)
    assert result.best.parameters["optimizer.generator_lr"] == result.ablation.parameters["optimizer.generator_lr"]
    assert list(result.repeats) == [1][: seeds - 1]
    for again in result.repeats.values():
        assert [each.parameters for each in again] == [result.best.parameters, result.ablation.parameters]
        assert again[0].mean("psnr_db") != result.best.mean("psnr_db"), "another seed"
    line = summary_line(result)
    assert line.startswith("Best trial (the lowest FLIP within 9 dB of the best PSNR): ")
    assert (" on test, means of 2 seeds; " if seeds == 2 else " on test; ") in line
    line = summary_line(replace(result, repeats={1: (result.ablation, result.best)}))
    mean = (result.best.mean("psnr_db") + result.ablation.mean("psnr_db")) / 2
    assert f": {mean:.2f} dB / " in line and " on test, means of 2 seeds; " in line
    assert re.search(r"changes PSNR by \+0.00 dB \(\S+, \S+\), SSIM by .* and FLIP by \S+ \(\S+, \S+\)\.$", line)
    report = write_sweep_report(definition, result)
    images = re.findall(r'src="(\S+\.png)"', report.read_text())
    assert {Path(image).parent.as_posix() for image in images} == {"plots", "best/images", "ablation/images"}
    assert (
        len(images) == 4 + 4
        and "plots/front.png" in images
        and all((report.parent / image).exists() for image in images)
    )
    summary = json.loads((definition.folder / "sweep.json").read_text())
    assert len(summary["trials"]) == 2 and summary["best"] == best.name
    assert len((definition.folder / "trials.csv").read_text().splitlines()) == 3
    best_experiment = from_json((definition.folder / "best.json").read_text(), "best.json")
    assert best_experiment.optimizer.generator_lr == best.parameters["optimizer.generator_lr"]
    assert best_experiment.storage == definition.experiment.storage
    assert best_experiment.training == definition.experiment.training

    run_trials(definition)
    for trial, before in zip(read_trials(definition), steps_before, strict=True):
        assert start_steps(trial)[: len(before)] == before
    assert len(read_trials(definition)) == 2, "a finished sweep starts no further trial"


def test_asha_stops_weak_trials_and_takes_trials_before_a_restart_into_account(make_definition: MakeDefinition) -> None:
    definition = make_definition(training={"epochs": 9}, grace_epochs=1, keep=1 / 3)
    for number, psnr in enumerate((20.0, 21.0, 22.0)):
        folder = begin_trial(definition, number, {"loss.adv_weight": 0.0})
        event = {"kind": "validation", "step": 1, "epoch": 1, "psnr_db": psnr, "ssim": 0.5, "seconds": 1.0, "time": 0.0}
        (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
        end_trial(folder, "finished", "")
    asha = Asha(definition)

    def add_trial(number: int, weight: float) -> SimpleNamespace:
        parameters = {"loss.adv_weight": weight}
        begin_trial(definition, number, parameters)
        trial = SimpleNamespace(trial_id="any", config={"number": number, "parameters": parameters})
        asha.on_trial_add(None, trial)
        return trial

    weak, adversarial = add_trial(3, 0.0), add_trial(4, 0.01)
    assert asha.on_trial_result(None, weak, {"epoch": 1, JUDGED: 19.0}) == "STOP"
    stopped = read_trials(definition)[3]
    assert stopped.state == "stopped" and "epoch 1" in stopped.reason
    assert asha.on_trial_result(None, weak, {"epoch": 9, JUDGED: 10.0}) == "CONTINUE", "the last epoch ends by itself"
    assert asha.on_trial_result(None, adversarial, {"epoch": 1, JUDGED: 19.0}) == "CONTINUE", (
        "adversarial trials are not compared with those of weight 0"
    )
    assert grace_epochs(definition) == 1
    loss = LossConfig(warmup_steps=7, ramp_steps=1)
    delayed = replace(definition, experiment=replace(definition.experiment, loss=loss), sweep=SweepConfig())
    assert grace_epochs(delayed) == 3, "12 samples are 3 steps per epoch"


def test_a_failed_trial_is_recorded_and_too_many_end_the_sweep(make_definition: MakeDefinition) -> None:
    definition = make_definition(
        {"optimizer.generator-lr": "choice:1e30,1e-3"}, trials=2, zero_every=1, max_failed=0.5, seed=1
    )
    run_trials(definition)
    by_rate: dict[float, list[Trial]] = {1e30: [], 1e-3: []}
    for trial in read_trials(definition):
        by_rate[trial.parameters["optimizer.generator_lr"]].append(trial)
    assert by_rate[1e30] and by_rate[1e-3], "both rates were drawn"
    assert all(trial.state == "failed" and "not finite" in trial.reason for trial in by_rate[1e30])
    assert all(trial.state in ("finished", "stopped") for trial in by_rate[1e-3])
    with pytest.raises(PartialFailure, match=r"failed, more than --max-failed 0 allows; trial-00\d: .* not finite"):
        run_trials(replace(definition, sweep=replace(definition.sweep, max_failed=0.0)))


def test_optuna_learns_from_trials_before_a_restart(make_definition: MakeDefinition) -> None:
    definition = make_definition(searcher="optuna", objectives=("psnr", "ssim"))
    parameters = {"loss.adv_weight": 0.01, "optimizer.generator_lr": 1e-3, "optimizer.discriminator_lr": 1e-4}
    for number in range(3):
        folder = begin_trial(definition, number, parameters)
        event = {"kind": "validation", "step": 1, "epoch": 1, "psnr_db": 20.0, "ssim": 0.5, "seconds": 1.0, "time": 0.0}
        if number:
            (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
            end_trial(folder, "finished", "")
    searcher = FolderSearcher(definition)
    states = [trial.state.name for trial in searcher.study.trials]
    assert states == ["COMPLETE", "COMPLETE"] and searcher.study.trials[0].values == [20.0, 0.5]
    unfinished = searcher.suggest("a")
    assert unfinished["number"] == 0 and unfinished["parameters"]["optimizer.generator_lr"] == 1e-3, (
        "an unfinished trial keeps its parameters"
    )
    assert searcher.suggest("b")["number"] == 3
    assert FolderSearcher(definition).suggest("c") == unfinished

    draws = replace(definition, folder=definition.folder / "draws", sweep=SweepConfig(searcher="random"))
    undisturbed = FolderSearcher(draws)
    suggested = [undisturbed.suggest(str(number)) for number in range(4)]
    for trial in suggested[:2]:
        end_trial(begin_trial(draws, trial["number"], trial["parameters"]), "finished", "")
    assert FolderSearcher(draws).suggest("d") == suggested[2] != suggested[3], "a restart changes no draw"


def test_a_folder_of_another_sweep_or_of_a_run_is_rejected(make_definition: MakeDefinition) -> None:
    definition = make_definition()
    with pytest.raises(InputError, match=r"holds another sweep \(search.loss.adv_weight is loguniform:1e-4:1e-1 there"):
        make_definition({"loss.adv-weight": "uniform:0:1"})
    with pytest.raises(InputError, match=r"another sweep \(experiment.training.epochs is 2 there, 3 here\)"):
        make_definition(training={"epochs": 3})
    make_definition(trials=99, hours=3.0)  # the budget may change
    (definition.folder / "sweep-definition.json").write_text('{"sea')
    with pytest.raises(InputError, match=r"sweep-definition\.json is damaged"):
        make_definition()
    (definition.folder / "sweep-definition.json").unlink()
    (definition.folder / "experiment.json").write_text("{}")
    with pytest.raises(InputError, match="holds a run, not a sweep"):
        claim_sweep(definition)


def test_a_trial_larger_than_the_cluster_is_rejected_immediately(make_definition: MakeDefinition) -> None:
    definition = make_definition()
    large = replace(definition.experiment, cluster=ClusterConfig(cpus_per_worker=64))
    start = time.monotonic()
    with pytest.raises(InputError, match=r"--cluster.cpus-per-worker 64 needs 65.5 CPUs .* the cluster has 4"):
        run_trials(replace(definition, experiment=large))
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_killed_sweep_resumes_and_repeats_no_validation(make_definition: MakeDefinition, tmp_path: Path) -> None:
    definition = make_definition(training={"epochs": 30, "validate_every": 3}, trials=2, scheduler="none")
    script, log = tmp_path / "sweep.py", tmp_path / "output"
    script.write_text(
        "import pickle, sys\n"
        "from lsid_ray import cluster\n"
        "from lsid_ray.sweep.tuner import run_trials\n"
        "cluster.connect()\n"
        "run_trials(pickle.load(open(sys.argv[1], 'rb')))\n"
    )
    (tmp_path / "definition").write_bytes(pickle.dumps(definition))
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with log.open("w") as output:
        job = subprocess.Popen(
            [sys.executable, script, tmp_path / "definition"], stdout=output, stderr=output, env=environment
        )
        wait_until(lambda: any(t.epoch >= 3 and checkpoint_step(t.folder) for t in read_trials(definition)), log)
        job.kill()
        job.wait()
    wait_until(lambda: not worker_processes(), log)
    checkpoints = {
        trial.name: checkpoint_step(trial.folder) for trial in read_trials(definition) if trial.state == "running"
    }
    assert checkpoints and max(checkpoints.values()) > 0
    killed: list[int] = []

    def kill_a_worker(trials: list[Trial]) -> None:
        resumed = any(trial.epoch >= 12 and len(start_steps(trial)) > 1 for trial in trials)
        if not killed and resumed and worker_processes():
            killed.append(worker_processes()[0])
            os.kill(killed[0], signal.SIGKILL)

    run_trials(definition, kill_a_worker)
    trials = read_trials(definition)
    assert killed and [trial.state for trial in trials] == ["finished", "finished"]
    for trial in trials:
        epochs = [validation["epoch"] for validation in trial.validations]
        assert epochs == list(range(3, 31, 3)), "each validation once"
    resumed_from = [checkpoints.get(trial.name, 0) for trial in trials]
    assert any(step and step in start_steps(trial) for trial, step in zip(trials, resumed_from, strict=True))


def wait_until(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
