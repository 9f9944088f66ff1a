"""Where a label lies on the grid of its image: voxel centre upon voxel centre, or not at all."""

from __future__ import annotations

import numpy as np

from pipelines.errors import Refused

#: How far, in steps of the image's grid, a plane of a label may lie off it. Positions of planes are written one by one and rounded, while the
#: image's affine is the regular grid through all of its own (uneven up to geometry.SPACING_TOL of the step), so the two differ a little.
PLANE_TOL = 0.1
#: The same within a plane, where only rounding is to be forgiven.
PIXEL_TOL = 0.05
DRAW_AGAIN = "draw or resample the label on the grid of one of the images (labels are never resampled here, because that moves borders unseen)"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def off_grid(reason: str) -> Refused:
    return Refused("label-grid", reason, DRAW_AGAIN)


def place_on_grid(label: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray, tol_mm: float = 1e-3) -> np.ndarray:
    """`label` moved onto another grid without resampling. Raises `Refused` (`label-grid`) where the two grids do not coincide.

    Grids coincide when each voxel centre of `label` (voxel-to-world `affine`) lies within `tol_mm` of one of the target's
    (`target`, `shape`), axes permuted or flipped as need be. Empty margins may differ; a label that reaches outside does not fit.
    """
    exact = np.linalg.inv(target) @ affine
    steps = np.round(exact)
    if label.ndim != 3 or not np.array_equal(np.abs(steps[:3, :3]) @ np.ones(3), np.ones(3)) or not np.allclose(exact[3], (0, 0, 0, 1)):
        have, want = (" x ".join(f"{length:.4g}" for length in np.linalg.norm(one[:3, :3], axis=0)) for one in (affine, target))
        raise off_grid(f"its voxels ({have} mm) are turned or of another size than the image's ({want} mm)")
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in label.shape], [1.0])).reshape(4, -1)
    if (off := np.linalg.norm(((target @ steps - affine) @ corners)[:3], axis=0).max()) > tol_mm:
        raise off_grid(f"its voxel centres lie up to {off:.3g} mm off the image's")
    where = np.argwhere(label)
    there = onto(where, steps, shape)
    placed = np.zeros(shape, label.dtype)
    placed[there] = label[tuple(where.T)]
    return placed


def plane_steps(planes: np.ndarray, rows: int, columns: int, target: np.ndarray) -> np.ndarray:
    """The index maps `(n, 4, 3)` from (row, column, 1) of planes to voxels of the grid `target`.

    `planes` `(n, 4, 3)` maps (row, column, 1) to homogeneous mm (RAS). Raises `Refused` (`label-grid`) where a plane's pixel centres lie
    more than `PIXEL_TOL` steps off voxel centres within the plane, or `PLANE_TOL` across it.
    """
    exact = np.linalg.inv(target) @ planes
    steps = np.round(exact)
    turns = np.abs(steps[:, :3, :2])
    if not (turns.sum(axis=1) == 1).all() or (turns.sum(axis=2) > 1).any():
        have = " x ".join(f"{length:.4g}" for length in np.linalg.norm(planes[0, :3, :2], axis=0))
        want = " x ".join(f"{length:.4g}" for length in np.linalg.norm(target[:3, :3], axis=0))
        raise off_grid(f"its frames (pixels of {have} mm) are turned or of another pixel size than the image's voxels ({want} mm)")
    corners = np.array([(row, column, 1.0) for row in (0, rows - 1) for column in (0, columns - 1)]).T
    off = np.abs(((exact - steps) @ corners)[:, :3]).max(axis=2)
    beside = (off > np.where(turns.any(axis=2), PIXEL_TOL, PLANE_TOL)).any(axis=1)
    if beside.any():
        raise off_grid(f"{beside.sum()} of its {len(off)} frames lie off the image's grid, by up to {off[beside].max():.2g} of a voxel")
    return steps


def onto(indices: np.ndarray, steps: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Indices `(n, d)` of labelled voxels through an index map `(4, d + 1)`, one array an axis. Raises `Refused` where one is outside `shape`."""
    there = (indices @ steps[:3, :-1].T + steps[:3, -1]).astype(int)
    if outside := int(((there < 0) | (there >= shape)).any(axis=1).sum()):
        raise off_grid(f"{outside} of its {len(there)} labelled voxels lie outside the image")
    return tuple(there.T)
