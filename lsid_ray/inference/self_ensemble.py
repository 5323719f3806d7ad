"""Self-ensemble: the mean of the predictions of a frame in all eight orientations (Lim et al. 2017, arXiv 1707.02921).

A network's errors differ between a frame and its mirror image, so the mean has smaller ones. A flipped mosaic is one of
the same kind of sensor that begins at another phase of the CFA, since all flips of a Bayer or X-Trans pattern are
shifts of it: it is packed and enhanced as any other frame, and its image is flipped back.
"""

import itertools
import math
from dataclasses import replace

import numpy as np

from lsid_ray.data.preprocess import Flips, flip
from lsid_ray.errors import InputError
from lsid_ray.model.generator import Generator
from lsid_ray.raw.frame import RawFrame

ORIENTATIONS: tuple[Flips, ...] = tuple(itertools.product((False, True), repeat=3))
"""The first is the frame as it is."""


def check_self_ensemble(generator: Generator) -> None:
    """Raises: InputError for half resolution: a pixel of a flipped frame is the mean of other sensels."""
    if generator.scale == 1:
        raise InputError(
            "--self-ensemble: at half the sensor's resolution the pixels of a flipped frame lie between those of the "
            "frame; expected a network with --generator.output full"
        )


def flip_frame(frame: RawFrame, flips: Flips) -> RawFrame:
    """The frame with its mosaic flipped (a view), and CFA and black levels from its new first sensel on."""
    period = math.isqrt(len(frame.cfa))
    rows, columns = (np.arange(side) % period for side in frame.mosaic.shape)
    rows, columns = rows[:: -1 if flips[0] else 1][:period], columns[:: -1 if flips[1] else 1][:period]
    positions = period * rows[:, None] + columns  # in the pattern, of the sensels of the flipped mosaic's first period
    order = (positions.T if flips[2] else positions).ravel()
    return replace(
        frame,
        mosaic=flip(frame.mosaic, flips),
        cfa="".join(frame.cfa[position] for position in order),
        black=tuple(frame.black[position] for position in order),
    )
