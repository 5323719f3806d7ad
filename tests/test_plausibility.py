"""What is said of frames that are unlikely to be sound, and that nothing is said of sound ones."""

import re
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from test_dng import XTRANS, make_frame
from test_render import CAMERA_FILES

from lsid_ray.data.pack import pack_dataset
from lsid_ray.errors import InputError
from lsid_ray.raw.dng import write_dng
from lsid_ray.raw.frame import RawFrame, read_raw
from lsid_ray.raw.plausibility import oddities


def dark(cfa: str = "RGGB", signal: float = 3.0, noise: float = 8.0) -> RawFrame:
    """A dark short exposure with a black level of 512."""
    mosaic = np.random.default_rng(0).normal(512 + signal, noise, (240, 240)).round().clip(0)
    return make_frame(mosaic=mosaic.astype(np.uint16), cfa=cfa, black=(512.0,) * len(cfa))


def with_sensels(frame: RawFrame, share: float, value: int) -> RawFrame:
    mosaic = frame.mosaic.copy()
    mosaic[np.random.default_rng(1).random(mosaic.shape) < share] = value
    return replace(frame, mosaic=mosaic)


@pytest.mark.parametrize("cfa", ["RGGB", XTRANS], ids=["bayer", "xtrans"])
def test_of_dark_and_bright_frames_nothing_is_said(cfa: str) -> None:
    assert oddities(dark(cfa)) == "" == oddities(dark(cfa, signal=0)) == oddities(dark(cfa, signal=9000, noise=100))
    assert oddities(with_sensels(dark(cfa), 0.1, 16383)) == "", "lamps in the night"


def test_of_greens_that_differ_by_chance_nothing_is_said() -> None:
    """Of 40 frames with the noise of a high ISO, the means of some differ by more than a DN."""
    differ = 0
    for seed in range(40):
        mosaic = np.random.default_rng(seed).normal(520, 40, (240, 240)).round().astype(np.uint16)
        frame = make_frame(mosaic=mosaic, black=(512.0,) * 4)
        greens = [mosaic[y::6, x::6].mean() for y, x in ((0, 1), (1, 0))]
        differ += abs(greens[0] - greens[1]) > 2
        assert oddities(frame) == ""
    assert differ >= 3


def test_of_synthetic_and_real_files_nothing_is_said(data_root: Path) -> None:
    files = [*data_root.glob("*/*.dng"), *(path for path in CAMERA_FILES.glob("*") if path.suffix in (".dng", ".ARW"))]
    assert len(files) >= 15 and [oddities(read_raw(path)) for path in files] == [""] * len(files)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (replace(dark(), black=(530.0,) * 4), r"9\d% of its sensels are below the black level of 530"),
        (with_sensels(dark(), 0.002, 16500), r"0\.\d\d% of its sensels are above the white level of 16383"),
        (
            with_sensels(dark(), 0.4, 16383),
            r"(39|4\d)% of R is overexposed; (39|4\d)% of G is overexposed; (39|4\d)% of B is",
        ),
        (with_sensels(dark(), 0.01, 0), r"[01]\.\d% of its sensels are exactly 0, with a black level of 512"),
        (
            replace(dark(), black=(512.0, 512.0, 510.0, 512.0)),
            r"its two greens differ by 2\.\d DN at a signal of [34]\.\d$",
        ),
    ],
)
def test_what_is_odd_is_said_in_one_line(frame: RawFrame, said: str) -> None:
    assert re.match(said, oddities(frame)), oddities(frame)


@pytest.mark.parametrize("cfa", ["RGGB", XTRANS], ids=["bayer", "xtrans"])
@pytest.mark.parametrize(("first", "count"), [(0, 2048), (24_001, 300), (57_300, 300)])
def test_a_hole_of_zeros_is_said_however_small(first: int, count: int, cfa: str) -> None:
    frame = dark(cfa)
    frame.mosaic.reshape(-1)[first : first + count] = 0
    longest = max(len(list(run)) for row in frame.mosaic.tolist() for value, run in groupby(row) if value == 0)
    said = f"{count:,} of its sensels, up to {longest} side by side, are exactly 0, with a black level of 512"
    assert oddities(frame) == said


@pytest.mark.parametrize(("rows", "refused"), [(1, False), (2, True), (24, True)])
def test_a_file_with_a_larger_hole_is_refused(rows: int, refused: bool, tmp_path: Path) -> None:
    frame = make_frame(96, 96)
    frame.mosaic[30 : 30 + rows] = 0
    write_dng(tmp_path / "a.dng", frame)
    if refused:
        with pytest.raises(
            InputError, match=rf"{rows / 96:.0%} of its sensels are 0, far below the black level of 512"
        ):
            read_raw(tmp_path / "a.dng")
    else:
        assert re.search(
            "96 of its sensels, up to 96 side by side, are exactly 0", oddities(read_raw(tmp_path / "a.dng"))
        )


def test_dead_sensels_and_columns_are_no_hole() -> None:
    frame = with_sensels(dark(), 5e-4, 0)
    frame.mosaic[:, 77] = 0
    assert "side by side" not in oddities(frame)
    assert oddities(replace(dark(signal=-500, noise=30), black=(0.0,) * 4)) == "", "with a black level of 0, 0 is usual"


def test_sensels_above_white_are_said_even_if_they_are_few() -> None:
    frame = dark()
    frame.mosaic.reshape(-1)[30_000:30_012] = 65535
    assert oddities(frame) == "0.02% of its sensels are above the white level of 16383"


def test_what_is_odd_about_the_file_is_said_first() -> None:
    frame = replace(dark(), remarks=("its file has 2 raw images",), black=(530.0,) * 4)
    assert oddities(frame).startswith("its file has 2 raw images; 9")


def test_odd_files_are_named_when_they_are_packed(cluster: None, data_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for kind in ("short", "long"):
        (root / kind).mkdir(parents=True)
        for path in (data_root / kind).iterdir():
            frame = read_raw(path)
            write_dng(root / kind / path.name, with_sensels(frame, 0.01, 0) if kind == "short" else frame)
    result = pack_dataset(root, tmp_path / "shards")
    assert len(result.oddities) == 10 and all(name.startswith("short/") for name, _ in result.oddities)
    assert len(result.remarks) == 6 and result.remarks[-1] == "unlikely: 5 others, too"
    assert "of its sensels are exactly 0, with a black level of 512" in result.remarks[0]
    assert pack_dataset(root, tmp_path / "shards").remarks == [], "of files packed before it has been said"
