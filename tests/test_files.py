"""Enhancing a user's raw files: the plan, the images, errors of single files, and the job."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_dng import make_frame

from lsid_ray.config.schema import Experiment, GeneratorConfig
from lsid_ray.errors import InputError
from lsid_ray.inference import files as files_module
from lsid_ray.inference import raw_file
from lsid_ray.inference.files import enhance_files, plan_files
from lsid_ray.inference.frame import enhance_frame, enhance_raw
from lsid_ray.inference.raw_file import Amplification
from lsid_ray.model.checkpoint import load_generator, save_checkpoint
from lsid_ray.model.generator import Generator
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import XTRANS, pack
from lsid_ray.raw.ratio import estimate_ratio

REPOSITORY = Path(__file__).parents[1]
CPU = torch.device("cpu")
RATIO_20 = Amplification(ratio=20.0)


def save_network(folder: Path, **fields: object) -> Path:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(width=4, depth=2, **fields)).eval()
    folder.mkdir(parents=True)
    experiment = Experiment(name="x", generator=generator.config)
    save_checkpoint(folder, experiment, generator, {}, {"step": 7, "epoch": 1, "psnr_db": 1.0, "ssim": 0.1})
    return folder


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return save_network(tmp_path / "run" / "best")


def write_dark_frame(path: Path, height: int = 40, width: int = 60, **changes: object) -> RawFrame:
    """Write a dark raw file as DNG and return its frame."""
    frame = make_frame(height, width, **changes)
    frame = replace(frame, mosaic=(512 + frame.mosaic // 30).astype(np.uint16))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dng(path, frame)
    return frame


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "jobs/enhance.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, **options)


# --- Amplification


@pytest.mark.parametrize(
    ("text", "expected"),
    [("120", Amplification(ratio=120.0)), ("10s", Amplification(exposure_s=10.0)), ("auto", Amplification())],
)
def test_ratio_accepts_a_number_an_exposure_time_or_auto(text: str, expected: Amplification):
    assert Amplification.parse(text) == expected


@pytest.mark.parametrize("text", ["0.5", "0", "-3", "nan", "inf", "10m", "", "s", "-1s", "nans", "1e9"])
def test_ratio_rejects_anything_else_with_one_line(text: str):
    with pytest.raises(InputError, match=f"--ratio is {text}: expected a number from 1"):
        Amplification.parse(text)


def test_a_target_exposure_gives_each_frame_its_own_ratio():
    target_10s = Amplification(exposure_s=10.0)
    assert target_10s.for_frame(make_frame(exposure_s=0.1))[0] == pytest.approx(100)
    assert target_10s.for_frame(make_frame(exposure_s=0.01))[0] == 300, "the training range limits the ratio"
    with pytest.raises(InputError, match="no exposure time in the file"):
        target_10s.for_frame(make_frame(exposure_s=None))
    with pytest.raises(InputError, match="expected 0 < short <= long"):
        target_10s.for_frame(make_frame(exposure_s=30.0))


def test_an_estimated_ratio_is_labeled():
    frame = make_frame()
    ratio, ratio_text = Amplification().for_frame(frame)
    assert ratio == estimate_ratio(frame) and ratio_text.endswith("(estimated)")
    assert RATIO_20.for_frame(frame) == (20.0, "x20")


# --- Planning


def test_a_folder_keeps_its_subfolders_and_other_files_are_ignored(tmp_path: Path):
    for name in ("a.dng", "sub/b.ARW", "sub/ü c.nef", ".hidden/d.dng", ".e.dng", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    plan = plan_files([tmp_path / "in"], tmp_path / "out", ".png", overwrite=False)
    targets = {str(target.relative_to(tmp_path / "out")) for _, target in plan.todo}
    assert targets == {"a.png", "sub/b.png", "sub/ü c.png"}


def test_two_files_with_the_same_output_are_both_reported(tmp_path: Path):
    for name in ("a/x.dng", "b/x.dng", "b/y.dng"):
        write_dark_frame(tmp_path / name)
    files = [tmp_path / name for name in ("a/x.dng", "b/x.dng", "b/y.dng")]
    plan = plan_files(files, tmp_path / "out", ".png", overwrite=False)
    assert [source.name for source, _ in plan.todo] == ["y.dng"]
    assert {path for path, _ in plan.problems} == set(files[:2])
    assert all("x.dng would be written to" in reason for _, reason in plan.problems)


def test_a_file_given_twice_is_planned_once(tmp_path: Path):
    write_dark_frame(tmp_path / "a.dng")
    (tmp_path / "link").symlink_to(tmp_path)
    inputs = [tmp_path / "a.dng", tmp_path / "link" / "a.dng", tmp_path]
    assert len(plan_files(inputs, tmp_path / "out", ".png", overwrite=False).todo) == 1


def test_symlink_cycles_are_not_followed(tmp_path: Path):
    write_dark_frame(tmp_path / "in" / "a.dng")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "loop.dng").symlink_to(tmp_path / "in" / "loop.dng")
    plan = plan_files([tmp_path / "in"], tmp_path / "out", ".png", overwrite=False)
    assert sorted(source.name for source, _ in plan.todo) == ["a.dng", "loop.dng"]


def test_missing_files_and_folders_without_raw_files_are_errors(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.dng: no such file or folder"):
        plan_files([tmp_path / "none.dng"], tmp_path / "out", ".png", overwrite=False)
    with pytest.raises(InputError, match="no raw file in this folder"):
        plan_files([tmp_path], tmp_path / "out", ".png", overwrite=False)


# --- Enhancing


@pytest.mark.parametrize("cfa", ["RGGB", "GBRG", XTRANS.pattern], ids=["RGGB", "GBRG", "xtrans"])
def test_the_image_equals_the_networks_output_for_the_full_frame(tmp_path: Path, cfa: str):
    folder = save_network(tmp_path / "best", cfa="bayer" if len(cfa) == 4 else "xtrans")
    write_dark_frame(tmp_path / "a.dng", cfa=cfa, black=(512.0,) * len(cfa), orientation=6)
    frame = read_raw(tmp_path / "a.dng")
    generator, _ = load_generator(folder)
    image = enhance_raw(generator, frame, 20.0, CPU, memory_bytes=1)
    expected, _ = enhance_frame(generator, pack(frame.mosaic, frame.cfa), frame, 20.0, CPU)
    assert image.shape == (60, 40, 3) and image.dtype == np.uint16
    np.testing.assert_allclose(image, np.rot90(expected.numpy() * 65535, -1), atol=1)


def test_a_single_file_needs_no_cluster_and_keeps_its_exif_metadata(tmp_path: Path, network: Path):
    write_dark_frame(tmp_path / "ü a.dng", exposure_s=0.04)
    todo = ((tmp_path / "ü a.dng", tmp_path / "out" / "ü a.jpg"),)
    (result,) = enhance_files(network, todo, RATIO_20)
    assert (result.error, result.ratio_text) == ("", "x20")
    with Image.open(result.target) as image:
        assert image.size == (60, 40) and image.info["icc_profile"]
        assert image.getexif().get_ifd(0x8769)[33434] == pytest.approx(0.04)
        assert "x20" in image.getexif()[270] and "orientations" not in image.getexif()[270]
    (mean,) = enhance_files(network, ((todo[0][0], tmp_path / "mean.jpg"),), RATIO_20, self_ensemble=True)
    with Image.open(mean.target) as image, Image.open(result.target) as alone:
        assert image.getexif()[270].endswith("best, mean of 8 orientations")
        assert image.size == alone.size and image.tobytes() != alone.tobytes()
    half = save_network(tmp_path / "half", output="half")
    with pytest.raises(InputError, match="--self-ensemble: at half"):
        list(enhance_files(half, todo, RATIO_20, self_ensemble=True))


def test_broken_files_do_not_stop_the_others_on_the_cluster(cluster: None, tmp_path: Path, network: Path):
    files = [tmp_path / f"{name}.dng" for name in "abcdef"]
    for path in files:
        write_dark_frame(path)
    files[2].write_bytes(files[2].read_bytes()[:3000])
    files[3].write_text("not an image " * 500)
    files[4].unlink()  # between listing and reading
    todo = tuple((path, tmp_path / "out" / f"{path.stem}.png") for path in files)
    results = {result.source.stem: result for result in enhance_files(network, todo, RATIO_20)}
    assert {name for name, result in results.items() if result.error} == {"c", "d", "e"}
    assert "truncated" in results["c"].error and "not a raw file" in results["d"].error
    assert "no such file" in results["e"].error
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "f.png"]


def test_files_in_stages_become_the_same_images(
    cluster: None, tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stages are what GPUs take; here a CPU stands for one."""
    for name in "ab":
        write_dark_frame(tmp_path / f"{name}.dng")
    (tmp_path / "c.dng").write_text("no image " * 500)

    def results(out: str) -> list[tuple[str, str, bytes]]:
        todo = tuple((tmp_path / f"{name}.dng", tmp_path / out / f"{name}.png") for name in "abc")
        found = sorted(enhance_files(network, todo, RATIO_20), key=lambda result: result.source)
        return [(each.ratio_text, each.error, each.target.exists() and each.target.read_bytes()) for each in found]

    expected = results("one")
    assert [bool(error) for _, error, _ in expected] == [False, False, True]

    def in_stages(function: object, files: list, options: raw_file.Options, threads: int, cpus: int):
        return files_module._enhance_in_stages(files, options, {"CPU": 0.5, "GPU": 0})

    monkeypatch.setattr(files_module, "parallel_map", in_stages)
    assert results("staged") == expected


