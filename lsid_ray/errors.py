"""Errors that are reported to the user as one line, without a traceback."""

from collections.abc import Iterable

MAX_NAMED = 5


class InputError(ValueError):
    """A file or option cannot be used. The message names it, its value and what was expected. Exit code 2."""


class PartialFailure(Exception):
    """Some of the work failed; the message names it, and everything else was done. Exit code 1."""


def failure_lines(failures: Iterable[tuple[str, str]]) -> list[str]:
    """Names and reasons as lines "NAME: REASON"; more than MAX_NAMED with one reason share the line of the first."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in failures:
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        if len(names) > MAX_NAMED:
            names = [f"{names[0]} and {len(names) - 1} others"]
        lines += [f"{name}: {reason}" for name in names]
    return lines
