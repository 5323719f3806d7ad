"""A user's raw files: what is planned, what is written, what is said of files that cannot be done."""

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

from lsid_ray import config
from lsid_ray.errors import InputError
from lsid_ray.evaluate import deliver as deliver_module
from lsid_ray.evaluate.deliver import Amplification, deliver, photograph, plan
from lsid_ray.evaluate.enhance import enhance
from lsid_ray.model import checkpoint
from lsid_ray.model.generator import Generator
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.mosaic import XTRANS, pack
from lsid_ray.raw.ratio import estimate_ratio

HOUSE = Path(__file__).parents[1]
CPU = torch.device("cpu")
GIVEN = Amplification(ratio=20.0)


def saved_network(folder: Path, **fields: object) -> Path:
    torch.manual_seed(0)
    generator = Generator(config.Generator(width=4, depth=2, **fields)).eval()
    folder.mkdir(parents=True)
    experiment = config.Experiment(name="x", generator=generator.config)
    checkpoint.save(folder, experiment, generator, {}, {"step": 7, "epoch": 1, "psnr_db": 1.0, "ssim": 0.1})
    return folder


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return saved_network(tmp_path / "run" / "best")


def dark(path: Path, height: int = 40, width: int = 60, **changes: object) -> RawFrame:
    """A dark raw file, written."""
    frame = make_frame(height, width, **changes)
    frame = replace(frame, mosaic=(512 + frame.mosaic // 30).astype(np.uint16))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dng(path, frame)
    return frame


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "jobs/enhance.py", *map(str, arguments)]
    return subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=240, **options)


# --- What is amplified


@pytest.mark.parametrize(
    ("text", "expected"),
    [("120", Amplification(ratio=120.0)), ("10s", Amplification(exposure_s=10.0)), ("auto", Amplification())],
)
def test_a_ratio_is_a_number_an_exposure_time_or_estimated(text: str, expected: Amplification):
    assert Amplification.of(text) == expected


@pytest.mark.parametrize("text", ["0.5", "0", "-3", "nan", "inf", "10m", "", "s", "-1s", "nans", "1e9"])
def test_anything_else_is_one_clear_line(text: str):
    with pytest.raises(InputError, match=f"--ratio is {text}: expected a number from 1"):
        Amplification.of(text)


def test_the_exposure_to_come_to_gives_each_frame_its_own_ratio():
    wanted = Amplification(exposure_s=10.0)
    assert wanted.for_frame(make_frame(exposure_s=0.1))[0] == pytest.approx(100)
    assert wanted.for_frame(make_frame(exposure_s=0.01))[0] == 300, "as far as networks are trained"
    with pytest.raises(InputError, match="no exposure time in the file"):
        wanted.for_frame(make_frame(exposure_s=None))
    with pytest.raises(InputError, match="expected 0 < short <= long"):
        wanted.for_frame(make_frame(exposure_s=30.0))


def test_an_estimated_ratio_says_so():
    frame = make_frame()
    ratio, words = Amplification().for_frame(frame)
    assert ratio == estimate_ratio(frame) and words.endswith("(estimated)")
    assert GIVEN.for_frame(frame) == (20.0, "x20")


# --- What is planned


def test_a_folder_keeps_its_folders_and_leaves_other_files_alone(tmp_path: Path):
    for name in ("a.dng", "sub/b.ARW", "sub/ü c.nef", ".hidden/d.dng", ".e.dng", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    work = plan([tmp_path / "in"], tmp_path / "out", ".png", overwrite=False)
    targets = {str(target.relative_to(tmp_path / "out")) for _, target in work.todo}
    assert targets == {"a.png", "sub/b.png", "sub/ü c.png"}


def test_two_files_that_would_become_one_picture_are_both_named(tmp_path: Path):
    for name in ("a/x.dng", "b/x.dng", "b/y.dng"):
        dark(tmp_path / name)
    files = [tmp_path / name for name in ("a/x.dng", "b/x.dng", "b/y.dng")]
    work = plan(files, tmp_path / "out", ".png", overwrite=False)
    assert [source.name for source, _ in work.todo] == ["y.dng"]
    assert {path for path, _ in work.problems} == set(files[:2])
    assert all("x.dng would become" in reason for _, reason in work.problems)


def test_a_file_given_twice_is_done_once(tmp_path: Path):
    dark(tmp_path / "a.dng")
    (tmp_path / "link").symlink_to(tmp_path)
    inputs = [tmp_path / "a.dng", tmp_path / "link" / "a.dng", tmp_path]
    assert len(plan(inputs, tmp_path / "out", ".png", overwrite=False).todo) == 1


def test_a_loop_of_links_is_not_walked(tmp_path: Path):
    dark(tmp_path / "in" / "a.dng")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "loop.dng").symlink_to(tmp_path / "in" / "loop.dng")
    work = plan([tmp_path / "in"], tmp_path / "out", ".png", overwrite=False)
    assert sorted(source.name for source, _ in work.todo) == ["a.dng", "loop.dng"]