def test_a_worker_that_dies_loses_only_its_own_file(cluster: None, tmp_path: Path, network: Path, monkeypatch):
    files = [tmp_path / f"{name}.dng" for name in "abc"]
    for path in files:
        write_dark_frame(path)

    enhance = files_module._enhance

    def dying_enhance(paths: tuple[str, str], *options: object) -> tuple[str, float, str]:
        if paths[0].endswith("b.dng"):
            os._exit(1)
        return enhance(paths, *options)

    monkeypatch.setattr(files_module, "_enhance", dying_enhance)
    todo = tuple((path, tmp_path / "out" / f"{path.stem}.png") for path in files)
    results = {result.source.stem: result.error for result in enhance_files(network, todo, RATIO_20)}
    assert results == {"a": "", "b": "the process died twice, perhaps out of memory: try a lower --memory-gb", "c": ""}


def test_a_checkpoint_that_has_changed_is_loaded_again(cluster: None, tmp_path: Path, network: Path):
    for name in "ab":
        write_dark_frame(tmp_path / f"{name}.dng")

    def images() -> list[bytes]:
        todo = tuple((tmp_path / f"{name}.dng", tmp_path / "out" / f"{name}.png") for name in "ab")
        assert [result.error for result in enhance_files(network, todo, RATIO_20)] == ["", ""]
        return [target.read_bytes() for _, target in todo]

    before = images()
    assert images() == before
    network.rename(tmp_path / "old")
    save_network(network, gates=False)
    assert images() != before


