"""Benchmark prediction or packing on this machine against a reference measured in the same run; print a table.

    python jobs/benchmark.py predict
    python jobs/benchmark.py pack SID/Sony

`predict` compares full frames in bands with the whole frame in one pass: speed and memory (5 minutes on 2 cores).
`pack` compares packing a data set with LibRaw alone in a process pool (takes as long as packing it a few times).
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lsid_ray.benchmark.pack import measure_pack, pack_table
from lsid_ray.benchmark.predict import measure_predict, predict_table
from lsid_ray.commandline import memory_limit, parse, run_job
from lsid_ray.config.checks import check_generator
from lsid_ray.config.schema import GeneratorConfig
from lsid_ray.errors import InputError
from lsid_ray.inference.bands import MEMORY_BYTES

MAX_ROUNDS = 1000


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


def main() -> None:
    """Read the command line, measure, print the table."""
    options = parse(Predict | Pack, __doc__)
    if isinstance(options, Predict):
        if not 1 <= options.rounds <= MAX_ROUNDS:
            raise InputError(f"--rounds is {options.rounds}: expected 1 to {MAX_ROUNDS}")
        memory_bytes = memory_limit(options.memory_gb)
        check_generator(options.generator)
        sizes = ((2848, 4256, True), (6336, 9504, False))  # 12 and 61 megapixels
        times = [
            measure_predict(
                options.generator,
                height,
                width,
                memory_bytes=memory_bytes,
                rounds=options.rounds if with_whole else 1,
                with_whole=with_whole,
                use_gpu=options.use_gpu,
            )
            for height, width, with_whole in sizes
        ]
        print(predict_table(times))
    else:
        with tempfile.TemporaryDirectory(prefix="lsid-benchmark-") as folder:
            print(pack_table(measure_pack(options.root, Path(folder))))


if __name__ == "__main__":
    run_job(main)
