"""Where calibration is looked at: the band around truth and prediction. The same for fitting a temperature and for measuring it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def bounding_box(mask: np.ndarray, margin: tuple[int, ...]) -> tuple[slice, ...]:
    """The smallest box around a non-empty mask, widened by `margin` voxels an axis and cut at the volume's edge."""
    box = []
    for axis, extra in enumerate(margin):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(int(filled[0]) - extra, 0), int(filled[-1]) + 1 + extra))
    return tuple(box)


def foreground_band(truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float], band_mm: float) -> np.ndarray:
    """Voxels within `band_mm` of truth or prediction: where a probability matters to a reader of the contour. Empty where both are."""
    from scipy.ndimage import distance_transform_edt

    union = truth | predicted
    band = np.zeros_like(union)
    if union.any():
        box = bounding_box(union, tuple(math.ceil(band_mm / step) for step in spacing_mm))
        band[box] = distance_transform_edt(~union[box], sampling=spacing_mm) <= band_mm
    return band
