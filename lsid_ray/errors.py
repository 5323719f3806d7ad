"""Errors that are reported to the user as one line, without a traceback."""


class InputError(ValueError):
    """A file or option cannot be used. The message names it, its value and what was expected. Exit code 2."""


class PartialFailure(Exception):
    """Some of the work failed; the message names it, and everything else was done. Exit code 1."""
