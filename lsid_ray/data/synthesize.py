"""Photographs as a data set of short and long exposures, in SID's own layout and names."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import skimage

from lsid_ray import storage
from lsid_ray.data.catalog import RAW_SUFFIXES, SPLITS
from lsid_ray.data.photograph import PHOTO_SUFFIXES, SMALLEST_SIDE, photograph_frame
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.mosaic import MAX_RATIO, amplification_ratio
from lsid_ray.raw.noise import short_exposure
from lsid_ray.storage import AnyPath

LONG_S = 10.0
FORMAT = 1  # raised when the same options give other files
RECORD = "synthesis.json"

# scikit-image's colour photographs that lie in its wheel; of the stereo pair one, as they are one scene.
BUNDLED = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png")
BUNDLED += ("motorcycle_left.png", "retina.jpg", "rocket.jpg")

# SID's 231 Sony scenes, from infos/SID_*.info of github.com/megvii-research/PMN (Apache-2.0): how many at
# each ISO; mean, spread, least and greatest of the camera's R and B gains, and their correlation.
# fmt: off
ISO_COUNTS = {
    50: 1, 64: 3, 80: 3, 100: 3, 160: 15, 200: 22, 250: 36, 320: 25, 400: 7, 500: 20, 640: 6, 800: 7,
    1000: 10, 1250: 9, 1600: 10, 2000: 6, 2500: 2, 4000: 4, 5000: 1, 6400: 2, 8000: 10, 10000: 12,
    12800: 7, 16000: 1, 25600: 9,
}
# fmt: on
GAIN_MEAN, GAIN_SPREAD, GAIN_CORRELATION = (2.064, 2.447), (0.162, 0.272), -0.5
GAIN_LEAST, GAIN_GREATEST = (1.711, 1.785), (2.742, 3.102)


@dataclass(frozen=True)
class Synthesis:
    """What to make of which photographs."""

    out: str
    """The data set's folder, to be made; it will hold short/, long/ and synthesis.json."""
    photos: tuple[str, ...] = ()
    """Photographs, or folders of them: PNG, JPEG, TIFF or raw files. None: scikit-image's own."""
    seed: int = 6
    """Of splits, ISOs, white balances and noise. With 6, scikit-image's cat and coffee are for test."""
    ratios: tuple[int, ...] = (100, 250, 300)
    """Amplification ratios, each a short exposure of 10 s / ratio of every scene; 1 to 300."""
    frames: int = 1
    """Short exposures of each scene and ratio, with noise of their own."""
    max_side: int = 0
    """Larger photographs are reduced by an area mean until no side is longer, in pixels; 0 keeps all as they are."""


@dataclass(frozen=True)
class Scene:
    """One photograph's place in the data set."""

    name: str
    """Five digits, as SID's: "10003"."""
    split: str
    photo: str
    """The photograph's file name."""
    sha256: str
    """Of the photograph's bytes: with the seed it determines everything drawn for the scene."""
    iso: int
    white_balance: tuple[float, float]
    """Gains of R and B drawn for it; a raw photograph keeps the camera's."""


@dataclass(frozen=True)
class Outcome:
    """What `synthesize` did."""

    scenes: tuple[Scene, ...]
    made: bool
    """False when the folder already held exactly this data set."""
    ignored: tuple[AnyPath, ...]
    """Files in the given folders that are no photographs."""


