"""The amplification ratio of a pair from all that is known of it: the files, their names, and a list."""

from collections.abc import Iterator
from dataclasses import replace

from lsid_ray.data.catalog import Listed, RawPair
from lsid_ray.errors import InputError
from lsid_ray.raw.frame import FrameMetadata
from lsid_ray.raw.ratio import exposure_ratio

TOLERANCE = 1.1  # factor between two values of one setting: cameras round both what they do and what they record


def pair_ratio(pair: RawPair, short: FrameMetadata, long: FrameMetadata) -> float:
    """The ratio of a list, or else `exposure_ratio`; ISO and aperture of a list count where a file has none.

    Raises: InputError as `exposure_ratio`.
    """
    if pair.listed is not None and pair.listed.ratio is not None:
        return pair.listed.ratio
    return exposure_ratio(*_completed(pair, short, long))


def disagreements(pair: RawPair, short: FrameMetadata, long: FrameMetadata) -> str:
    """Where the files differ from their names or a list by more than a tenth, in one line; empty if nowhere."""
    return "; ".join(_disagreements(pair, short, long))


def _disagreements(pair: RawPair, short: FrameMetadata, long: FrameMetadata) -> Iterator[str]:
    listed = pair.listed or Listed("")
    for kind, frame, named_s in (("short", short, pair.short_s), ("long", long, pair.long_s)):
        for setting, of_file, other, source in (
            ("exposure time", frame.exposure_s, named_s, "its name"),
            ("ISO", frame.iso, listed.iso, listed.where),
            ("f-number", frame.aperture, listed.aperture, listed.where),
        ):
            if _differ(of_file, other):
                yield f"{kind} {setting} {of_file:g} in the file, {other:g} in {source}: the file's counts"
    short, long = _completed(pair, short, long)
    if listed.ratio is not None:
        try:
            exposed = exposure_ratio(short, long)
        except InputError:
            return
        if _differ(exposed, listed.ratio):
            yield f"ratio {listed.ratio:g} in {listed.where}, {exposed:.4g} by the exposures: the list's counts"
        return
    for name in ("iso", "aperture"):
        if (getattr(short, name) is None) != (getattr(long, name) is None):
            missing = "short" if getattr(short, name) is None else "long"
            yield f"no {'ISO' if name == 'iso' else 'f-number'} of the {missing} exposure: the ratio leaves both out"


def _completed(pair: RawPair, short: FrameMetadata, long: FrameMetadata) -> list[FrameMetadata]:
    """Both with ISO and aperture of the list where the file has none."""
    if pair.listed is None:
        return [short, long]
    listed = {"iso": pair.listed.iso, "aperture": pair.listed.aperture}
    return [
        replace(frame, **{name: value for name, value in listed.items() if getattr(frame, name) is None})
        for frame in (short, long)
    ]


def _differ(one: float | None, other: float | None) -> bool:
    return bool(one and other) and max(one, other) > TOLERANCE * min(one, other)
