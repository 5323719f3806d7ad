"""Measure on this machine, against references of the same run; print a table.

    python jobs/benchmark.py predict
    python jobs/benchmark.py step sid-sony --use-gpu
    python jobs/benchmark.py pack SID/Sony
    python jobs/benchmark.py feed SID/Sony-shards --step-ms 40
    python jobs/benchmark.py train sid-sony SID/Sony-shards
    python jobs/benchmark.py validate sid-sony SID/Sony-shards --step-ms 40
    python jobs/benchmark.py faults
    python jobs/benchmark.py history runs/demo

lsid_ray/benchmark/README.md has what was measured so far, and on which machines.
"""

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lsid_ray.benchmark.faults import Faults
from lsid_ray.benchmark.feed import Feed
from lsid_ray.benchmark.history import History
from lsid_ray.benchmark.pack import Pack
from lsid_ray.benchmark.predict import Predict
from lsid_ray.benchmark.step import Step
from lsid_ray.benchmark.training import Train
from lsid_ray.benchmark.validate import Validate
from lsid_ray.commandline import parse, run_job


@dataclass(frozen=True)
class Options:
    """What to measure."""

    benchmark: Annotated[Feed | Train | Validate | Step | Predict | Pack | Faults | History, tyro.conf.arg(name="")]
    out: Path | None = None
    """Also write the figures to this file, as JSON."""


def main() -> None:
    """Read the command line, measure, print the table."""
    options = parse(Options, __doc__)
    with tempfile.TemporaryDirectory(prefix="lsid-") as folder:  # short: Ray's sockets lie in it
        table, figures = options.benchmark.run(Path(folder))
    print(table)
    if options.out:
        figures = [dataclasses.asdict(each) for each in (figures if isinstance(figures, list) else [figures])]
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_job(main)
