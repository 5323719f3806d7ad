"""What is odd about a raw frame, so that somebody looks before a network learns from it."""

import math

import numpy as np

from lsid_ray.raw.frame import RawFrame

STEP = 3  # of the sensels of each CFA position, one in as many rows and columns is looked at
MAX_BELOW_BLACK = 0.75  # share of the sensels; of a frame without any light it is half
MAX_ABOVE_WHITE = 1e-4
MAX_CLIPPED = 0.25
MAX_ZEROS, MIN_BLACK = 1e-3, 16.0  # noise does not get from such a black level to 0
MIN_HOLE = 8  # sensels side by side; dead ones lie apart, or in a column
MAX_GREEN_DIFFERENCE, MIN_GREEN_DIFFERENCE = 0.1, 1.0  # of the signal; DN
GREEN_SIGNIFICANCE = 4.0  # standard errors; at high ISO the means of noise differ, too


def oddities(frame: RawFrame) -> str:
    """What is unlikely in a sound frame whose levels are right, in one line; empty if nothing is."""
    period = math.isqrt(len(frame.cfa))
    parts = [
        (color, black, frame.mosaic[y :: STEP * period, x :: STEP * period])
        for (y, x), color, black in zip(np.ndindex(period, period), frame.cfa, frame.black, strict=True)
    ]
    count = sum(values.size for *_, values in parts)
    found = list(frame.remarks)

    below = sum(int((values < black).sum()) for _, black, values in parts) / count
    if below > MAX_BELOW_BLACK:
        found.append(f"{below:.0%} of its sensels are below the black level of {min(frame.black):g}")
    size = frame.mosaic.size
    above = np.count_nonzero(frame.mosaic > frame.white) / size
    if above > MAX_ABOVE_WHITE:
        found.append(f"{above:.2%} of its sensels are above the white level of {frame.white:g}")
    for name in "RGB":
        of_color = [values for color, _, values in parts if color == name]
        clipped = sum(int((values >= frame.white).sum()) for values in of_color) / sum(map(np.size, of_color))
        if clipped > MAX_CLIPPED:
            found.append(f"{clipped:.0%} of {name} is overexposed")
    if min(frame.black) >= MIN_BLACK:
        zeros = size - np.count_nonzero(frame.mosaic)
        longest = _longest_hole(frame.mosaic) if zeros >= MIN_HOLE else 0
        but = f"exactly 0, with a black level of {min(frame.black):g}"
        if longest >= MIN_HOLE:
            found.append(f"{zeros:,} of its sensels, up to {longest:,} side by side, are {but}")
        elif zeros > MAX_ZEROS * size:
            found.append(f"{zeros / size:.1%} of its sensels are {but}")
    of_green = [(values, black) for color, black, values in parts if color == "G"]
    if len(of_green) == 2:
        greens = [float(values.mean()) - black for values, black in of_green]
        difference, signal = abs(greens[0] - greens[1]), sum(greens) / 2
        error = math.sqrt(sum(float(values.var()) / values.size for values, _ in of_green))
        limits = MAX_GREEN_DIFFERENCE * abs(signal), MIN_GREEN_DIFFERENCE, GREEN_SIGNIFICANCE * error
        if difference > max(limits):
            found.append(f"its two greens differ by {difference:.1f} DN at a signal of {signal:.1f}")
    return "; ".join(found)


def _longest_hole(mosaic: np.ndarray) -> int:
    """The largest number of sensels side by side in a row that are exactly 0."""
    empty = mosaic[np.count_nonzero(mosaic, axis=1) <= mosaic.shape[1] - MIN_HOLE] == 0
    edges = np.flatnonzero(np.diff(np.pad(empty, ((0, 0), (1, 1))).ravel()))
    return int((edges[1::2] - edges[::2]).max(initial=0))
