"""A data set from photographs: SID's layout, one result for a seed, complete or absent."""

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
from lsid_ray.data.synthesize import RECORD, Synthesis, synthesize
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.raw.noise import A7S2

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


def config_of(tmp_path: Path, *photos: Path, **changes) -> Synthesis:
    return replace(Synthesis(out=tmp_path / "data", photos=photos, ratios=(100, 300)), **changes)


def files_of(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.dng"))
    }


def test_the_catalog_finds_every_pair_in_every_split(tmp_path, photos):
    config = config_of(tmp_path, photos, frames=2)
    outcome = synthesize(config)
    catalog = read_catalog(config.out)
    assert (catalog.problems, catalog.excluded) == ((), ())
    assert len(catalog.pairs) == 5 * 2 * 2
    assert {scene.split for scene in outcome.scenes} == {"train", "validation", "test"}
    for scene in outcome.scenes:
        pairs = [pair for pair in catalog.pairs if pair.scene == scene.name]
        assert {pair.split for pair in pairs} == {scene.split}
        assert sorted((round(pair.ratio), pair.frame) for pair in pairs) == [
            (100, 0),
            (100, 1),
            (300, 0),
            (300, 1),
        ]


def test_frames_carry_exposure_iso_and_the_photographs_pattern(tmp_path, photos):
    config = config_of(tmp_path, photos)
    scenes = {scene.name: scene for scene in synthesize(config).scenes}
    for pair in read_catalog(config.out).pairs:
        short, long = read_raw(pair.short), read_raw(pair.long)
        scene = scenes[pair.scene]
        assert (short.exposure_s, long.exposure_s) == (pair.short_s, pair.long_s)
        assert short.iso == long.iso == scene.iso
        assert scene.iso in A7S2
        assert short.cfa == long.cfa == ("BGGR" if scene.photo == "raw.dng" else "RGGB")
        signal, expected = short.mosaic.mean() - 512, (long.mosaic.mean() - 512) / pair.ratio
        # Rounding aside, what is left is the black-level error; clipping at zero is far below black.
        assert signal - expected == pytest.approx(A7S2[scene.iso][4], abs=0.5 + A7S2[scene.iso][2] / 10)


def test_one_seed_gives_one_data_set_for_any_order_and_number_of_workers(tmp_path, photos):
    listed = sorted(photos.iterdir())
    first = config_of(tmp_path, photos)
    synthesize(first, workers=1)
    second = replace(first, out=tmp_path / "again", photos=tuple(reversed(listed)))
    synthesize(second, workers=4)
    assert files_of(first.out) == files_of(second.out)
    other = replace(first, out=tmp_path / "other", seed=first.seed + 1)
    synthesize(other)
    assert files_of(first.out) != files_of(other.out)


def test_a_scenes_frames_depend_on_no_other_scene(tmp_path, photos):
    full = synthesize(config_of(tmp_path, photos)).scenes
    fewer_photos = tuple(sorted(photos.iterdir()))[1:]
    fewer = synthesize(config_of(tmp_path, *fewer_photos, out=tmp_path / "fewer")).scenes
    names = {scene.photo: scene.name for scene in full}
    for scene in fewer:
        one = (tmp_path / "data" / "short" / f"{names[scene.photo]}_00_0.1s.dng").read_bytes()
        assert one == (tmp_path / "fewer" / "short" / f"{scene.name}_00_0.1s.dng").read_bytes()


def test_frames_of_a_burst_have_noise_of_their_own(tmp_path, photos):
    config = config_of(tmp_path, photos, frames=2, ratios=(100,))
    synthesize(config)
    hashes = list(files_of(config.out).values())
    assert len(set(hashes)) == len(hashes) == 5 * 3


def test_the_same_command_again_does_nothing(tmp_path, photos):
    config = config_of(tmp_path, photos)
    assert synthesize(config).made
    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("*")}
    heard = []
    assert not synthesize(config, on_scene=heard.append).made
    assert (heard, before) == ([], {path: path.stat().st_mtime_ns for path in config.out.rglob("*")})


def test_a_folder_made_otherwise_is_refused_and_kept(tmp_path, photos):
    config = config_of(tmp_path, photos)
    synthesize(config)
    before = files_of(config.out)
    with pytest.raises(InputError, match=r"holds a data set made otherwise \(frames\)"):
        synthesize(replace(config, frames=2))
    assert files_of(config.out) == before


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, photos):
    config = config_of(tmp_path, photos)
    config.out.mkdir()
    (config.out / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something else"):
        synthesize(config)
    assert [path.name for path in config.out.iterdir()] == ["thesis.tex"]


def test_a_failure_on_the_way_leaves_nothing(tmp_path, photos):
    (photos / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.png"):
        synthesize(config_of(tmp_path, photos))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_files_that_are_no_photographs_are_told(tmp_path, photos):
    (photos / "LICENSE").touch()
    assert synthesize(config_of(tmp_path, photos)).ignored == (photos / "LICENSE",)


def test_one_photograph_twice_is_refused(tmp_path, photos):
    (photos / "copy.png").write_bytes((photos / "photo0.png").read_bytes())
    with pytest.raises(InputError, match=r"copy\.png and .*photo0\.png are the same"):
        synthesize(config_of(tmp_path, photos))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratios": ()}, "ratios"),
        ({"ratios": (100, 301)}, "between 1 and 300"),
        ({"ratios": (250, 250)}, "same exposure time"),
        ({"frames": 0}, "frames 0"),
        ({"max_side": 63}, "max_side 63"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, photos, changes: dict, words: str):
    with pytest.raises(InputError, match=words):
        synthesize(config_of(tmp_path, photos, **changes))


def test_too_few_or_missing_photographs_are_named(tmp_path, photos):
    with pytest.raises(InputError, match="2 photographs: expected at least 3"):
        synthesize(config_of(tmp_path, photos / "photo0.png", photos / "photo1.png"))
    with pytest.raises(InputError, match=r"photographs .*nowhere: no such file or folder"):
        synthesize(config_of(tmp_path, tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"photographs .*empty: no PNG"):
        synthesize(config_of(tmp_path, tmp_path / "empty"))


def test_the_command_makes_scikit_images_photographs_a_data_set(tmp_path):
    command = [sys.executable, JOB, "--out", tmp_path / "demo", "--max-side", "256"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "8 scenes, 24 short exposures" in first.stdout.splitlines()[-1]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.endswith("already holds this data set: nothing to do\n")
    record = json.loads((tmp_path / "demo" / RECORD).read_text())
    assert {scene["photo"] for scene in record["scenes"] if scene["split"] == "test"} == {
        "chelsea.png",
        "coffee.png",
    }
    refused = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: output folder")
    assert refused.stderr.count("\n") == 1
