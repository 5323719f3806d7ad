"""What a file's name says of its exposure."""

import pytest

from lsid_ray.raw.names import exposure_from_name, parse_sid_name


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("0.04s", 0.04),
        ("0,04s", 0.04),
        ("1-25s", 0.04),
        ("40ms", 0.04),
        (".04s", 0.04),
        ("10S", 10),
        ("0.0s", None),
        ("1-0s", None),
    ],
)
def test_exposure_times_are_read_in_the_ways_that_people_write_them(name: str, seconds: float | None) -> None:
    assert parse_sid_name(f"00001_00_{name}").exposure_s == seconds
    assert exposure_from_name(f"night_{name}.ARW") == seconds


@pytest.mark.parametrize("stem", ["0\N{ARABIC-INDIC DIGIT ZERO}001_00_0.1s", "00001_00_0.1s (1)", "00001_00_0.1"])
def test_other_names_do_not_parse(stem: str) -> None:
    assert parse_sid_name(stem) is None
