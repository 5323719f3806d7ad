"""How a run gets over faults: real clusters of several nodes on this machine, real signals, a tiny network.

Each run trains the same experiment. Of an undisturbed one, one with each kind of fault, and one that is killed again
and again at random moments, the final weights are compared bit by bit.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from matplotlib.figure import Figure

from lsid_ray import cluster
from lsid_ray.benchmark.history import plot_losses
from lsid_ray.benchmark.nodes import RAY, Node, NodeCluster, until
from lsid_ray.config.schema import (
    ClusterConfig,
    DataConfig,
    DiscriminatorConfig,
    Experiment,
    GeneratorConfig,
    TrainingConfig,
)
from lsid_ray.config.serialization import to_json
from lsid_ray.data.pack import pack_dataset
from lsid_ray.errors import InputError, PartialFailure
from lsid_ray.model.checkpoint import load_generator
from lsid_ray.progress import align_columns
from lsid_ray.synthesis.dataset import Synthesis, synthesize
from lsid_ray.train.run_folder import saved_checkpoints
from lsid_ray.train.run_log import read_events

DRIVER = """
import sys
from lsid_ray import cluster
from lsid_ray.commandline import run_job
from lsid_ray.config.serialization import from_json
from lsid_ray.train.trainer import train
def main():
    cluster.connect()
    train(from_json(open(sys.argv[1]).read(), sys.argv[1]), sys.argv[2])
