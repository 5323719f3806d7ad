"""Measure on this machine, against references of the same run; print a table.

    python jobs/benchmark.py predict
    python jobs/benchmark.py pack SID/Sony
    python jobs/benchmark.py faults

`predict` compares full frames in bands with the whole frame in one pass: speed and memory (5 minutes on 2 cores).
`pack` compares packing a data set with LibRaw alone in a process pool (takes as long as packing it a few times).
`faults` kills workers, nodes and drivers of tiny runs on clusters of three nodes that it starts on this machine, and
compares their results with that of an undisturbed run (20 minutes on 2 cores).
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lsid_ray.benchmark.faults import check_faults, faults_table, measure_faults
from lsid_ray.benchmark.pack import measure_pack, pack_table
from lsid_ray.benchmark.predict import measure_sizes, predict_table
from lsid_ray.commandline import memory_limit, parse, run_job
from lsid_ray.config.schema import GeneratorConfig
from lsid_ray.inference.bands import MEMORY_BYTES


@dataclass(frozen=True)
class Predict:
    """Compare full frames in bands with the whole frame in one pass."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The network, with random weights."""
    memory_gb: float = MEMORY_BYTES / 2**30
    """Working memory for the bands, in GiB."""
    rounds: int = 3
    """How often each is measured, alternately; the fastest counts."""
    use_gpu: bool = False
    """Run on the GPU instead of the CPU."""


@dataclass(frozen=True)
class Pack:
    """Compare packing a data set with LibRaw alone."""

    root: Annotated[Path, tyro.conf.Positional]
    """Folder that holds short/ and long/, with SID's names."""


@dataclass(frozen=True)
class Faults:
    """Kill parts of runs, and compare their results with that of an undisturbed one."""

    kills: int = 20
    """Faults at random moments in the last run."""
    epochs: int = 400
    """Length of each run."""
    picture: Path = Path("faults.png")
    """File for a plot of the losses."""


def main() -> None:
    """Read the command line, measure, print the table."""
    options = parse(Predict | Pack | Faults, __doc__)
    with tempfile.TemporaryDirectory(prefix="lsid-") as folder:  # short: Ray's sockets lie in it
        match options:
            case Predict():
                memory_bytes = memory_limit(options.memory_gb)
                print(predict_table(measure_sizes(options.generator, memory_bytes, options.rounds, options.use_gpu)))
            case Pack():
                print(pack_table(measure_pack(options.root, Path(folder))))
            case Faults():
                check_faults(options.kills, options.epochs)
                recoveries, figure = measure_faults(Path(folder), options.epochs, options.kills, print)
                figure.savefig(options.picture)
                print(f"{faults_table(recoveries)}\n\nlosses: {options.picture}")


if __name__ == "__main__":
    run_job(main)
