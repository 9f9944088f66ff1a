"""What the fingerprint needs of one volume, made where its voxels are in memory anyway, as plain JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

#: Voxels drawn for percentiles: enough for the 0.5th of a foreground that is a tenth of the image.
SAMPLE = 50_000
PERCENTILES = {"p0_5": 0.5, "p5": 5, "median": 50, "p95": 95, "p99_5": 99.5}
#: Between the names of segments that share a voxel.
TOGETHER = " & "


def describe(array: np.ndarray, affine: np.ndarray) -> dict[str, object]:
    """An image `(i, j, k)` in closest-canonical order: hash of its voxels, size (mm), and intensities.

    Percentiles, mean and sd are of voxels brighter than the image's mean, which in MR and PET are roughly the head; `foreground_ml` is the volume
    of these. They come from voxels drawn at random, always the same. `common_share` is the share of voxels that have the median value exactly.
    """
    array = finite(array)
    drawn = array.ravel()
    if array.size > SAMPLE:  # by index, so that the order in memory (a file's or a reader's) changes nothing
        drawn = array[np.unravel_index(np.random.default_rng(0).integers(0, array.size, SAMPLE), array.shape)]
    drawn = drawn.astype(np.float64)
    bright = drawn[drawn > drawn.mean()]
    foreground = bright if bright.size else drawn
    found = np.percentile(foreground, list(PERCENTILES.values()))
    return {
        "hash": voxel_hash(array), "spacing_mm": [round(float(value), 6) for value in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)],
        "min": float(array.min()), "max": float(array.max()), "mean": float(foreground.mean()), "sd": float(foreground.std()),
        **{name: float(value) for name, value in zip(PERCENTILES, found, strict=True)},
        "foreground_ml": round(bright.size / drawn.size * array.size * voxel_ml(affine), 3),
        "common_share": float((drawn == np.median(drawn)).mean()),
    }


def describe_label(array: np.ndarray, affine: np.ndarray, names: Mapping[int, str]) -> dict[str, object]:
    """A label: the volume (ml) of each of its segments, and of all of it. A value whose name lists several segments counts for each of them."""
    counts, unit = np.bincount(array.ravel(order="K").astype(np.int64, copy=False)), voxel_ml(affine)
    volumes = {part: 0.0 for name in names.values() for part in name.split(TOGETHER)}
    for value in np.flatnonzero(counts):
        if value:
            for part in names.get(int(value), str(value)).split(TOGETHER):
                volumes[part] = volumes.get(part, 0.0) + float(counts[value]) * unit
    return {"hash": voxel_hash(array), "volumes_ml": {name: round(volume, 4) for name, volume in volumes.items()},
            "total_ml": round(float(counts[1:].sum()) * unit, 4)}


def voxel_ml(affine: np.ndarray) -> float:
    """The volume of a voxel."""
    return float(abs(np.linalg.det(np.asarray(affine, float)[:3, :3]))) / 1000.0


def finite(array: np.ndarray) -> np.ndarray:
    """The array with 0 for what is no number, as images are written."""
    if array.dtype.kind != "f" or np.isfinite(array.min() + array.max()):  # a single NaN makes both NaN
        return array
    return np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)


def voxel_hash(array: np.ndarray) -> str:
    """SHA-256 of shape and voxels as 32-bit floats: equal for equal images, whatever their header, file format or number type."""
    voxels = np.array(finite(array), np.float32, order="C")
    if array.dtype.kind == "f":
        voxels += np.float32(0)  # -0, which whole numbers do not have, becomes 0
    digest = hashlib.sha256(np.array(array.shape, "<i8").tobytes())
    digest.update(voxels)
    return digest.hexdigest()
