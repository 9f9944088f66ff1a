"""In-plane filters of a volume's slices, and the box round the head: what several systems look at an image with."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=256)
def _smoother(size: int, sigma: float) -> np.ndarray:
    """Gaussian smoothing of a line as a matrix; rows sum to 1, so the border is not darkened."""
    distance = np.arange(size)[:, None] - np.arange(size)[None, :]
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


def gaussian(volume: np.ndarray, sigma: float) -> np.ndarray:
    """Each slice of `(S, H, W)` float32 smoothed with `sigma` pixels. Matrix products: the same cost at every scale."""
    return _smoother(volume.shape[1], sigma) @ volume @ _smoother(volume.shape[2], sigma).T


def derivatives(smooth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """In-plane central differences of `(S, H, W)`: by row, by column, and the second ones row-row, row-column, column-column."""
    by_row, by_column = np.gradient(smooth, axis=(1, 2))
    row_row, row_column = np.gradient(by_row, axis=(1, 2))
    return by_row, by_column, row_row, row_column, np.gradient(by_column, axis=2)


def eigenvalues(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the symmetric matrices [[a, b], [b, c]], larger first."""
    middle, spread = (a + c) / 2, np.sqrt(((a - c) / 2) ** 2 + b**2)
    return middle + spread, middle - spread


def head_box(foreground: np.ndarray) -> tuple[slice, slice, slice]:
    """The box round a boolean mask `(S, H, W)`, all slices kept (neighbours matter); the whole volume for an empty mask."""
    if not foreground.any():
        return (slice(None),) * 3
    rows, columns = (np.flatnonzero(foreground.any(axis)) for axis in ((0, 2), (0, 1)))
    return slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def inside(foreground: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Probabilities `(N, C)` of the foreground's voxels as a volume `(C, S, H, W)` float32, background everywhere else."""
    volume = np.zeros((probabilities.shape[1], *foreground.shape), np.float32)
    volume[0] = 1
    volume[:, foreground] = probabilities.T
    return volume