run_job(main)
"""
NODE = ("--num-cpus=3",)  # room for one of two workers, for which there is none on the head, where the readers are
WAIT_S = 300.0  # for a start, a checkpoint, a restart
DEADLINE_S = 15  # between the notice of a preemption and the end of the node
FIRST_FAULT_STEP = 150
MAX_OPTION = 10**6
MAX_PAUSE_S = 2.0  # between a restart and the next random fault
STALL = "worker stopped (SIGSTOP), stall-minutes 0.5"


@dataclass(frozen=True)
class Faults:
    """Kill workers, nodes and drivers of tiny runs on clusters of three nodes that it starts on this machine, and
    compare their results with that of an undisturbed run (40 minutes on 2 cores)."""

    kills: int = 20
    """Faults at random moments in the last run."""
    epochs: int = 400
    """Length of each run."""
    picture: Path = Path("faults.png")
    """File for a plot of the losses."""

    def run(self, folder: Path) -> tuple[str, Any]:
        """The table, and the figures in it; saves the plot. folder: for the runs."""
        check_faults(self.kills, self.epochs)
        recoveries, figure = measure_faults(folder, self.epochs, self.kills, print)
        figure.savefig(self.picture)
        return f"{faults_table(recoveries)}\n\nlosses: {self.picture}", recoveries


@dataclass(frozen=True)
class Recovery:
    """What one fault cost."""

    kind: str
    noticed_s: float | None
    """From the fault to the line that says so; None if nobody is left to say it."""
    resumed_s: float
    """From the fault to the next step that is logged."""
    repeated_samples: int
    """Samples computed twice, as far as the steps before the fault were logged (once a second)."""
    is_equal: bool = False
    """Whether the final weights are those of the undisturbed run, bit by bit."""


@dataclass
class _Run:
    """A run on a cluster, and what can be done to it."""

    experiment: Experiment
    shards: Path
    nodes: NodeCluster
    workers: list[Node]
    job: subprocess.Popen | None = None

    @property
    def folder(self) -> Path:
        return Path(self.experiment.storage, self.experiment.name)

    def start(self) -> None:
        Path(self.experiment.storage).mkdir(exist_ok=True)
        file = Path(self.experiment.storage, f"{self.experiment.name}.json")
        file.write_text(to_json(self.experiment))
        with file.with_suffix(".txt").open("a") as output:
            command = [sys.executable, "-c", DRIVER, file, self.shards]
            self.job = subprocess.Popen(
                command, env=self.nodes.environment, stdout=output, stderr=output, start_new_session=True
            )

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder) if event["kind"] == kind]

    def step(self) -> int:
        return max((event["step"] for event in self.events("train")), default=0)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        if not until(lambda: condition() or self.job.poll() is not None, WAIT_S) or not condition():
            raise PartialFailure(f"{self.folder}: no {what} within {WAIT_S:.0f} s; see {self.folder}.txt")

    def finish(self) -> None:
        if self.job.wait(3600):
            raise PartialFailure(f"{self.folder} has failed; see {self.folder}.txt")

    def weights(self) -> torch.Tensor:
        """Of the last checkpoint."""
        last = saved_checkpoints(self.folder)[-1]
        return torch.cat([value.flatten() for value in load_generator(last.folder)[0].state_dict().values()])

    def kill_worker(self) -> None:
        self.workers[0].workers()[0].kill()

    def kill_node(self) -> None:
        self.nodes.kill(self.workers.pop(0))
        self.workers.append(self.nodes.add(*NODE))

    def kill_driver(self) -> None:
        self.job.kill()
        self.job.wait()
        until(lambda: not any(node.workers() for node in self.workers), WAIT_S)
        self.start()

    def kill_while_saving(self) -> None:
        processes = [process for node in self.workers for process in node.workers()]
        end = time.monotonic() + WAIT_S
        while not any(self.folder.glob(".checkpoint_*.partial")) and time.monotonic() < end:
            time.sleep(0.0005)  # writing so small a checkpoint takes milliseconds
        for process in processes:
            process.kill()

    def stop_worker(self) -> None:
        self.workers[0].workers()[0].send_signal(signal.SIGSTOP)

    def announce_preemption(self) -> None:
        node = self.workers.pop(0)
        drain = [*RAY, "drain-node", "--node-id", node.ray_id(), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        drain += ["--reason-message", "spot", "--deadline-remaining-seconds", str(DEADLINE_S)]
        drain += ["--address", self.nodes.address]
        subprocess.run(drain, env=self.nodes.environment, capture_output=True, check=True)
        self.workers.append(self.nodes.add(*NODE))
        time.sleep(DEADLINE_S)
        self.nodes.kill(node)


FAULTS: dict[str, Callable[[_Run], None]] = {
    "worker killed": _Run.kill_worker,
    "node killed, another joins": _Run.kill_node,
    "driver killed, same command again": _Run.kill_driver,
    "all workers killed while a checkpoint is written": _Run.kill_while_saving,
    STALL: _Run.stop_worker,
    f"preemption announced {DEADLINE_S} s before": _Run.announce_preemption,
}
RANDOM_FAULTS = tuple(FAULTS)[:3]


def check_faults(kills: int, epochs: int) -> None:
    """Raises: InputError naming the option."""
    for option, value, least in (("--kills", kills, 0), ("--epochs", epochs, 1)):
        if not least <= value <= MAX_OPTION:
            raise InputError(f"{option} is {value}: expected {least} to {MAX_OPTION:,}")


def measure_faults(folder: Path, epochs: int, kills: int, say: Callable[[str], None]) -> tuple[list[Recovery], Figure]:
    """Train undisturbed, with each kind of fault, and with `kills` faults at random moments, all in `folder`.

    say: prints a line of progress. Returns what each cost, and a plot of the loss of the first and the last.
    Raises: PartialFailure if a run does not get over its fault.
    """
    os.environ["RAY_AUTH_MODE"] = "disabled"  # the clusters are this process's own
    root, shards = folder / "data", folder / "shards"
    synthesize(Synthesis(str(root), ratios=(100,), max_side=256))
    cluster.connect()
    pack_dataset(root, shards)
    ray.shutdown()
    nodes = NodeCluster(folder, {"OMP_NUM_THREADS": "1"}, "--num-cpus=2")  # such small networks gain nothing by more
    try:
        workers = [nodes.add(*NODE) for _ in range(2)]

        def run(name: str, fault: Callable[[_Run], Recovery] | None = None) -> tuple[_Run, Recovery | None]:
            say(f"training: {name}")
            made = _Run(_experiment(name, folder / "runs", epochs), shards, nodes, workers)
            made.start()
            made.wait_for(lambda: made.step() >= FIRST_FAULT_STEP, "step")
            recovery = fault(made) if fault else None
            if recovery:
                say(f"{name}: next step after {recovery.resumed_s:.1f} s")
            made.finish()
            return made, recovery

        undisturbed, _ = run("undisturbed")
        results = [run(name, partial(_disturb_once, kind=name)) for name in FAULTS]
        if kills:
            results.append(run(f"{kills} faults at random moments", partial(_disturb, kills=kills, say=say)))
        recoveries = [
            replace(recovery, is_equal=torch.equal(made.weights(), undisturbed.weights())) for made, recovery in results
        ]
        return recoveries, plot_losses(read_events(undisturbed.folder), read_events(results[-1][0].folder))
    finally:
        nodes.close()


def _experiment(name: str, storage: Path, epochs: int) -> Experiment:
    return Experiment(
        name=re.sub("[^a-z0-9]+", "-", name.lower()),
        storage=str(storage),
        data=DataConfig(shards="shards"),
        generator=GeneratorConfig(width=4, depth=2),
        discriminator=DiscriminatorConfig(width=4, layers=1),
        training=TrainingConfig(
            epochs=epochs, batch_size=4, crop=32, crops_per_pair=4, validate_every=epochs, checkpoint_every="40steps"
        ),
        cluster=ClusterConfig(num_workers=2, cpus_per_worker=2.5, stall_minutes=0.5 if name == STALL else 10),
    )


def _disturb_once(run: _Run, kind: str) -> Recovery:
    """Inflict one fault and wait until the run gets on."""
    starts, step, began = len(run.events("start")), run.step(), time.time()
    FAULTS[kind](run)
    run.wait_for(lambda: len(run.events("start")) > starts, "restart")
    resumed = run.events("start")[-1]["step"]
    run.wait_for(lambda: run.step() > resumed, "step after the restart")
    failures = [event["time"] - began for event in run.events("failure") if event["time"] > began]
    first = next(event for event in run.events("train") if event["time"] > began and event["step"] > resumed)
    batch_size = run.experiment.training.batch_size
    return Recovery(kind, min(failures, default=None), first["time"] - began, max(step - resumed, 0) * batch_size)


def _disturb(run: _Run, kills: int, say: Callable[[str], None]) -> Recovery:
    """Inflict faults at random moments; the recovery is the mean of all, but for the samples, which are the sum."""
    chance, recoveries = random.Random(0), []
    for number in range(kills):
        time.sleep(chance.uniform(0, MAX_PAUSE_S))
        if run.job.poll() is not None:
            raise PartialFailure(f"{run.folder} ended after {number} of {kills} faults: expected more --epochs")
        recoveries.append(_disturb_once(run, chance.choice(RANDOM_FAULTS)))
        say(f"{number + 1} of {kills}: {recoveries[-1].kind}, next step after {recoveries[-1].resumed_s:.0f} s")
    noticed = [each.noticed_s for each in recoveries if each.noticed_s is not None]
    return Recovery(
        f"{kills} of the first three, at random moments",
        sum(noticed) / len(noticed) if noticed else None,
        sum(each.resumed_s for each in recoveries) / kills,
        sum(each.repeated_samples for each in recoveries),
    )


def faults_table(recoveries: list[Recovery]) -> str:
    """The recoveries as a table."""
    head = ("fault", "said after, s", "next step after, s", "samples computed twice", "weights equal")
    rows = [
        (
            each.kind,
            "" if each.noticed_s is None else f"{each.noticed_s:.1f}",
            f"{each.resumed_s:.1f}",
            str(each.repeated_samples),
            "yes" if each.is_equal else "NO",
        )
        for each in recoveries
    ]
    return "\n".join(align_columns([head, *rows]))
