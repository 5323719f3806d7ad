"""The ratio of a pair from the files, their names and a list, and where these contradict each other."""

from pathlib import Path

import numpy as np
import pytest

from lsid_ray.data.catalog import Listed, RawPair
from lsid_ray.data.pair_ratio import disagreements, pair_ratio
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import RawFrame


def frame(exposure_s: float | None, iso: float | None = None, aperture: float | None = None) -> RawFrame:
    return RawFrame(
        cfa="RGGB", black=(512.0,) * 4, white=16383.0, white_balance=(2.0, 1.0, 1.5), color_matrix=((0.0,) * 3,) * 3,
        orientation=0, camera="a camera", iso=iso, exposure_s=exposure_s, aperture=aperture,
        mosaic=np.zeros((4, 4), np.uint16), source="x.dng",
    )  # fmt: skip


def pair(short_s: float | None = None, long_s: float | None = None, **listed: float) -> RawPair:
    return RawPair(
        name="a", long_name="b", scene="b", split="train", frame=0, short=Path("a.dng"), long=Path("b.dng"),
        short_s=short_s, long_s=long_s, ratio=None, listed=Listed("l.csv, line 2", **listed) if listed else None,
    )  # fmt: skip


def test_time_iso_and_aperture_count() -> None:
    short, long = frame(1 / 30, iso=3200, aperture=4), frame(10, iso=100, aperture=4)
    assert pair_ratio(pair(), short, long) == pytest.approx(9.375)
    assert pair_ratio(pair(), frame(1 / 30, 3200, 4), frame(10, 200, 8)) == pytest.approx(300 / 16 / 4)
    assert disagreements(pair(), short, long) == ""


def test_the_ratio_of_a_list_wins_and_a_contradiction_is_told() -> None:
    short, long = frame(0.1, iso=200), frame(10, iso=200)
    assert pair_ratio(pair(ratio=40), short, long) == 40
    assert disagreements(pair(ratio=40), short, long) == (
        "ratio 40 in l.csv, line 2, 100 by the exposures: the list's counts"
    )
    assert disagreements(pair(ratio=95), short, long) == ""
    assert pair_ratio(pair(ratio=40), frame(None), frame(None)) == 40
    assert disagreements(pair(ratio=40), frame(None), frame(None)) == ""
    with pytest.raises(InputError, match="no exposure time"):
        pair_ratio(pair(iso=100), frame(None), frame(10))


def test_a_lists_iso_and_aperture_count_where_the_file_has_none() -> None:
    listed = pair(iso=200, aperture=8)
    assert pair_ratio(listed, frame(0.1, None, None), frame(10, iso=100, aperture=8)) == pytest.approx(50)
    assert pair_ratio(listed, frame(1, 200, None), frame(10, 200, aperture=4)) == pytest.approx(10 * 4)
    assert disagreements(listed, frame(0.1, 210, 8), frame(10, 400, 8)) == (
        "long ISO 400 in the file, 200 in l.csv, line 2: the file's counts"
    )


def test_a_setting_of_only_one_file_is_told() -> None:
    assert pair_ratio(pair(), frame(0.1, iso=800), frame(10)) == pytest.approx(100)
    assert disagreements(pair(), frame(0.1, iso=800), frame(10)) == (
        "no ISO of the long exposure: the ratio leaves both out"
    )
    assert disagreements(pair(iso=800), frame(0.1, iso=800), frame(10)) == ""
    assert "no f-number of the short exposure" in disagreements(pair(), frame(0.1), frame(10, aperture=2))


def test_a_name_that_contradicts_its_file_is_told() -> None:
    assert disagreements(pair(0.04, 10), frame(0.1), frame(10)) == (
        "short exposure time 0.1 in the file, 0.04 in its name: the file's counts"
    )
    assert disagreements(pair(0.033, 10), frame(1 / 30), frame(10)) == ""