def test_what_is_not_there_is_a_mistake(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.dng: no such file or folder"):
        plan([tmp_path / "none.dng"], tmp_path / "out", ".png", overwrite=False)
    with pytest.raises(InputError, match="holds no raw file"):
        plan([tmp_path], tmp_path / "out", ".png", overwrite=False)


# --- What is delivered


@pytest.mark.parametrize("cfa", ["RGGB", "GBRG", XTRANS.pattern], ids=["RGGB", "GBRG", "xtrans"])
def test_the_picture_is_the_networks_of_the_whole_frame(tmp_path: Path, cfa: str):
    folder = saved_network(tmp_path / "best", cfa="bayer" if len(cfa) == 4 else "xtrans")
    dark(tmp_path / "a.dng", cfa=cfa, black=(512.0,) * len(cfa), orientation=6)
    frame = read_raw(tmp_path / "a.dng")
    generator, _ = checkpoint.load_generator(folder)
    image = photograph(generator, frame, 20.0, CPU, memory_bytes=1)
    whole, _ = enhance(generator, pack(frame.mosaic, frame.cfa), frame, 20.0, CPU)
    assert image.shape == (60, 40, 3) and image.dtype == np.uint16
    np.testing.assert_allclose(image, np.rot90(whole.numpy() * 65535, -1), atol=1)


def test_one_file_needs_no_cluster_and_keeps_what_the_camera_wrote(tmp_path: Path, network: Path):
    dark(tmp_path / "ü a.dng", exposure_s=0.04)
    todo = ((tmp_path / "ü a.dng", tmp_path / "out" / "ü a.jpg"),)
    (done,) = deliver(network, todo, GIVEN)
    assert (done.error, done.amplified) == ("", "x20")
    with Image.open(done.target) as image:
        assert image.size == (60, 40) and image.info["icc_profile"]
        assert image.getexif().get_ifd(0x8769)[33434] == pytest.approx(0.04)
        assert "x20" in image.getexif()[270]


def test_many_files_over_the_cluster_and_a_bad_one_does_not_stop_them(cluster: None, tmp_path: Path, network: Path):
    files = [tmp_path / f"{name}.dng" for name in "abcdef"]
    for path in files:
        dark(path)
    files[2].write_bytes(files[2].read_bytes()[:3000])
    files[3].write_text("no picture " * 500)
    files[4].unlink()  # between listing and reading
    todo = tuple((path, tmp_path / "out" / f"{path.stem}.png") for path in files)
    results = {done.source.stem: done for done in deliver(network, todo, GIVEN)}
    assert {name for name, done in results.items() if done.error} == {"c", "d", "e"}
    assert "truncated" in results["c"].error and "not a raw file" in results["d"].error
    assert "no such file" in results["e"].error
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "f.png"]


def test_a_process_that_dies_costs_its_own_file_only(cluster: None, tmp_path: Path, network: Path, monkeypatch):
    files = [tmp_path / f"{name}.dng" for name in "abc"]
    for path in files:
        dark(path)

    class Dying(deliver_module._Enhancer):
        def __call__(self, row: dict[str, str]) -> dict:
            if row["source"].endswith("b.dng"):
                os._exit(1)
            return super().__call__(row)

    monkeypatch.setattr(deliver_module, "_Enhancer", Dying)
    todo = tuple((path, tmp_path / "out" / f"{path.stem}.png") for path in files)
    results = {done.source.stem: done.error for done in deliver(network, todo, GIVEN)}
    assert results == {"a": "", "b": "the process that worked on it died (out of memory?)", "c": ""}


def test_a_sensor_the_network_does_not_know_is_named(tmp_path: Path, network: Path):
    dark(tmp_path / "x.dng", cfa=XTRANS.pattern, black=(512.0,) * 36)
    (done,) = deliver(network, ((tmp_path / "x.dng", tmp_path / "out" / "x.png"),), GIVEN)
    assert "kind xtrans; expected bayer" in done.error and not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, network: Path, full_disk: Path):
    dark(tmp_path / "a.dng", 200, 300)
    (done,) = deliver(network, ((tmp_path / "a.dng", full_disk / "a.tif"),), GIVEN)
    assert "No space left" in done.error
    assert list(full_disk.iterdir()) == [full_disk / "filler"]


# --- The job


def test_the_job_does_what_is_missing_only_and_names_what_failed(tmp_path: Path, network: Path):
    dark(tmp_path / "in" / "a.dng")
    first = run(network, tmp_path / "in", "--out", tmp_path / "out")
    assert first.returncode == 0, first.stderr
    assert "(estimated)" in first.stdout and "a.dng: " in first.stdout
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    (tmp_path / "in" / "b.dng").write_text("no picture " * 500)
    second = run(network, tmp_path / "in", "--out", tmp_path / "out", "--ratio", "10s")
    assert second.returncode == 1
    assert "1 pictures are in" in second.stdout and "b.dng: not a raw file that LibRaw knows" in second.stdout
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before
    third = run(network, tmp_path / "in" / "a.dng", "--out", tmp_path / "out", "--overwrite", "--format", "tiff")
    assert third.returncode == 0 and (tmp_path / "out" / "a.tif").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none", "a.dng"], "none is not a checkpoint"),
        (["BEST", "none.dng"], "none.dng: no such file or folder"),
        (["BEST"], "inputs|no raw file given"),
        (["BEST", "a.dng", "--ratio", "0.5"], "--ratio is 0.5: expected a number from 1"),
        (["BEST", "a.dng", "--memory-gb", "0"], "--memory-gb is 0.0: expected more than 0"),
        (["BEST", "a.dng", "--use-gpu"], "--use-gpu: there is no GPU"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, network: Path, arguments: list[str], words: str):
    if "--use-gpu" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    dark(tmp_path / "a.dng")
    places = {"BEST": network, "a.dng": tmp_path / "a.dng"}
    done = run(*(places.get(a, a) for a in arguments), "--out", tmp_path / "out", env={**os.environ})
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert any(word in done.stderr for word in words.split("|"))
