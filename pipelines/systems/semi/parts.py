"""Connected-component clean-up that learns from the support how small a lesion may be. Ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from pipelines.cohort import Case

#: Voxels that touch at a corner belong together.
TOUCHING = np.ones((3, 3, 3), dtype=bool)
#: Of the support's parts the smallest tenth may be slips of the pen.
SLIPS = 0.1


def smallest_parts(cases: Sequence[Case], labels: int) -> list[float]:
    """Voxels of the smallest connected part that counts, for each label; 0 where no case shows it."""
    smallest = []
    for value in range(1, labels + 1):
        sizes = [size for case in cases for size in _sizes(case.label() == value)[0][1:]]
        smallest.append(float(np.quantile(sizes, SLIPS)) if sizes else 0.0)
    return smallest


def without_small_parts(probabilities: np.ndarray, smallest: Sequence[float]) -> np.ndarray:
    """`(1 + K, S, H, W)` in which parts of a label of fewer voxels than `smallest` have become background; the largest always stays.

    Their probability is halved so often that background wins, not set to 0: nothing here is certain.
    """
    cleaned = probabilities.copy()
    top = probabilities.argmax(0)
    for value, limit in enumerate(smallest, start=1):
        sizes, parts = _sizes(top == value)
        if len(sizes) < 3:
            continue  # nothing, or one part
        small = sizes < limit
        small[[0, 1 + sizes[1:].argmax()]] = False
        gone = small[parts]
        kept = 0.5 * np.minimum(cleaned[0, gone], cleaned[value, gone])
        cleaned[0, gone] += cleaned[value, gone] - kept
        cleaned[value, gone] = kept
    return cleaned


def _sizes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of every part (index 0: of what is none), and the number of its part at each voxel."""
    parts, _ = ndimage.label(mask, TOUCHING)
    return np.bincount(parts.ravel()), parts
