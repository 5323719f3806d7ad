"""Failures as lines."""

from lsid_ray.errors import failure_lines


def test_many_files_with_one_reason_share_a_line() -> None:
    few = [(f"{number}.ARW", "is broken") for number in range(5)]
    assert failure_lines(few) == [f"{number}.ARW: is broken" for number in range(5)]
    many = [*few, ("x.ARW", "too dark"), ("5.ARW", "is broken")]
    assert failure_lines(many) == ["0.ARW and 5 others: is broken", "x.ARW: too dark"]
    assert failure_lines([]) == []
