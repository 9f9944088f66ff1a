"""Resample a tilted or unevenly spaced series onto an upright, even grid, on request only: it interpolates, which nothing else here does.

dcm2niix (Li et al., J Neurosci Methods 2016) interpolates. Where its voxels lie is worked out here from the slices' headers, because its version
1.0.20260724 gives tilt-corrected volumes a wrong origin (23 mm off in a test object at 15 degrees). The result is used only when it shows, at the
places of the original slices, what those show, and shows it less well one voxel further in any direction.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.volumes import Volume, canonical, read_nifti

REPAIRABLE = {"tilted-stack": "_Tilt", "uneven-spacing": "_Eq"}  # code -> what dcm2niix's name of the repaired volume has at its end
TIMEOUT_S = 600
SAMPLES = 20_000  # voxels that are compared
WITHIN = 0.9  # share of the original voxels that the repaired grid must cover
RESIDUAL = 0.3  # mean difference, of the image's mean deviation from its mean; interpolation costs 0.05 to 0.15
AXIS_TOL = 1e-3  # of a direction cosine


@dataclass(frozen=True)
class Slices:
    """The original slices by depth: measured values `(n, rows, columns)`, positions `(n, 3)` in mm LPS, axes as rows (along a row, down a column,
    normal), and the spacing of rows and columns."""

    array: np.ndarray
    positions: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]


def repaired(paths: Sequence[Path], refused: Refused) -> tuple[Volume, str]:
    """The series in `paths` (all files of one volume, one slice each) on an upright, even grid, and a note that says so.

    `refused` is why it could not be used as it is; it is raised again unless its code is `tilted-stack` or `uneven-spacing` and the repair is
    beyond doubt.
    """
    if refused.code not in REPAIRABLE:
        raise refused
    try:
        slices = _read(paths)
        with tempfile.TemporaryDirectory(prefix="semiflow-repair-") as folder:
            volume = _placed(_converted(paths, Path(folder), REPAIRABLE[refused.code]), slices)
    except Exception:  # pydicom, nibabel and the command each have their own, and their texts may quote the header
        volume = None
    if volume is None:
        raise refused
    return volume, f"repaired: resampled onto an upright, even grid by dcm2niix {_version()} ({refused.reason})"


def _version() -> str:
    from importlib.metadata import version

    return version("dcm2niix")


def _read(paths: Sequence[Path]) -> Slices:
    """The original slices. Raises what pydicom raises, also where they are no single-frame images."""
    import pydicom

    from pipelines.ingest.headers import quiet
    from pipelines.ingest.scaling import scaling_of

    found = []
    with quiet():
        for path in paths:
            dataset = pydicom.dcmread(path, force=True)
            slope, intercept = scaling_of(dataset)[:2]
            found.append((dataset.ImagePositionPatient, dataset.pixel_array * slope + intercept))
    along, down = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    axes = np.array([along, down, np.cross(along, down)])
    found.sort(key=lambda pair: float(np.dot(pair[0], axes[2])))
    positions = np.array([position for position, _ in found], float)
    return Slices(np.stack([values for _, values in found]), positions, axes, tuple(map(float, dataset.PixelSpacing)))


def _converted(paths: Sequence[Path], folder: Path, ending: str) -> Path | None:
    """The one repaired volume that dcm2niix makes of `paths`, or None. Its output is thrown away, because it names the patient."""
    import dcm2niix

    source, out = folder / "in", folder / "out"
    source.mkdir()
    out.mkdir()
    for number, path in enumerate(paths):
        (source / f"{number:06d}.dcm").symlink_to(path.resolve())
    command = [str(dcm2niix.bin), "-g", "i", "-b", "n", "-z", "n", "-f", "volume", "-o", str(out), str(source)]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=TIMEOUT_S, check=True,
                   env={**os.environ, "HOME": str(folder)})
    made = sorted(path.stem for path in out.glob("*.nii"))
    names = [name for name in made if name.startswith(f"volume{ending}")]
    return out / f"{names[0]}.nii" if len(names) == 1 and set(made) <= {"volume", names[0]} else None


def _placed(path: Path | None, slices: Slices) -> Volume | None:
    """The volume at the place that the headers give it, or None where it does not show there what the slices show."""
    if path is None:
        return None
    import nibabel

    read_nifti(path)  # refuses what is no volume
    image = nibabel.load(path)
    axes = np.diag([-1.0, -1.0, 1.0]) @ image.affine[:3, :3]  # LPS
    spacing = np.linalg.norm(axes, axis=0)
    along = slices.axes @ (axes / spacing)
    if np.abs(np.abs(along) - np.eye(3)).max() > AXIS_TOL or not np.allclose(spacing[:2], slices.spacing[::-1], rtol=AXIS_TOL):
        return None
    array = image.get_fdata()[tuple(slice(None, None, int(np.sign(along[axis, axis]))) for axis in range(3))]
    affines = list(_candidates(array.shape, spacing, slices))
    residuals = [_residual(array, affine, slices) for affine in affines]
    best = affines[int(np.argmin(residuals))]
    return canonical(array, best, 2) if _fits(array, best, slices, min(residuals)) else None


def _candidates(shape: Sequence[int], spacing: np.ndarray, slices: Slices) -> Iterator[np.ndarray]:
    """Affines (voxel to world, mm RAS) of a grid along the slices' axes that begins where the slices begin or ends where they end."""
    low = (slices.positions @ slices.axes.T).min(axis=0)
    high = (slices.positions @ slices.axes.T).max(axis=0) + spacing * [slices.array.shape[2] - 1, slices.array.shape[1] - 1, 0]
    for ends in itertools.product((False, True), repeat=2):
        start = np.where([False, *ends], high - spacing * (np.array(shape) - 1), low)
        lps = np.eye(4)
        lps[:3, :3] = slices.axes.T * spacing
        lps[:3, 3] = slices.axes.T @ start
        yield np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _fits(array: np.ndarray, affine: np.ndarray, slices: Slices, residual: float) -> bool:
    """Whether the volume shows what the slices show, and less so one voxel away in any direction."""
    steps = [sign * step for step in np.eye(3) for sign in (-1, 1)]
    return residual < RESIDUAL and all(_residual(array, affine, slices, step) > residual for step in steps)


def _residual(array: np.ndarray, affine: np.ndarray, slices: Slices, step: Sequence[float] = (0, 0, 0)) -> float:
    """Mean difference between the volume, `step` voxels off, and the slices at the slices' places, of their mean deviation from their mean."""
    from scipy.ndimage import map_coordinates

    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(0, size, SAMPLES) for size in slices.array.shape])
    values = slices.array[tuple(index)]
    along, down = index[2][:, None] * slices.spacing[1] * slices.axes[0], index[1][:, None] * slices.spacing[0] * slices.axes[1]
    world = slices.positions[index[0]] + along + down
    ras = np.c_[world * [-1, -1, 1], np.ones(SAMPLES)]
    voxels = (np.linalg.inv(affine) @ ras.T)[:3] + np.asarray(step, float)[:, None]
    inside = ((voxels > -0.5) & (voxels < np.array(array.shape)[:, None] - 0.5)).all(axis=0)
    if inside.mean() < WITHIN:
        return np.inf
    seen = map_coordinates(array, voxels[:, inside], order=1, mode="nearest")
    return float(np.abs(seen - values[inside]).mean() / max(np.abs(values - values.mean()).mean(), 1e-9))
