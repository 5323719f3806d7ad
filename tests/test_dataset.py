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
from lsid_ray.raw.color import A7S2_COLOR_MATRIX
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import read_raw
from lsid_ray.synthesis.camera import CameraNoise, IsoNoise, Sensor
from lsid_ray.synthesis.camera_file import write_camera
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


CAMERA = CameraNoise(
    "NIKON TEST",
    600.0,
    15000.0,
    {100: IsoNoise(0.4, None, 3.0, 0.2, 4.0, 0.1), 3200: IsoNoise(12.0, -0.1, 9.0, 0.5, -6.0, 0.1)},
    Sensor("GBRG", (600, 590, 610, 600), 15000, ((0.9, -0.29, -0.07), (-0.45, 1.24, 0.23), (-0.09, 0.19, 0.71))),
)


def test_a_camera_of_ones_own_gives_its_isos_levels_colors_and_noise(tmp_path, photos):
    write_camera(tmp_path / "camera.json", CAMERA)
    (photos / "raw.dng").unlink()
    config = make_config(tmp_path, photos, camera=str(tmp_path / "camera.json"))
    scenes = {scene.name: scene for scene in synthesize(config).scenes}
    assert {scene.iso for scene in scenes.values()} == {100, 3200}
    for pair in read_catalog(config.out).pairs:
        short, long = read_raw(pair.short), read_raw(pair.long)
        noise = CAMERA.by_iso[scenes[pair.scene].iso]
        for frame in (short, long):
            assert (frame.camera, frame.cfa, frame.white) == ("NIKON TEST", "GBRG", 15000.0)
            assert frame.black == (600.0, 590.0, 610.0, 600.0)
            np.testing.assert_allclose(frame.color_matrix, CAMERA.sensor.color_matrix, atol=1e-4)
        signal, expected = short.mosaic.mean() - 600, (long.mosaic.mean() - 600) / pair.ratio
        assert signal - expected == pytest.approx(noise.black_error, abs=0.5 + noise.read_scale / 10)
    assert json.loads((config.out / MANIFEST).read_text())["camera"]["name"] == "NIKON TEST"


def test_white_balances_are_those_of_the_same_light_for_another_camera(tmp_path, photos):
    """The drawn gains are to the A7S II's as the gains that make D65 gray, by the color matrices."""
    write_camera(tmp_path / "camera.json", CAMERA)
    default = synthesize(make_config(tmp_path, photos))
    own = synthesize(make_config(tmp_path, photos, out=tmp_path / "own", camera=str(tmp_path / "camera.json")))
    white = np.array([0.95047, 1.0, 1.08883])  # XYZ of D65

    def gains(matrix: tuple[tuple[float, ...], ...]) -> np.ndarray:
        response = np.array(matrix) @ white
        return response[1] / response[[0, 2]]

    relative = gains(CAMERA.sensor.color_matrix) / gains(A7S2_COLOR_MATRIX)
    for before, after in zip(default.scenes, own.scenes, strict=True):
        np.testing.assert_allclose(after.white_balance, before.white_balance * relative, rtol=2e-3)


def test_published_parameters_keep_the_levels_of_sids_camera(tmp_path, photos):
    write_camera(tmp_path / "camera.json", replace(CAMERA, sensor=None))
    config = make_config(tmp_path, photos, camera=str(tmp_path / "camera.json"))
    synthesize(config)
    frames = [read_raw(path) for path in sorted(config.out.rglob("*.dng"))]
    of_photographs = [frame for frame in frames if frame.cfa == "RGGB"]
    assert len(of_photographs) == 4 * 3
    assert {(frame.camera, frame.black[0], frame.white) for frame in of_photographs} == {("SONY ILCE-7SM2", 512, 16383)}


def test_a_data_set_of_another_camera_is_not_overwritten(tmp_path, photos):
    write_camera(tmp_path / "camera.json", CAMERA)
    config = make_config(tmp_path, photos)
    own = replace(config, camera=str(tmp_path / "camera.json"))
    synthesize(own)
    assert not synthesize(own).created
    with pytest.raises(InputError, match=r"holds another data set \(camera, scenes differ\)"):
        synthesize(config)


def test_a_data_set_from_before_there_were_cameras_is_known_again(tmp_path, photos):
    config = make_config(tmp_path, photos)
    synthesize(config)
    manifest = json.loads((config.out / MANIFEST).read_text())
    assert manifest.pop("camera") is None
    (config.out / MANIFEST).write_text(json.dumps(manifest))
    assert not synthesize(config).created


def test_a_camera_without_gains_is_refused(tmp_path, photos):
    noise = {iso: replace(noise, gain=None) for iso, noise in CAMERA.by_iso.items()}
    write_camera(tmp_path / "dark.json", replace(CAMERA, by_iso=noise))
    with pytest.raises(InputError, match=r"--camera .*dark\.json: no gain at ISO 100, 3200, so no shot noise"):
        synthesize(make_config(tmp_path, photos, camera=str(tmp_path / "dark.json")))
    assert not (tmp_path / "data").exists()
