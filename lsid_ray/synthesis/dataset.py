"""Making a data set of short and long exposures from photographs, with SID's folder layout and file names."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import skimage

from lsid_ray import storage
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame
from lsid_ray.raw.mosaic import MAX_RATIO, amplification_ratio
from lsid_ray.raw.names import RAW_SUFFIXES, SPLITS
from lsid_ray.storage import AnyPath
from lsid_ray.synthesis.camera import CameraNoise
from lsid_ray.synthesis.camera_file import read_camera, to_json
from lsid_ray.synthesis.dark_frames import DarkFrames, open_dark_frames
from lsid_ray.synthesis.noise import A7S2, short_exposure
from lsid_ray.synthesis.photograph import A7S2_SENSOR, MIN_SIDE, PHOTO_SUFFIXES, frame_from_photograph, neutral_gains

LONG_S = 10.0
MAX_SEED = 2**32 - 1
FORMAT_VERSION = 1  # incremented if the same options would give different files
MANIFEST = "synthesis.json"

# The color photographs in scikit-image's wheel; only one of the stereo pair, since both show the same scene.
BUNDLED_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png")
BUNDLED_PHOTOS += ("motorcycle_left.png", "retina.jpg", "rocket.jpg")

# SID's 231 Sony scenes, from infos/SID_*.info of github.com/megvii-research/PMN (Apache-2.0): the number of scenes
# per ISO; mean, standard deviation, correlation, minimum and maximum of the camera's R and B gains.
# fmt: off
ISO_COUNTS = {
    50: 1, 64: 3, 80: 3, 100: 3, 160: 15, 200: 22, 250: 36, 320: 25, 400: 7, 500: 20, 640: 6, 800: 7,
    1000: 10, 1250: 9, 1600: 10, 2000: 6, 2500: 2, 4000: 4, 5000: 1, 6400: 2, 8000: 10, 10000: 12,
    12800: 7, 16000: 1, 25600: 9,
}
# fmt: on
GAIN_MEAN, GAIN_STD, GAIN_CORRELATION = (2.064, 2.447), (0.162, 0.272), -0.5
GAIN_MIN, GAIN_MAX = (1.711, 1.785), (2.742, 3.102)


@dataclass(frozen=True)
class Synthesis:
    """The options of a synthetic data set."""

    out: str
    """Output folder, created with short/, long/ and synthesis.json."""
    photos: tuple[str, ...] = ()
    """Photographs, or folders of them: PNG, JPEG, TIFF or raw files. Default: those bundled with scikit-image."""
    seed: int = 6
    """Seed of the splits, ISOs, white balances and noise. With 6, the test split is scikit-image's cat and coffee."""
    ratios: tuple[int, ...] = (100, 250, 300)
    """Amplification ratios, 1 to 300; for each, every scene gets short exposures of 10 s / ratio."""
    frames: int = 1
    """Short exposures per scene and ratio, each with its own noise; 1 to 100."""
    max_side: int = 0
    """Downscale photographs with a side longer than this, in pixels; 0 keeps their size."""
    camera: str = ""
    """Noise of your own camera: a file of jobs/calibrate.py; or FILE#NAME, a camera in the published parameters of ELD
    or PMN as JSON. Its ISOs are drawn evenly; read noise from its dark frames, if it was calibrated with --keep-frames.
    Default: SID's Sony A7S II, at the ISOs of SID's scenes."""


@dataclass(frozen=True)
class Scene:
    """The scene made from one photograph."""

    name: str
    """Five digits, as in SID: "10003"."""
    split: str
    photo: str
    """The photograph's file name."""
    sha256: str
    """Hash of the photograph's bytes; with the seed it determines all random draws for the scene."""
    iso: int
    white_balance: tuple[float, float]
    """Randomly drawn gains of R and B; a raw photograph keeps its camera's instead."""


@dataclass(frozen=True)
class SynthesisResult:
    """The result of `synthesize`."""

    scenes: tuple[Scene, ...]
    created: bool
    """False if the folder already held exactly this data set."""
    ignored: tuple[AnyPath, ...]
    """Files in the input folders that are not photographs."""


