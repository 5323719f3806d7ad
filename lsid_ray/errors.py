"""What goes wrong through no fault of the program."""


class InputError(ValueError):
    """A file or option is not usable. The message names it, its value and what was expected."""


class PartFailure(Exception):
    """Some inputs failed and were named; everything else was done. A job that ends so has exit code 1."""
