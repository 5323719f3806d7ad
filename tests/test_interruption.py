"""A run that its user asks to end loses no step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ray
from test_jobs import JOBS, TINY
from test_trainer import events

from lsid_ray.benchmark.nodes import until
from lsid_ray.train.run_folder import checkpoint_step

SMALL = f"{TINY} --training.epochs 100000 --training.validate-every 50000 --training.checkpoint-every 60min"


def trained_steps(run: Path) -> list[int]:
    return (
        [event["step"] for event in events(run) if event["kind"] == "train"] if (run / "metrics.jsonl").exists() else []
    )


def test_ctrl_c_saves_a_checkpoint_first_and_a_second_signal_does_not_wait(
    cluster: None, data_root: Path, tmp_path: Path
) -> None:
    run, text = tmp_path / "run", (tmp_path / "output").read_text
    options = f"demo --data.root {data_root} --data.shards {tmp_path}/shards --storage {tmp_path} --name run {SMALL}"
    command = [sys.executable, JOBS / "train.py", *options.split(), "--cluster.num-workers", "1"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    before = 0
    for signals in ([signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]):  # SIGTERM acts like Ctrl-C
        with (tmp_path / "output").open("w") as output:  # in a process group of its own
            job = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        assert until(lambda: max(trained_steps(run), default=0) > before + 20, 120), text()  # noqa: B023
        for number in signals:
            os.killpg(job.pid, number)  # as a terminal does
            time.sleep(0.02)
        assert job.wait(60) == 130, text()
        assert "Traceback" not in text()
        step = checkpoint_step(run)
        if len(signals) == 1:
            assert text().endswith(f"interrupted; the same command resumes from step {step}\n")
            assert "stopping after this step, with a checkpoint" in text()
            assert step >= max(trained_steps(run)), "no step is lost"
        else:
            assert text().endswith("interrupted\n")
        assert [event["step"] for event in events(run) if event["kind"] == "start"][-1] == before
        before = step
