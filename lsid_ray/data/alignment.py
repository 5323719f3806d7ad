"""Measure the shift between the short and the long exposure of every packed pair, and record it in the index."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lsid_ray import cluster, storage
from lsid_ray.data.comparison import Comparison, compare_shards
from lsid_ray.data.index import Pair, Shards, read_index, write_index
from lsid_ray.data.pack import locked
from lsid_ray.data.parallel import parallel_map
from lsid_ray.data.shift import with_shift
from lsid_ray.errors import InputError
from lsid_ray.storage import AnyPath


@dataclass(frozen=True)
class Alignment:
    """What `align_shards` found."""

    pairs: tuple[Pair, ...]
    """All pairs, with their shifts."""
    problems: tuple[str, ...]
    """A line for each pair that moved or contradicts its ratio."""
    failures: tuple[tuple[str, str], ...]
    """Pairs that could not be read, each with the reason."""

    @property
    def table(self) -> str:
        """Shifts in pixels by split: number of pairs, those without a known shift, median, 95th percentile, largest."""
        lines = [f"{'shift (pixels)':<14} {'pairs':>6} {'unknown':>8} {'median':>7} {'95%':>7} {'largest':>8}"]
        for split in ("train", "validation", "test"):
            of_split = [pair for pair in self.pairs if pair.split == split]
            lengths = [float(np.hypot(*pair.shift)) for pair in of_split if pair.shift is not None]
            if of_split:
                values = np.percentile(lengths, (50, 95, 100)) if lengths else ("-", "-", "-")
                median, most, largest = (value if value == "-" else f"{value:.2f}" for value in values)
                unknown = len(of_split) - len(lengths)
                lines.append(f"{split:<14} {len(of_split):>6} {unknown:>8} {median:>7} {most:>7} {largest:>8}")
        return "\n".join(lines)


def align_shards(folder: str | AnyPath, progress: Callable[[int, int], None] = lambda done, total: None) -> Alignment:
    """Measure every pair on the Ray cluster and record its shift in the index; `pack_dataset` keeps it there.

    A test pair that moved by more than a pixel becomes `misaligned`. Raises: InputError as `read_index`, or if the
    index cannot be written.
    """
    folder = storage.to_path(folder).absolute()
    index = read_index(folder)
    storage.check_writable(folder, "folder of the shards")
    cluster.connect()
    shards = Shards(str(folder), index.pairs, index.rendering)
    found: dict[int, Comparison] = {}
    problems, failures = [], []
    progress(0, len(index.pairs))
    with locked(folder):
        results = parallel_map(_compare, list(range(len(index.pairs))), shards)
        for done, (number, result) in enumerate(results, start=1):
            pair = index.pairs[number]
            if isinstance(result, Comparison):
                found[number] = result
                problems += [f"{pair.name}: {problem}" for problem in result.problems(pair.ratio)]
            else:
                failures.append((pair.name, result or "the process that read it died"))
            progress(done, len(index.pairs))
        pairs = tuple(
            with_shift(pair, found[number].shift) if number in found else pair
            for number, pair in enumerate(index.pairs)
        )
        write_index(folder, replace(index, pairs=pairs))
    return Alignment(pairs, tuple(sorted(problems)), tuple(sorted(failures)))


def _compare(number: int, shards: Shards) -> Comparison | str:
    """The comparison of a pair, or why it could not be read."""
    try:
        return compare_shards(shards, shards.pairs[number])
    except (InputError, OSError) as error:
        return str(error)
