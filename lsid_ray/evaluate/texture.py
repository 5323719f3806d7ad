"""Texture kept: how much detail an image has beside its target's, by its size, and how much of that is the scene's own.

PSNR rewards smoothing, and an adversarial loss may invent. Neither shows in one number, but in two by spatial
frequency: the power of the image over that of the target (1 is right, below is smoothing, above is noise or invention),
and the coherence of both (1: the same texture, 0: another one).
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

TILE = 128  # pixels; a period of 32 fits four times
BANDS = {"2px": (1 / 4, 1 / 2), "4px": (1 / 8, 1 / 4), "8px": (1 / 16, 1 / 8), "16px": (1 / 32, 1 / 16)}
"""Cycles per pixel of each band, named by its shortest period; its longest is twice that."""
LUMINANCE = (0.2126, 0.7152, 0.0722)  # Rec. 709, of the image's own values
BATCH = 256  # tiles at once


def texture(image: np.ndarray | Tensor, target: np.ndarray | Tensor) -> dict[str, float]:
    """{"texture_2px": power, "coherence_2px": coherence, ...} for each band of BANDS.

    image, target: (H, W, 3) floats in [0, 1], clamped here. Both are cut into tiles, each without its mean and weighted
    by a Hann window; sums are over all tiles and all frequencies of a band. The coherence is the correlation of the
    two images after a filter that passes the band alone. NaN if a band of the target, or of the image, is empty, and
    for frames smaller than a tile.
    """
    if min(image.shape[:2]) < TILE:
        return {f"{name}_{band}": math.nan for band in BANDS for name in ("texture", "coherence")}
    tiles = [_tiles(torch.as_tensor(frame)) for frame in (image, target)]
    bands, window = _bands(tiles[0].device)
    sums = torch.zeros(3, len(BANDS), dtype=torch.float64, device=tiles[0].device)
    for first in range(0, len(tiles[0]), BATCH):
        a, b = (_spectrum(part[first : first + BATCH], window) for part in tiles)
        powers = torch.stack([a.abs().square(), b.abs().square(), (a * b.conj()).real]).sum(1, dtype=torch.float64)
        sums += torch.einsum("sij,kij->sk", powers, bands)
    result = {}
    for name, (of_image, of_target, both) in zip(BANDS, sums.T.tolist(), strict=True):
        result[f"texture_{name}"] = of_image / of_target if of_target > 0 else math.nan
        product = of_image * of_target
        result[f"coherence_{name}"] = both / math.sqrt(product) if product > 0 else math.nan
    return result


def texture_error_db(bands: dict[str, float]) -> float:
    """How far the power of an image's detail is from its target's: 0 is right, in dB, whether too little or too much.

    bands: of `texture`. The root mean square over the bands of 10 log10 of the ratio of powers; NaN if one is unknown.
    """
    ratios = [bands[f"texture_{band}"] for band in BANDS]
    if not all(ratio > 0 for ratio in ratios):
        return math.nan
    return math.sqrt(sum((10 * math.log10(ratio)) ** 2 for ratio in ratios) / len(ratios))


def _tiles(frame_HW3: Tensor) -> Tensor:
    """Luminance of the tiles, (N, TILE, TILE) float32; a remainder at the edges is left out."""
    weights = torch.tensor(LUMINANCE, device=frame_HW3.device)
    luminance = frame_HW3.detach().float().clamp(0, 1) @ weights
    return luminance.unfold(0, TILE, TILE).unfold(1, TILE, TILE).reshape(-1, TILE, TILE)


def _spectrum(tiles: Tensor, window: Tensor) -> Tensor:
    mean = (tiles * window).sum((1, 2), keepdim=True) / window.sum()
    return torch.fft.rfft2((tiles - mean) * window)


@lru_cache(maxsize=4)
def _bands(device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights of the frequencies of a real transform in each band, (bands, TILE, TILE // 2 + 1), and the window."""
    rows, columns = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    frequency = np.hypot(rows, columns)
    twice = np.where((columns > 0) & (columns < 0.5), 2.0, 1.0)  # the other half of the plane
    bands = np.stack([twice * ((frequency >= low) & (frequency < high)) for low, high in BANDS.values()])
    window = np.outer(np.hanning(TILE), np.hanning(TILE))
    return torch.from_numpy(bands).to(device), torch.from_numpy(window).float().to(device)
