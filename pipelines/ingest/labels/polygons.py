"""The area that the polygons of one slice enclose, on the lattice of pixel centres. matplotlib decides what lies inside a polygon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.errors import Refused


@dataclass(frozen=True)
class Area:
    """Pixels `mask` from pixel `start` on, and how many polygons were holes in others."""

    mask: np.ndarray
    start: np.ndarray
    holes: int = 0

    def meets(self, other: Area) -> bool:
        """Whether the two have a pixel in common."""
        low, high = np.maximum(self.start, other.start), np.minimum(self.start + self.mask.shape, other.start + other.mask.shape)
        if (low >= high).any():
            return False
        one, two = (area.mask[tuple(slice(*ends) for ends in zip(low - area.start, high - area.start, strict=True))] for area in (self, other))
        return bool((one & two).any())


def combine(polygons: Sequence[np.ndarray], xor: bool) -> Area:
    """The pixels inside an odd number of `polygons`, each `(n, 2)` in pixels (centres at whole numbers).

    With `xor` the writer asked for that (CLOSEDPLANAR_XOR). Otherwise (CLOSED_PLANAR) the standard wants holes joined to their outline by a
    keyhole, which even-odd fills rightly, and many writers nest contours instead: one inside another is a hole. Contours that cross have no
    agreed meaning. Raises `Refused` (`label-contours`).
    """
    polygons = polygons if xor else _once(polygons)
    low = np.min([np.ceil(points.min(axis=0)) for points in polygons], axis=0).astype(int)
    size = np.maximum(np.max([np.floor(points.max(axis=0)) for points in polygons], axis=0).astype(int) - low + 1, 0)
    masks = [_inside(points - low, size) for points in polygons]
    return Area(np.logical_xor.reduce(masks), low, 0 if xor else _holes(masks))


def _inside(points: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Which of the pixel centres (0, 0) to `size` lie inside one polygon, by even-odd; a centre on the line falls to one side of it only."""
    from matplotlib.path import Path

    centres = np.argwhere(np.ones(size, bool))
    return Path(points).contains_points(centres).reshape(size)


def _once(polygons: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Without copies, which would cancel."""
    return list({points.tobytes(): points for points in polygons}.values())


def _holes(masks: Sequence[np.ndarray]) -> int:
    """How many polygons lie inside an odd number of others. Raises `Refused` (`label-contours`) where two cross or cover the same."""
    inside = np.zeros(len(masks), int)
    for index, one in enumerate(masks):
        for before, other in enumerate(masks[:index]):
            shared = int((one & other).sum())
            only_one, only_other = int(one.sum()) - shared, int(other.sum()) - shared
            if shared and bool(only_one) == bool(only_other):
                how = "cross" if only_one else "cover the same"
                raise Refused("label-contours", f"two contours of one region {how} on one slice ({shared} voxels lie in both), so what they enclose "
                              "is undecided", "merge the contours in the program they were drawn with")
            inside[index if only_other else before] += bool(shared)
    return int((inside % 2).sum())
