"""What comes before training: the data set is made, the cluster joined, the raw files are packed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from lsid_ray import cluster, storage
from lsid_ray.config.presets import EMBEDDED_ROOT
from lsid_ray.config.schema import Experiment
from lsid_ray.data.catalog import RawPair
from lsid_ray.data.index import INDEX, read_index
from lsid_ray.data.pack import Progress, default_shards, pack_dataset
from lsid_ray.data.pair_list import list_pairs
from lsid_ray.errors import InputError, failure_lines
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.mosaic import layout_of
from lsid_ray.synthesis.dataset import Synthesis, synthesize
from lsid_ray.train.initial_weights import read_initial_weights
from lsid_ray.train.run_folder import checkpoint_step

Failures = tuple[tuple[str, str], ...]


def prepare(
    experiment: Experiment,
    log: Callable[[str], None],
    packing: Callable[[], AbstractContextManager[Progress]] = lambda: nullcontext(lambda done, total: None),
) -> tuple[str, Failures]:
    """Create the embedded data set if it is asked for and missing, connect to the cluster, pack what is not packed.

    log: prints a line. packing: opens the progress display. Returns the folder of the shards, and the raw files that
    were left out, each with the reason.
    Raises: InputError before any process starts if the data set or `init` is not usable, a folder not writable, or a
    frame that is not packed yet too small or of another kind of sensor, and before packing if the cluster cannot hold
    the experiment's workers.
    """
    data = experiment.data
    folder = storage.to_path(experiment.storage) / experiment.name
    storage.check_writable(folder, "--storage")
    if experiment.init and not checkpoint_step(folder):
        read_initial_weights(experiment)
    if data.root == EMBEDDED_ROOT and not storage.to_path(data.root).exists():
        storage.check_writable(storage.to_path(data.root), "--data.root")
        result = synthesize(Synthesis(data.root))
        log(f"made {len(result.scenes)} scenes from scikit-image's photographs in {data.root}")
    shards = data.shards or default_shards(data.root)
    if not data.root:
        read_index(shards)
    else:
        catalog = list_pairs(data.root, data.lists)
        if not (storage.to_path(shards) / INDEX).exists():
            storage.check_writable(storage.to_path(shards), "--data.shards")
            _check_first_frame(catalog.pairs, experiment)
    cluster.connect()
    cluster.check_capacity(experiment.cluster)
    if not data.root:
        return shards, ()
    with packing() as progress:
        packed = pack_dataset(data.root, shards, lists=data.lists, progress=progress)
    for line in failure_lines(packed.failures):
        log(f"left out {line}")
    for line in packed.remarks:
        log(line)
    log(f"{packed.pairs} pairs in {shards}")
    return shards, packed.failures


def _check_first_frame(pairs: Sequence[RawPair], experiment: Experiment) -> None:
    """Refuse, before hours of packing, what a frame that is trained on cannot give. `Schedule` checks all of them.

    Raises: InputError if its sensor is of another kind, or the crop larger than the frame.
    """
    pair = next((pair for pair in pairs if pair.split == "train"), None)
    if pair is None:
        return
    try:
        with storage.local_copy(pair.short) as path:
            frame = read_raw(path)
    except (InputError, OSError):
        return  # packing names all files that cannot be read
    layout = layout_of(frame.cfa)
    if layout.kind != experiment.generator.cfa:
        raise InputError(
            f"--generator.cfa is {experiment.generator.cfa}: the frames in {experiment.data.root} are {layout.kind}"
        )
    height, width = frame.height // layout.block, frame.width // layout.block
    least = experiment.training.crop + layout.repeat
    if min(height, width) < least:
        raise InputError(
            f"--training.crop is {experiment.training.crop}: {pair.name} packs to {height}x{width}, expected at least "
            f"{least}x{least}"
        )
