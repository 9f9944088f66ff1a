"""Reference NIfTI files, and when a volume is the same as one: in world coordinates, whatever the order of its axes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PLACE_TOL_MM = 0.01  # of any voxel centre: references hold float32 affines (1e-5 mm at 100 mm) made of header values with few decimals
FLOAT_TOL = 1e-6  # of the largest value: float32 has a precision of 6e-8, and a scaled value is rounded twice


@dataclass
class Reference:
    """A NIfTI file: `volumes` is (n, i, j, k); `facts` its sidecar."""

    path: Path
    volumes: np.ndarray
    affine: np.ndarray
    facts: dict[str, object]

    @property
    def stem(self) -> str:
        return _stem(self.path)

    @property
    def shape(self) -> str:
        return "x".join(map(str, (*self.volumes.shape[1:], *self.volumes.shape[:1]))).removesuffix("x1")


def load(path: Path) -> Reference:
    """A reference with its sidecar. Colours become volumes of one channel each."""
    import nibabel

    image = nibabel.load(path)
    array = np.asanyarray(image.dataobj)
    if array.dtype.fields:
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
    array = array.reshape(array.shape + (1,) * (3 - array.ndim))
    volumes = np.moveaxis(array.reshape(*array.shape[:3], -1), -1, 0)
    return Reference(path, volumes, np.asarray(image.affine, float), _sidecar(path))


def _sidecar(path: Path) -> dict[str, object]:
    try:
        facts = json.loads(path.with_name(_stem(path) + ".json").read_text(errors="replace"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def onto(reference: Reference, shape: Sequence[int], affine: np.ndarray) -> np.ndarray | None:
    """The reference's volumes with axes permuted and flipped to a grid's, or None where it is another grid (`PLACE_TOL_MM`)."""
    index = np.linalg.inv(affine) @ reference.affine  # voxel of the reference -> voxel of the grid
    axes = np.abs(index[:3, :3]).argmax(axis=0)  # of the grid, for each of the reference's
    if sorted(axes) != [0, 1, 2] or tuple(np.array(shape)[axes]) != reference.volumes.shape[1:]:
        return None
    exact = np.eye(4)
    exact[:3, :3] = 0
    for axis, other in enumerate(axes):
        exact[other, axis] = np.sign(index[other, axis])
        exact[other, 3] = shape[other] - 1 if exact[other, axis] < 0 else 0
    if corner_distance(reference.affine, affine @ exact, reference.volumes.shape[1:]) > PLACE_TOL_MM:
        return None
    turned = np.transpose(reference.volumes, [0, *(1 + np.argsort(axes))])
    return turned[(slice(None), *(slice(None, None, -1) if exact[axis].min() < 0 else slice(None) for axis in range(3)))]


def corner_distance(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """The largest distance between equal voxels of two grids, mm: that of a corner, because it is affine in the index."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)], float)
    return float(np.linalg.norm((corners @ (affine - other).T)[:, :3], axis=1).max())


def same_values(reference: np.ndarray, ours: np.ndarray) -> bool:
    """Equal values: exactly for integers, to float32's rounding otherwise."""
    if reference.shape != ours.shape:
        return False
    if reference.dtype.kind in "iub" and np.array_equal(ours, np.rint(ours)):
        return np.array_equal(reference, ours)
    largest = max(float(np.nanmax(np.abs(reference), initial=0)), 1e-30)
    return bool(np.allclose(reference.astype(float), ours.astype(float), rtol=FLOAT_TOL, atol=FLOAT_TOL * largest, equal_nan=True))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
