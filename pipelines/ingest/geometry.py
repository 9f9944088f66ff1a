"""Is this stack of slices a volume? Asked before any pixel is read, because readers differ in what they do with a damaged one.

Common readers fill, squeeze or reorder damaged stacks without a word. Here each kind of damage has a code and its numbers. Coordinates are
DICOM's (PS3.3 C.7.6.2.1.1): millimetres, LPS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipelines.errors import Refused

ORIENTATION_TOL = 1e-3  # of a direction cosine, 0.06 degrees: rounding in headers is below, a localiser's planes are far above
PIXEL_SPACING_TOL_MM = 1e-3
DUPLICATE_MM = 1e-2  # slices nearer than this are at the same place
SPACING_TOL = 1e-2  # of the mean step; highdicom's own limit
LATERAL_TOL_MM = 0.1  # how far a slice may slide off the stack's normal before the affine is wrong by more than that
MULTIPLE_TOL = 0.1  # how far a gap may be from a whole number of steps to count as missing slices
EXPORT_AGAIN = "export the series again"


def check_uniform(values: Sequence[object], code: str, what: str, remedy: str) -> None:
    """Refuse a series whose slices differ in `values` (sizes, frames of reference, ...). The values themselves may identify."""
    if len(kinds := Counter(values)) > 1:
        raise Refused(code, f"its {len(values)} slices have {len(kinds)} different {what} ({_shares(kinds)} slices)", remedy)


def check_stack(orientations: np.ndarray, positions: np.ndarray, pixel_spacings: np.ndarray) -> None:
    """Refuse slices that do not make one regular volume.

    Arguments: direction cosines `(n, 6)`, positions `(n, 3)` in mm, pixel spacings `(n, 2)` in mm, in any order. Raises `Refused`.
    """
    for array, what in ((orientations, "ImageOrientationPatient"), (positions, "ImagePositionPatient"), (pixel_spacings, "PixelSpacing")):
        if not np.isfinite(array).all():
            raise Refused("no-geometry", f"{what} has values that are no numbers", EXPORT_AGAIN)
    if (pixel_spacings <= 0).any():
        raise Refused("no-geometry", f"PixelSpacing is {pixel_spacings.min():g} mm", EXPORT_AGAIN)
    if (spread := np.ptp(pixel_spacings, axis=0).max()) > PIXEL_SPACING_TOL_MM:
        raise Refused("mixed-spacing", f"PixelSpacing differs by {spread:.3g} mm between slices", "split it into one series per acquisition")
    _check_orientation(orientations)
    if len(positions) < 2:
        raise Refused("single-slice", "it has one slice, which has no slice spacing", "give a series with at least two slices")
    _check_positions(positions, np.cross(orientations[0, :3], orientations[0, 3:]))


def _check_orientation(orientations: np.ndarray) -> None:
    rows, columns = orientations[:, :3], orientations[:, 3:]
    if max(np.abs(np.einsum("ni,ni->n", rows, columns)).max(), *(np.abs(np.linalg.norm(axis, axis=1) - 1).max() for axis in (rows, columns))) > 1e-2:
        raise Refused("no-geometry", "ImageOrientationPatient is not a pair of perpendicular unit vectors", EXPORT_AGAIN)
    if (spread := np.ptp(orientations, axis=0).max()) > ORIENTATION_TOL:
        planes = len(np.unique(np.round(orientations, 2), axis=0))
        raise Refused("mixed-orientation", f"its slices lie in {max(planes, 2)} different orientations (direction cosines differ by {spread:.3g})",
                      "split it into one series per orientation; a localiser can be skipped with a rule in params ingest.rules")


def _check_positions(positions: np.ndarray, normal: np.ndarray) -> None:
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    depth, positions = depth[order], positions[order]
    _check_duplicates(depth)
    lateral = positions - np.outer(depth, normal)
    slide = np.linalg.norm(lateral - lateral[0], axis=1).max()
    if slide > LATERAL_TOL_MM:
        angle = np.degrees(np.arctan2(slide, depth[-1] - depth[0]))
        raise Refused("tilted-stack", f"its slices slide {slide:.2f} mm sideways over the stack ({angle:.1f} degrees, gantry tilt or shifted slices)",
                      "resample it onto an upright grid first, for example with dcm2niix, and give the NIfTI")
    gaps = np.diff(depth)
    ratios = gaps / gaps.min()
    multiples = np.round(ratios)
    if multiples.max() > 1 and np.abs(ratios - multiples).max() < MULTIPLE_TOL:
        holes = np.flatnonzero(multiples > 1)
        missing = int((multiples - 1).sum())
        raise Refused("missing-slices", f"{missing} slice(s) are missing: {len(depth)} are there at a step of {gaps.min():.3g} mm, the "
                      f"first gap is {gaps[holes[0]]:.3g} mm after slice {holes[0] + 1}", f"{EXPORT_AGAIN}, whole")
    if (uneven := np.abs(gaps / gaps.mean() - 1).max()) > SPACING_TOL:
        steps = f"from {gaps.min():.4g} to {gaps.max():.4g} mm, {100 * uneven:.1f} % off the mean"
        raise Refused("uneven-spacing", f"the step between slices runs {steps}", "resample it onto an even grid first and give the NIfTI")


def _check_duplicates(depth: np.ndarray) -> None:
    groups = np.split(depth, np.flatnonzero(np.diff(depth) > DUPLICATE_MM) + 1)
    counts = Counter(len(group) for group in groups)
    if set(counts) == {1}:
        return
    if len(counts) == 1:
        raise Refused("several-volumes", f"it holds {next(iter(counts))} images at each of {len(groups)} positions (echoes, b-values or time points)",
                      "split it into one series per volume")
    first = next(index for index, group in enumerate(groups) if len(group) > 1)
    raise Refused("duplicate-position", f"{len(depth) - len(groups)} of its {len(depth)} slices lie where another one does, "
                  f"first at position {first + 1} of {len(groups)}", "remove the copies, or split two acquisitions into two series")


def _shares(kinds: Counter) -> str:
    return " + ".join(str(count) for count in sorted(kinds.values(), reverse=True)[:5])


def place_on_grid(label: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray, tol_mm: float = 1e-3) -> np.ndarray | None:
    """`label` moved onto another grid without resampling, or None where the two grids do not coincide.

    Grids coincide when each voxel centre of `label` (voxel-to-world `affine`) lies within `tol_mm` of one of the target's
    (`target`, `shape`), axes permuted or flipped as need be. Empty margins may differ; a label that reaches outside does not fit.
    """
    steps = np.round(exact := np.linalg.inv(target) @ affine)
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in label.shape], [1.0])).reshape(4, -1) if label.ndim == 3 else None
    if corners is None or not np.array_equal(np.abs(steps[:3, :3]) @ np.ones(3), np.ones(3)) or not np.allclose(exact[3], (0, 0, 0, 1)):
        return None
    if np.linalg.norm(((target @ steps - affine) @ corners)[:3], axis=0).max() > tol_mm:
        return None
    where = np.argwhere(label)
    there = (where @ steps[:3, :3].T + steps[:3, 3]).astype(int)
    if len(there) and ((there < 0).any() or (there >= shape).any()):
        return None
    placed = np.zeros(shape, label.dtype)
    placed[tuple(there.T)] = label[tuple(where.T)]
    return placed
