"""Data sets synthesized from photographs: SID's layout, deterministic for a seed, created atomically."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_dng import make_frame

from lsid_ray.data.catalog import read_catalog
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.synthesis.dataset import MANIFEST, Synthesis, synthesize
from lsid_ray.synthesis.noise import A7S2

JOB = Path(__file__).resolve().parents[1] / "jobs" / "synthesize.py"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five small photographs, one of them raw."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (66, 80, 3), dtype=np.uint8)).save(folder / f"photo{index}.png")
    write_dng(folder / "raw.dng", make_frame(70, 80, cfa="BGGR"))
    return folder


def make_config(tmp_path: Path, *photos: Path, **changes) -> Synthesis:
    return replace(Synthesis(out=tmp_path / "data", photos=photos, ratios=(100, 300)), **changes)


def file_hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.dng"))
    }


def test_the_catalog_finds_all_pairs_in_all_splits(tmp_path, photos):
    config = make_config(tmp_path, photos, frames=2)
    result = synthesize(config)
    catalog = read_catalog(config.out)
    assert (catalog.problems, catalog.excluded) == ((), ())
    assert len(catalog.pairs) == 5 * 2 * 2
    assert {scene.split for scene in result.scenes} == {"train", "validation", "test"}
    for scene in result.scenes:
        pairs = [pair for pair in catalog.pairs if pair.scene == scene.name]
        assert {pair.split for pair in pairs} == {scene.split}
        assert sorted((round(pair.ratio), pair.frame) for pair in pairs) == [(100, 0), (100, 1), (300, 0), (300, 1)]


def test_frames_have_the_exposure_iso_and_cfa_of_their_scene(tmp_path, photos):
    config = make_config(tmp_path, photos)
    scenes = {scene.name: scene for scene in synthesize(config).scenes}
    for pair in read_catalog(config.out).pairs:
        short, long = read_raw(pair.short), read_raw(pair.long)
        scene = scenes[pair.scene]
        assert (short.exposure_s, long.exposure_s) == (pair.short_s, pair.long_s)
        assert short.iso == long.iso == scene.iso
        assert scene.iso in A7S2.by_iso
        assert short.cfa == long.cfa == ("BGGR" if scene.photo == "raw.dng" else "RGGB")
        noise = A7S2.by_iso[scene.iso]
        signal, expected = short.mosaic.mean() - 512, (long.mosaic.mean() - 512) / pair.ratio
        # Apart from rounding, the difference is the black-level error; clipping at zero is far below black.
        assert signal - expected == pytest.approx(noise.black_error, abs=0.5 + noise.read_scale / 10)


def test_the_data_set_depends_on_the_seed_but_not_on_order_or_workers(tmp_path, photos):
    first = make_config(tmp_path, photos)
    synthesize(first, workers=1)
    second = replace(first, out=tmp_path / "again", photos=tuple(sorted(photos.iterdir(), reverse=True)))
    synthesize(second, workers=4)
    assert file_hashes(first.out) == file_hashes(second.out)
    other_seed = replace(first, out=tmp_path / "other", seed=first.seed + 1)
    synthesize(other_seed)
    assert file_hashes(first.out) != file_hashes(other_seed.out)


def test_the_frames_of_a_scene_do_not_depend_on_other_scenes(tmp_path, photos):
    full = synthesize(make_config(tmp_path, photos)).scenes
    fewer_photos = tuple(sorted(photos.iterdir()))[1:]
    fewer = synthesize(make_config(tmp_path, *fewer_photos, out=tmp_path / "fewer")).scenes
    names = {scene.photo: scene.name for scene in full}
    for scene in fewer:
        from_all = (tmp_path / "data" / "short" / f"{names[scene.photo]}_00_0.1s.dng").read_bytes()
        assert from_all == (tmp_path / "fewer" / "short" / f"{scene.name}_00_0.1s.dng").read_bytes()


def test_each_frame_of_a_burst_has_different_noise(tmp_path, photos):
    config = make_config(tmp_path, photos, frames=2, ratios=(100,))
    synthesize(config)
    hashes = list(file_hashes(config.out).values())
    assert len(set(hashes)) == len(hashes) == 5 * 3


def test_synthesizing_an_existing_data_set_again_changes_nothing(tmp_path, photos):
    config = make_config(tmp_path, photos)
    assert synthesize(config).created
    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("*")}
    written = []
    assert not synthesize(config, on_scene=written.append).created
    assert (written, before) == ([], {path: path.stat().st_mtime_ns for path in config.out.rglob("*")})


def test_a_data_set_with_other_options_is_not_overwritten(tmp_path, photos):
    config = make_config(tmp_path, photos)
    synthesize(config)
    before = file_hashes(config.out)
    with pytest.raises(InputError, match=r"holds another data set \(frames differ\)"):
        synthesize(replace(config, frames=2))
    assert file_hashes(config.out) == before


def test_a_folder_with_other_files_is_not_overwritten(tmp_path, photos):
    config = make_config(tmp_path, photos)
    config.out.mkdir()
    (config.out / "thesis.tex").touch()
    with pytest.raises(InputError, match="is not a data set of this job"):
        synthesize(config)
    assert [path.name for path in config.out.iterdir()] == ["thesis.tex"]


def test_a_failure_leaves_no_output_folder(tmp_path, photos):
    (photos / "bad.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"bad\.png"):
        synthesize(make_config(tmp_path, photos))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_files_that_are_not_photographs_are_reported_as_ignored(tmp_path, photos):
    (photos / "LICENSE").touch()
    assert synthesize(make_config(tmp_path, photos)).ignored == (photos / "LICENSE",)


def test_duplicate_photographs_raise_an_error(tmp_path, photos):
    (photos / "copy.png").write_bytes((photos / "photo0.png").read_bytes())
    with pytest.raises(InputError, match=r"copy\.png and .*photo0\.png are identical"):
        synthesize(make_config(tmp_path, photos))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratios": ()}, "ratios"),
        ({"ratios": (100, 301)}, "between 1 and 300"),
        ({"ratios": (250, 250)}, "different exposure times"),
        ({"frames": 0}, "frames 0"),
        ({"max_side": 63}, "--max-side 63"),
    ],
)
def test_options_out_of_range_raise_an_error(tmp_path, photos, changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        synthesize(make_config(tmp_path, photos, **changes))


def test_too_few_or_missing_photographs_raise_an_error(tmp_path, photos):
    with pytest.raises(InputError, match="2 photographs; expected at least 3"):
        synthesize(make_config(tmp_path, photos / "photo0.png", photos / "photo1.png"))
    with pytest.raises(InputError, match=r"--photos .*nowhere: no such file or folder"):
        synthesize(make_config(tmp_path, tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--photos .*empty: no photographs"):
        synthesize(make_config(tmp_path, tmp_path / "empty"))


def test_the_job_makes_a_data_set_from_the_bundled_photographs(tmp_path):
    command = [sys.executable, JOB, "--out", tmp_path / "demo", "--max-side", "256"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "8 scenes, 24 short exposures" in first.stdout.splitlines()[-1]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.endswith("already holds this data set: nothing to do\n")
    manifest = json.loads((tmp_path / "demo" / MANIFEST).read_text())
    test_photos = {scene["photo"] for scene in manifest["scenes"] if scene["split"] == "test"}
    assert test_photos == {"chelsea.png", "coffee.png"}
    rejected = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True)
    assert rejected.returncode == 2
    assert rejected.stderr.startswith("error: --out ")
    assert rejected.stderr.count("\n") == 1
