"""A camera as noise synthesis sees it: the noise model at each ISO, the sensor's levels and colors."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lsid_ray.errors import InputError
from lsid_ray.raw.mosaic import layout_of

MIN_LAMBDA, MAX_LAMBDA = -0.5, 1.0  # below, the variance is infinite; from there on there are no tails
MAX_ISO = 10_000_000
MIN_DETERMINANT = 1e-4  # of a color matrix; that of the A7S II is 0.33


@dataclass(frozen=True)
class StandardErrors:
    """The standard error of each parameter of an IsoNoise; None of a parameter that was not measured."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    gain: float | None
    """None also if the gain was interpolated from other ISOs."""
    read_lambda: float | None
    read_scale: float | None
    row_sigma: float | None
    black_error: float | None
    black_sigma: float | None


@dataclass(frozen=True)
class IsoNoise:
    """The noise of a sensor at one ISO; DN are those of its camera's range."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    gain: float | None
    """System gain K, DN per electron; None if it is unknown, and with it the shot noise."""
    read_lambda: float | None
    """Shape of the read noise: lambda of a Tukey-lambda distribution, above -0.5, at most 1; None: Gaussian."""
    read_scale: float
    """Scale of that distribution in DN; if Gaussian, the standard deviation."""
    row_sigma: float
    """Standard deviation in DN of the Gaussian that each row is shifted by."""
    black_error: float
    """Mean over frames of the difference between the true black level and the file's, DN."""
    black_sigma: float
    """Its standard deviation over frames, DN."""
    standard_errors: StandardErrors | None = None
    """None if unknown, as of published parameters."""

    def problem(self) -> str:
        """What is impossible about the values, in one line; empty if nothing is."""
        values = [self.read_scale, self.row_sigma, self.black_error, self.black_sigma]
        if not all(map(math.isfinite, values)):
            return "a value is not finite"
        if self.gain is not None and not (math.isfinite(self.gain) and self.gain > 0):
            return f"gain is {self.gain}: expected more than 0, or null"
        if self.read_lambda is not None and not MIN_LAMBDA < self.read_lambda <= MAX_LAMBDA:
            return f"read_lambda is {self.read_lambda}: expected more than {MIN_LAMBDA}, at most {MAX_LAMBDA}, or null"
        if self.read_scale <= 0 or self.row_sigma < 0 or self.black_sigma < 0:
            return "a scale or a standard deviation is negative, or read_scale is 0"
        return ""


@dataclass(frozen=True)
class Sensor:
    """What a raw file of the camera says besides its noise."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    cfa: str
    """Colors of the repeating pattern, row-major: 4 letters, or X-Trans's 36."""
    black: tuple[int, ...]
    """Black level in DN, one per CFA position."""
    white: int
    """White level in DN."""
    color_matrix: tuple[tuple[float, ...], ...]
    """3x3, CIE XYZ -> camera RGB; zeros if unknown."""

    def problem(self) -> str:
        """What is impossible about the values, in one line; empty if nothing is."""
        try:
            layout_of(self.cfa)
        except InputError as error:
            return str(error)
        if len(self.black) != len(self.cfa):
            return f"{len(self.black)} black levels for the {len(self.cfa)} CFA positions"
        if not (min(self.black) >= 0 and max(self.black) < self.white <= 65535):
            return f"black level {max(self.black)} and white level {self.white}: expected 0 <= black < white <= 65535"
        if [len(row) for row in self.color_matrix] != [3, 3, 3]:
            return "color_matrix: expected 3 rows of 3"
        if not all(math.isfinite(value) for row in self.color_matrix for value in row):
            return "color_matrix: a value is not finite"
        if np.any(self.color_matrix) and abs(np.linalg.det(self.color_matrix)) < MIN_DETERMINANT:
            return "color_matrix cannot be inverted: expected that of a camera, or zeros"
        return ""


@dataclass(frozen=True)
class CameraNoise:
    """The noise of one camera, at the ISOs that were measured."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str
    """Make and model."""
    black: float
    """Black level of the range in which DN are measured; in frames of another range all noise is scaled."""
    white: float
    """White level of that range."""
    by_iso: dict[int, IsoNoise]
    sensor: Sensor | None = None
    """None if unknown, as of published parameters; data sets then have SID's A7S II's levels and colors."""
    dark_frames: str | None = None
    """SHA-256 of the file of dark frames from which read noise, row noise and the black level's error are drawn, all
    three together; None: from `by_iso`."""

    def problem(self) -> str:
        """What is impossible about the values, in one line; empty if nothing is."""
        if not (math.isfinite(self.black) and math.isfinite(self.white) and 0 <= self.black < self.white):
            return f"black is {self.black}, white is {self.white}: expected 0 <= black < white"
        if not self.by_iso:
            return "by_iso is empty: expected at least one ISO"
        for iso, noise in self.by_iso.items():
            if not 1 <= iso <= MAX_ISO:
                return f"ISO {iso}: expected 1 to {MAX_ISO:,}"
            if problem := noise.problem():
                return f"ISO {iso}: {problem}"
        if self.dark_frames is not None and not self.sensor:
            return "dark_frames without a sensor: expected its CFA"
        return self.sensor.problem() if self.sensor else ""
