"""Frozen tokens where a baseline wants them: at voxels, or at the cells of the finest grid and from there to voxels.

Token (i, j) of a level of stride s covers the pixels `s * i ... s * (i + 1) - 1`, so its centre lies at `s * i + (s - 1) / 2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.systems.protocol import Task

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def bilinear(where: np.ndarray, shape: Sequence[int], stride: int) -> csr_matrix:
    """Weights `(N, S * h * w)` float32 that take tokens `(S * h * w, C)` of a grid `shape` to positions `where`.

    where: `(3, N)`, slice, row and column in pixels. Beyond the outermost tokens' centres they are repeated.
    """
    from scipy.sparse import csr_matrix

    slices, rows, columns = where
    corners = []
    for axis, size in ((rows, shape[1]), (columns, shape[2])):
        position = np.clip((axis + 0.5) / stride - 0.5, 0, size - 1)
        first = position.astype(np.int64)
        share = (position - first).astype(np.float32)
        corners.append(((first, 1 - share), (np.minimum(first + 1, size - 1), share)))
    index = np.stack([(slices.astype(np.int64) * shape[1] + row) * shape[2] + column for row, _ in corners[0] for column, _ in corners[1]], axis=1)
    weight = np.stack([a * b for _, a in corners[0] for _, b in corners[1]], axis=1)
    return csr_matrix((weight.ravel(), index.ravel(), np.arange(0, 4 * len(index) + 1, 4)), shape=(len(index), int(np.prod(shape[:3]))))


def modalities_with_tokens(case: Case, task: Task) -> list[str]:
    """Modalities of the task that the case has an image and tokens of. Raises `DataError` where there is none."""
    known = [modality for modality in task.modalities if modality in case.images and modality in case.tokens]
    if not known:
        raise DataError(f"{case.id} has no cached tokens for any of its images; run the embed stage on this cohort")
    return known


def token_width(task: Task) -> int:
    """Values of a position in one modality, all levels together."""
    return sum(channels for channels, _ in task.backbone.levels.values())


class TokenReader:
    """All levels of one image, read once."""

    def __init__(self, case: Case, modality: str, task: Task):
        self.levels = []
        tokens = case.token_levels(modality)
        for name, (_, stride) in task.backbone.levels.items():
            values = np.moveaxis(np.asarray(tokens[name], np.float32), 1, -1)
            self.levels.append((np.ascontiguousarray(values).reshape(-1, values.shape[-1]), values.shape, stride))

    def at(self, where: np.ndarray) -> np.ndarray:
        """Tokens `(N, D)` float32 at positions `(3, N)`, every level interpolated from its own grid."""
        return np.concatenate([bilinear(where, shape, stride) @ values for values, shape, stride in self.levels], axis=1)


class VoxelTokens:
    """Tokens of the foreground voxels of a case, in the order of `np.nonzero`: rows as of an array `(N, M * (D + 1))`, made when asked for.

    For each modality its tokens and a flag that it is there; all zeros for a missing one.
    """

    def __init__(self, case: Case, task: Task):
        self.where = np.stack(np.nonzero(case.foreground()))
        self.width = token_width(task)
        known = modalities_with_tokens(case, task)
        self.readers = [TokenReader(case, modality, task) if modality in known else None for modality in task.modalities]

    def __len__(self) -> int:
        return self.where.shape[1]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        where = self.where[:, rows]
        features = np.zeros((where.shape[1], len(self.readers), self.width + 1), np.float32)
        for modality, reader in enumerate(self.readers):
            if reader:
                features[:, modality, :-1], features[:, modality, -1] = reader.at(where), 1
        return features.reshape(len(features), -1)


@dataclass(frozen=True)
class Cells:
    """The cells of the finest token grid that some foreground voxel is interpolated from."""

    mask: np.ndarray  # (S, h, w) bool
    stride: int

    @classmethod
    def of(cls, case: Case, task: Task) -> Cells:
        from scipy.ndimage import maximum_filter

        stride = min(stride for _, stride in task.backbone.levels.values())
        foreground = case.foreground()
        slices, height, width = foreground.shape
        padded = np.pad(foreground, ((0, 0), (0, -height % stride), (0, -width % stride)))
        covered = padded.reshape(slices, padded.shape[1] // stride, stride, padded.shape[2] // stride, stride).any((2, 4))
        return cls(maximum_filter(covered, (1, 3, 3)), stride)

    def centres(self) -> np.ndarray:
        """Positions in pixels `(3, N)`."""
        slices, rows, columns = np.nonzero(self.mask)
        return np.stack([slices, *(self.stride * axis + (self.stride - 1) / 2 for axis in (rows, columns))])

    def to_voxels(self, case: Case, values: np.ndarray) -> np.ndarray:
        """Values `(N, K)` of the cells, interpolated to the foreground voxels `(V, K)`."""
        grid = np.zeros((*self.mask.shape, values.shape[1]), np.float32)
        grid[self.mask] = values
        where = np.stack(np.nonzero(case.foreground()))
        return bilinear(where, self.mask.shape, self.stride) @ grid.reshape(-1, values.shape[1])