def synthesize(
    config: Synthesis, on_scene: Callable[[Scene], None] = lambda scene: None, workers: int | None = None
) -> Outcome:
    """Make the data set of `config`; `on_scene` hears of each scene written, in no set order.

    `config.out` is complete or absent: it is built beside itself and renamed. Made already with the same
    options from the same photographs, it is left alone. What is made depends on neither the photographs'
    order nor `workers` (threads; by default one a CPU), and a scene's frames only on seed and photograph.
    Raises InputError for options out of range, fewer than 3 photographs (a split each), one given twice,
    unreadable or with a side below 64 pixels, and a folder that holds anything else.
    """
    _check(config)
    out = storage.path(config.out)
    photos, ignored = _find_photos(config.photos)
    scenes = _scenes(photos, config.seed)
    record = {  # only what JSON gives back as it was
        "format": FORMAT,
        "seed": config.seed,
        "ratios": list(config.ratios),
        "frames": config.frames,
        "max_side": config.max_side,
        "scenes": [asdict(scene) | {"white_balance": list(scene.white_balance)} for scene, _ in scenes],
    }
    outcome = Outcome(tuple(scene for scene, _ in scenes), True, tuple(ignored))
    if _already_made(out, record):
        return replace(outcome, made=False)
    with storage.writing_folder(out, last=RECORD) as unfinished:
        for folder in ("short", "long"):
            (unfinished / folder).mkdir()

        def make(entry: tuple[Scene, AnyPath]) -> None:
            _make_scene(unfinished, config, *entry)
            on_scene(entry[0])

        pool = ThreadPoolExecutor(workers or os.cpu_count())
        try:
            list(pool.map(make, scenes))
        finally:
            pool.shutdown(cancel_futures=True)
        (unfinished / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return outcome


def _make_scene(root: Path, config: Synthesis, scene: Scene, photo: AnyPath) -> None:
    with storage.local(photo) as here:
        clean = photograph_frame(here, scene.white_balance, config.max_side)
    clean = replace(clean, iso=float(scene.iso), exposure_s=LONG_S)
    write_dng(root / "long" / f"{scene.name}_00_{LONG_S:g}s.dng", clean)
    for ratio in config.ratios:
        exposure = f"{LONG_S / ratio:.3g}"
        for number in range(config.frames):
            rng = _generator(config.seed, scene.sha256, ratio, number)
            mosaic = short_exposure(
                clean.mosaic,
                clean.black,
                clean.white,
                amplification_ratio(LONG_S, float(exposure)),
                scene.iso,
                rng,
            )
            short = replace(clean, mosaic=mosaic, exposure_s=float(exposure))
            write_dng(root / "short" / f"{scene.name}_{number:02d}_{exposure}s.dng", short)


def _scenes(photos: list[tuple[str, AnyPath]], seed: int) -> list[tuple[Scene, AnyPath]]:
    """Scenes in the order of their numbers; a fifth to test, an eighth to validate, but at least one each."""
    photos = sorted(photos)
    order = np.random.default_rng(seed).permutation(len(photos))
    test, validation = max(1, round(len(photos) / 5)), max(1, round(len(photos) / 8))
    isos, counts = np.array(list(ISO_COUNTS)), np.array(list(ISO_COUNTS.values()))
    covariance = np.outer(GAIN_SPREAD, GAIN_SPREAD) * [[1, GAIN_CORRELATION], [GAIN_CORRELATION, 1]]
    scenes = []
    for place, index in enumerate(order):
        sha256, path = photos[index]
        digit = "1" if place < test else "2" if place < test + validation else "0"
        rng = _generator(seed, sha256)
        gains = rng.multivariate_normal(GAIN_MEAN, covariance).clip(GAIN_LEAST, GAIN_GREATEST).round(4)
        iso = int(rng.choice(isos, p=counts / counts.sum()))
        name = f"{digit}{place + 1:04d}"
        scenes.append((Scene(name, SPLITS[digit], path.name, sha256, iso, tuple(gains.tolist())), path))
    return scenes


def _generator(seed: int, *keys: str | int) -> np.random.Generator:
    """A generator of its own for whatever `keys` name, whoever draws first."""
    digest = hashlib.sha256(json.dumps([seed, *keys]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _find_photos(given: tuple[str, ...]) -> tuple[list[tuple[str, AnyPath]], list[AnyPath]]:
    """(hash, path) of each photograph, and the files in the given folders that are none."""
    if not given:
        folder = Path(skimage.__file__).parent / "data"
        given = tuple(str(folder / name) for name in BUNDLED)
    found, ignored = [], []
    for path in map(storage.path, given):
        if not path.exists():
            raise InputError(f"photographs {path}: no such file or folder")
        inside = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        photos = [file for file in inside if file.suffix.lower() in (*PHOTO_SUFFIXES, *RAW_SUFFIXES)]
        if not photos:
            raise InputError(f"photographs {path}: no PNG, JPEG, TIFF or raw file")
        found += photos
        ignored += [file for file in inside if file not in photos]
    hashed: dict[str, AnyPath] = {}
    for file in found:
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        if sha256 in hashed:
            raise InputError(f"photographs {hashed[sha256]} and {file} are the same: one scene would be in two splits")
        hashed[sha256] = file
    if len(hashed) < 3:
        raise InputError(f"{len(hashed)} photographs: expected at least 3, one each to train, validate and test")
    return list(hashed.items()), ignored


def _check(config: Synthesis) -> None:
    if not config.ratios or not all(1 <= ratio <= MAX_RATIO for ratio in config.ratios):
        raise InputError(f"ratios {config.ratios}: expected at least one, each between 1 and {MAX_RATIO:g}")
    names = {f"{LONG_S / ratio:.3g}" for ratio in config.ratios}
    if len(names) < len(config.ratios):
        raise InputError(f"ratios {config.ratios}: two of them give the same exposure time to three digits")
    if not 1 <= config.frames <= 100:
        raise InputError(f"frames {config.frames}: expected 1 to 100")
    if config.max_side != 0 and config.max_side < SMALLEST_SIDE:
        raise InputError(f"max_side {config.max_side}: expected at least {SMALLEST_SIDE}, or 0 to reduce nothing")


def _already_made(out: AnyPath, record: dict[str, object]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        made = json.loads((out / RECORD).read_text())
        different = [key for key, value in record.items() if made.get(key) != value]
    except (OSError, ValueError, AttributeError):
        raise InputError(f"output folder {out}: exists and holds something else; pass another") from None
    if different:
        how = ", ".join(different)
        raise InputError(f"output folder {out}: holds a data set made otherwise ({how}); pass another")
    return True
