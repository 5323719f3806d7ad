"""An experiment's data set made ready on its cluster."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from lsid_ray import cluster, storage
from lsid_ray.config import Experiment
from lsid_ray.data.catalog import read_catalog
from lsid_ray.data.pack import Progress, default_shards, pack_folder
from lsid_ray.data.synthesize import Synthesis, synthesize
from lsid_ray.presets import EMBEDDED_ROOT

Failures = tuple[tuple[str, str], ...]


def prepare(
    experiment: Experiment, say: Callable[[str], None], packing: Callable[[], AbstractContextManager[Progress]]
) -> tuple[str, Failures]:
    """Connect to the cluster, make the embedded data set where it is wanted and not there, pack what is not packed.

    Returns the shards' folder, and the raw files that were left out, each with the reason.
    Raises: InputError before any process starts where the data set's folder is not one, and before packing where the
    cluster cannot hold the experiment's workers.
    """
    data = experiment.data
    if data.root == EMBEDDED_ROOT and not storage.path(data.root).exists():
        made = synthesize(Synthesis(data.root))
        say(f"made {len(made.scenes)} scenes from scikit-image's photographs in {data.root}")
    if data.root:
        read_catalog(data.root)
    cluster.connect()
    cluster.check_workers(experiment.cluster)
    if not data.root:
        return data.shards, ()
    shards = data.shards or default_shards(data.root)
    with packing() as progress:
        packed = pack_folder(data.root, shards, progress=progress)
    for name, reason in packed.failures:
        say(f"left out {name}: {reason}")
    say(f"{packed.pairs} pairs in {shards}")
    return shards, packed.failures