def synthesize(
    config: Synthesis, on_scene: Callable[[Scene], None] = lambda scene: None, workers: int | None = None
) -> SynthesisResult:
    """Create the data set of `config`; `on_scene` is called after each scene is written, in no fixed order.

    The output folder is created atomically. If it already holds the data set of the same options and photographs,
    nothing is done. The result does not depend on the order of the photographs nor on `workers` (threads; default: one
    per CPU), and the frames of a scene depend only on the seed, the options and its photograph.
    With a camera, photographs other than raw files get its sensor's levels, CFA and colors, if its file has them.
    Raises InputError for an option out of range, a camera that cannot be read, has no gain or lacks its dark frames,
    fewer than 3 photographs (one per split), a photograph that is given twice, unreadable, below 64 pixels on a side or
    larger than the dark frames, or an output folder with other contents.
    """
    _check_options(config)
    out = storage.to_path(config.out)
    camera = _read_camera(config.camera) if config.camera else None
    photos, ignored = _find_photos(config.photos)
    scenes = _draw_scenes(photos, config.seed, camera)
    manifest = {  # lists instead of tuples, so that it equals what is read back from JSON
        "format": FORMAT_VERSION,
        "seed": config.seed,
        "ratios": list(config.ratios),
        "frames": config.frames,
        "max_side": config.max_side,
        "camera": to_json(camera) if camera else None,
        "scenes": [asdict(scene) | {"white_balance": list(scene.white_balance)} for scene, _ in scenes],
    }
    result = SynthesisResult(tuple(scene for scene, _ in scenes), True, tuple(ignored))
    if _already_created(out, manifest):
        return replace(result, created=False)
    storage.check_writable(out, "--out")
    with _open_dark_frames(config.camera, camera) as dark_frames, storage.atomic_folder(out, last=MANIFEST) as partial:
        for folder in ("short", "long"):
            (partial / folder).mkdir()

        def write(scene_and_photo: tuple[Scene, AnyPath]) -> None:
            _write_scene(partial, config, camera or A7S2, dark_frames, *scene_and_photo)
            on_scene(scene_and_photo[0])

        pool = ThreadPoolExecutor(workers or os.cpu_count())
        try:
            list(pool.map(write, scenes))
        finally:
            pool.shutdown(cancel_futures=True)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return result


def _write_scene(
    root: Path, config: Synthesis, camera: CameraNoise, dark_frames: DarkFrames | None, scene: Scene, photo: AnyPath
) -> None:
    sensor, name = (camera.sensor, camera.name) if camera.sensor else (A7S2_SENSOR, A7S2.name)
    with storage.local_copy(photo) as local_photo:
        on_its_side = dark_frames is not None  # their rows are those of the sensor
        clean = frame_from_photograph(local_photo, scene.white_balance, config.max_side, sensor, name, on_its_side)
    clean = replace(clean, iso=float(scene.iso), exposure_s=LONG_S)
    _write(config, root / "long" / f"{scene.name}_00_{LONG_S:g}s.dng", clean)
    for ratio in config.ratios:
        exposure = f"{LONG_S / ratio:.3g}"
        for number in range(config.frames):
            rng = _make_rng(config.seed, scene.sha256, ratio, number)
            amplification = amplification_ratio(LONG_S, float(exposure))
            dark = dark_frames.crop(clean, scene.iso, scene.split, rng) if dark_frames else None
            mosaic = short_exposure(clean.mosaic, clean.black, clean.white, amplification, scene.iso, rng, camera, dark)
            short = replace(clean, mosaic=mosaic, exposure_s=float(exposure))
            _write(config, root / "short" / f"{scene.name}_{number:02d}_{exposure}s.dng", short)


def _write(config: Synthesis, path: Path, frame: RawFrame) -> None:
    try:
        write_dng(path, frame)
    except OSError as error:
        raise InputError(f"--out {config.out} cannot be written to: {error.strerror or error}") from None


def _read_camera(text: str) -> CameraNoise:
    camera = read_camera(text)
    if unknown := [iso for iso, noise in camera.by_iso.items() if noise.gain is None]:
        isos = ", ".join(map(str, unknown))
        raise InputError(f"--camera {text}: no gain at ISO {isos}, so no shot noise; calibrate it with --flat too")
    return camera


def _open_dark_frames(text: str, camera: CameraNoise | None) -> AbstractContextManager[DarkFrames | None]:
    if camera is None:
        return nullcontext()
    return open_dark_frames(f"--camera {text}", storage.to_path(text.partition("#")[0]), camera)