def test_a_file_from_another_kind_of_sensor_is_reported(tmp_path: Path, network: Path):
    write_dark_frame(tmp_path / "x.dng", cfa=XTRANS.pattern, black=(512.0,) * 36)
    (result,) = enhance_files(network, ((tmp_path / "x.dng", tmp_path / "out" / "x.png"),), RATIO_20)
    assert "kind xtrans; expected bayer" in result.error and not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_partial_image(tmp_path: Path, network: Path, full_disk: Path):
    write_dark_frame(tmp_path / "a.dng", 600, 900)
    (result,) = enhance_files(network, ((tmp_path / "a.dng", full_disk / "a.tif"),), RATIO_20)
    assert "No space left" in result.error
    assert list(full_disk.iterdir()) == [full_disk / "filler"]


# --- The job


def test_the_job_skips_existing_images_and_reports_failures(tmp_path: Path, network: Path):
    write_dark_frame(tmp_path / "in" / "a.dng")
    first = run(network, tmp_path / "in", "--out", tmp_path / "out")
    assert first.returncode == 0, first.stderr
    assert "(estimated)" in first.stdout and "a.dng: " in first.stdout
    mtime_ns = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    (tmp_path / "in" / "b.dng").write_text("not an image " * 500)
    second = run(network, tmp_path / "in", "--out", tmp_path / "out", "--ratio", "10s")
    assert second.returncode == 1
    assert f"skipping existing images in {tmp_path / 'out'}: 1 " in second.stdout
    assert "b.dng: not a raw file that LibRaw knows" in second.stdout
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == mtime_ns
    options = ("--overwrite", "--format", "tiff", "--self-ensemble")
    third = run(network, tmp_path / "in" / "a.dng", "--out", tmp_path / "out", *options)
    assert third.returncode == 0 and (tmp_path / "out" / "a.tif").exists()
