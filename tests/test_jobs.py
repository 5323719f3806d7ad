"""The jobs as a user runs them: from start to end, and with mistakes; most mistakes are in test_inputs.py."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

JOBS = Path(__file__).parent.parent / "jobs"
TINY = "--generator.width 4 --generator.depth 2 --discriminator.width 4 --discriminator.layers 1 --training.crop 16"
TINY += " --training.crops-per-pair 2 --training.epochs 2 --training.validate-every 1"
TINY += " --loss.warmup-steps 2 --loss.ramp-steps 2"


@dataclass(frozen=True)
class Done:
    """How a job ended."""

    returncode: int
    stdout: str
    stderr: str


Job = Callable[[str], Done]


@pytest.fixture
def job(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Job:
    """Runs a job in tmp_path on the session's cluster: job("pack.py pack x").

    In this process, since a new one imports for seconds; `test_submit` and others start processes.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(command: str) -> Done:
        script, *arguments = command.split()
        monkeypatch.setattr(sys, "argv", [f"jobs/{script}", *arguments])
        code = 0
        try:
            runpy.run_path(str(JOBS / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return Done(code, *capsys.readouterr())

    return run


def fails(done: Done, code: int, *words: str) -> None:
    """The job ended with `code` and a single line on stderr that contains all `words`."""
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (code, 1), done.stdout + done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def test_the_main_job_goes_from_raw_files_to_a_report(job: Job, data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path / "set")
    done = job(f"train.py demo --data.root set --storage out --name run {TINY}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[-1].startswith("report: ") and Path(lines[-1].removeprefix("report: ")).is_file()
    assert "x100" in done.stdout and "x300" in done.stdout and "training: step " in done.stdout
    run = tmp_path / "out" / "run"
    for name in ("experiment.json", "metrics.jsonl", "tensorboard", "best", "report"):
        assert (run / name).exists(), name
    scores = json.loads((run / "report" / "report.json").read_text())["scores"]
    assert {score["scene"][0] for score in scores} == {"1"}, "scored on test scenes"
    again = job(f"train.py demo --data.root set --storage out --name run {TINY}")
    assert again.returncode == 0 and "already complete, at step" in again.stdout
    assert json.loads((run / "report" / "report.json").read_text())["scores"][0]["psnr_db"] == scores[0]["psnr_db"]
    fails(job(f"train.py demo --data.root set --storage out --name run {TINY} --loss.adv-weight 1"),
          2, "--name run", "loss.adv_weight")  # fmt: skip

    done = job("evaluate.py out/run/best --shards set-shards --split validation --images 0")
    assert done.returncode == 0 and "report-validation" in done.stdout.splitlines()[-1], done.stderr
    fails(job("evaluate.py out/run/best --shards set-shards --use-gpu"), 2, "--use-gpu: the cluster has no GPU")


def test_a_dry_run_prints_the_experiment_and_stops(job: Job, tmp_path: Path) -> None:
    done = job("train.py chen --data.root nowhere --dry-run --training.epochs 3")
    assert done.returncode == 0 and json.loads(done.stdout)["training"]["epochs"] == 3
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_one_line_with_exit_code_2(job: Job, data_root: Path, tmp_path: Path) -> None:
    wide = "--cluster.num-workers 8 --cluster.cpus-per-worker 1"
    fails(job(f"train.py demo --data.root {data_root} --data.shards never {wide} --name n"),
          2, "--cluster.num-workers 8", "the cluster has 4")  # fmt: skip
    fails(job(f"train.py demo --data.root {data_root} --data.shards s --training.crop 512 --name n"),
          2, "--training.crop is 512", "packs to 72x96")  # fmt: skip
    assert not (tmp_path / "runs").exists() and not (tmp_path / "never").exists(), "nothing was started"


def test_mistakes_in_a_sweep_are_one_line_and_its_dry_run_prints_the_search_space(job: Job, tmp_path: Path) -> None:
    done = job("tune.py demo --dry-run --search.loss.adv-weight uniform:0:0.05 --search.training.crop=choice:32,48")
    assert done.returncode == 0 and '"loss.adv_weight": "uniform:0:0.05"' in done.stdout, done.stderr
    assert '"training.crop": "choice:32,48"' in done.stdout and '"name": "demo-sweep"' in done.stdout
    fails(job("tune.py demo --search.loss.adv-weight loguniform:1:0.1"), 2, "--search.loss.adv-weight", "LOW below")
    assert not list(tmp_path.iterdir()), "nothing was started"


def test_an_experiment_file_takes_the_place_of_a_preset(job: Job, tmp_path: Path) -> None:
    resolved = job("train.py demo --loss.adv-weight 0.03 --dry-run").stdout
    (tmp_path / "best.json").write_text(resolved)
    changed = job("train.py --experiment best.json --training.epochs 7 --dry-run").stdout
    assert json.loads(changed)["training"]["epochs"] == 7 and json.loads(changed)["loss"]["adv_weight"] == 0.03


def test_photographs_too_small_or_too_few_are_refused(job: Job, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    fails(job("synthesize.py --out set --photos photos"), 2, "photos")
    for number in range(3):
        Image.new("RGB", (40, 80), (number, 100, 100)).save(photos / f"{number}.png")
    fails(job("synthesize.py --out set --photos photos"), 2, ".png", "80x40")
    assert not (tmp_path / "set").exists()


def test_a_broken_file_is_left_out_and_the_exit_code_is_1(job: Job, data_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data_root, tmp_path / "broken")
    victim = sorted((root / "short").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:3000])
    done = job("pack.py pack broken")
    fails(done, 1, "1 files were left out")
    assert f"left out short/{victim.name}: " in done.stdout and "truncated" in done.stdout
    again = job("pack.py pack broken")
    fails(again, 1, "1 files were left out")
    assert "nothing to do" in again.stdout