def _draw_scenes(
    photos: list[tuple[str, AnyPath]], seed: int, camera: CameraNoise | None
) -> list[tuple[Scene, AnyPath]]:
    """Scenes with their photographs, by number: a fifth for test, an eighth for validation, at least one each."""
    photos = sorted(photos)
    order = np.random.default_rng(seed).permutation(len(photos))
    test_count, validation_count = max(1, round(len(photos) / 5)), max(1, round(len(photos) / 8))
    weights = {iso: 1 for iso in sorted(camera.by_iso)} if camera else ISO_COUNTS
    isos, counts = np.array(list(weights)), np.array(list(weights.values()))
    covariance = np.outer(GAIN_STD, GAIN_STD) * [[1, GAIN_CORRELATION], [GAIN_CORRELATION, 1]]
    scenes = []
    for number, index in enumerate(order):
        sha256, path = photos[index]
        digit = "1" if number < test_count else "2" if number < test_count + validation_count else "0"
        rng = _make_rng(seed, sha256)
        gains = rng.multivariate_normal(GAIN_MEAN, covariance).clip(GAIN_MIN, GAIN_MAX).round(4)
        if camera and camera.sensor:  # its gains for light of the same color
            gains = (gains * neutral_gains(camera.sensor) / neutral_gains(A7S2_SENSOR)).round(4)
        iso = int(rng.choice(isos, p=counts / counts.sum()))
        name = f"{digit}{number + 1:04d}"
        scenes.append((Scene(name, SPLITS[digit], path.name, sha256, iso, tuple(gains.tolist())), path))
    return scenes


def _make_rng(seed: int, *keys: str | int) -> np.random.Generator:
    """An independent random generator for each combination of `seed` and `keys`."""
    digest = hashlib.sha256(json.dumps([seed, *keys]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _find_photos(paths: tuple[str, ...]) -> tuple[list[tuple[str, AnyPath]], list[AnyPath]]:
    """(hash, path) of each photograph, and the files in the input folders that are not photographs."""
    if not paths:
        folder = Path(skimage.__file__).parent / "data"
        paths = tuple(str(folder / name) for name in BUNDLED_PHOTOS)
    photos, ignored = [], []
    for path in map(storage.to_path, paths):
        if not path.exists():
            raise InputError(f"--photos {path}: no such file or folder")
        files = sorted(file for file in path.iterdir() if not file.is_dir()) if path.is_dir() else [path]
        suffixes = (*PHOTO_SUFFIXES, *RAW_SUFFIXES)
        photos_in_path = [file for file in files if file.suffix.lower() in suffixes and file.is_file()]
        if not photos_in_path:
            raise InputError(f"--photos {path}: no photographs; expected PNG, JPEG, TIFF or raw files")
        photos += photos_in_path
        ignored += [file for file in files if file not in photos_in_path]
    photo_by_hash: dict[str, AnyPath] = {}
    for photo in photos:
        sha256 = hashlib.sha256(photo.read_bytes()).hexdigest()
        if sha256 in photo_by_hash:
            raise InputError(f"--photos: {photo_by_hash[sha256]} and {photo} are identical; remove one of them")
        photo_by_hash[sha256] = photo
    if len(photo_by_hash) < 3:
        raise InputError(f"--photos: {len(photo_by_hash)} photographs; expected at least 3, one per split")
    return list(photo_by_hash.items()), ignored


def _check_options(config: Synthesis) -> None:
    if not config.ratios or not all(1 <= ratio <= MAX_RATIO for ratio in config.ratios):
        raise InputError(f"--ratios {config.ratios}: expected at least one, each between 1 and {MAX_RATIO:g}")
    exposures = {f"{LONG_S / ratio:.3g}" for ratio in config.ratios}
    if len(exposures) < len(config.ratios):
        raise InputError(f"--ratios {config.ratios}: expected different exposure times (10 s / ratio, to three digits)")
    if not 0 <= config.seed <= MAX_SEED:
        raise InputError(f"--seed {config.seed}: expected 0 to {MAX_SEED:,}")
    if not 1 <= config.frames <= 100:
        raise InputError(f"--frames {config.frames}: expected 1 to 100")
    if config.max_side != 0 and config.max_side < MIN_SIDE:
        raise InputError(f"--max-side {config.max_side}: expected at least {MIN_SIDE}, or 0 to keep the size")


def _already_created(out: AnyPath, manifest: dict[str, object]) -> bool:
    if not out.exists() or (out.is_dir() and all(entry.name == storage.WRITE_TEST for entry in out.iterdir())):
        return False
    try:
        existing = json.loads((out / MANIFEST).read_text())
        different = [key for key, value in manifest.items() if existing.get(key) != value]
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        raise InputError(f"--out {out}: exists, but is not a data set of this job; choose another folder") from None
    if different:
        raise InputError(f"--out {out}: holds another data set ({', '.join(different)} differ); choose another folder")
    return True
