"""What a user's mistake looks like: one line, exit code 2, no traceback."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """A file or option is not usable. The message names it, its value and what was expected."""


class PartFailure(Exception):
    """Some inputs failed and were named; everything else was done. A job that ends so has exit code 1."""


def run_job(main: Callable[[], None]) -> None:
    """Run a job's `main`; an InputError becomes one line and exit code 2, a PartFailure exit code 1."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except PartFailure as failure:
        print(f"incomplete: {failure}", file=sys.stderr)
        sys.exit(1)
