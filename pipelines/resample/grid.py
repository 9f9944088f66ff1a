"""Voxel grids: where the voxels of a volume lie in the world, and the one grid that all volumes of a case are brought to.

A grid changes spacing only. Its axes stay those of the reference image, so an oblique acquisition stays oblique and no slice is cut
across; thick slices stay as they were acquired, because interpolating between them would invent anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Two spacings closer than this share of each other are one spacing (headers carry about six digits).
SPACING_TOLERANCE = 1e-3
#: Two grids whose voxels all lie closer than this are one grid, in mm.
SAME_GRID_MM = 1e-3


@dataclass(frozen=True)
class Grid:
    """Shape of an array and its 4 x 4 affine from voxel indices to world coordinates in mm (RAS+, as NIfTI)."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Distance in mm between voxel centres along each array axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def directions(self) -> np.ndarray:
        """Unit vectors of the array axes, in columns."""
        return self.affine[:3, :3] / self.spacing

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def slice_axis(self) -> int:
        """The array axis across slices: the one with the largest spacing, the last one where several are equally large."""
        spacing = self.spacing
        widest = np.flatnonzero(spacing >= spacing.max() * (1 - SPACING_TOLERANCE))
        return int(widest[-1])

    def world(self, index: np.ndarray) -> np.ndarray:
        """World coordinates `(..., 3)` of voxel indices `(..., 3)`."""
        return np.asarray(index) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def center(self) -> np.ndarray:
        """World coordinates of the middle of the field of view."""
        return self.world((np.array(self.shape) - 1) / 2)

    def same_as(self, other: Grid) -> bool:
        """Whether both have the same voxels, within rounding of a header."""
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape]), axis=-1)
        return bool(np.abs(self.world(corners) - other.world(corners)).max() < SAME_GRID_MM)

    def with_spacing(self, spacing: np.ndarray) -> Grid:
        """The same field of view with another spacing in mm, centred on the same point; it grows by less than a voxel rather than shrink.

        An axis that keeps its spacing keeps its voxels exactly.
        """
        spacing = np.asarray(spacing, dtype=float)
        own = self.spacing
        kept = np.abs(spacing - own) <= SPACING_TOLERANCE * own
        spacing = np.where(kept, own, spacing)
        wanted = np.array(self.shape) * own / spacing
        shape = np.where(kept, self.shape, np.maximum(np.ceil(wanted - SPACING_TOLERANCE), 1)).astype(int)
        affine = np.eye(4)
        affine[:3, :3] = self.affine[:3, :3] * (spacing / own)
        first = (np.array(self.shape) - 1) / 2 - (shape - 1) / 2 * spacing / own
        affine[:3, 3] = self.world(np.where(kept, 0, first))
        return Grid(tuple(int(n) for n in shape), affine)

    def split(self, factors: np.ndarray) -> Grid:
        """Every voxel divided into `factors` parts along each axis; the outer edges stay where they are."""
        affine = self.affine.copy()
        affine[:3, :3] = affine[:3, :3] / factors
        affine[:3, 3] = self.world((1 / np.asarray(factors) - 1) / 2)
        return Grid(tuple(int(n * f) for n, f in zip(self.shape, factors, strict=True)), affine)


def working_grid(reference: Grid, in_plane_mm: float, slice_mm: float | None = None) -> tuple[Grid, int]:
    """The grid of a case and its slice axis.

    In-plane spacing becomes `in_plane_mm`; the slices of `reference` stay as acquired unless `slice_mm` is given. Axes and obliquity stay.
    """
    axis = reference.slice_axis
    spacing = np.full(3, in_plane_mm, dtype=float)
    spacing[axis] = reference.spacing[axis] if slice_mm is None else slice_mm
    return reference.with_spacing(spacing), axis
