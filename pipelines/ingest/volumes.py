"""Pixels: a checked series as a NIfTI volume, and the one way in which volumes are written.

Slices are placed and rescaled by their own headers; nibabel permutes and flips the axes to the closest of right-anterior-superior. Nothing is
resampled. highdicom reads the same volumes (a test compares them) but parses every file again, which would take most of the stage's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.frames import Frame
from pipelines.ingest.geometry import EXPORT_AGAIN
from pipelines.ingest.headers import Header, quiet
from pipelines.ingest.pixels import Pixels
from pipelines.ingest.split import Part
from pipelines.outputs import staged_file

SCANNER_CODE = 1  # NIFTI_XFORM_SCANNER_ANAT


@dataclass(frozen=True)
class Volume:
    """An array `(i, j, k)` in closest-canonical RAS order, its voxel-to-world affine (mm, RAS), and the axis across slices."""

    array: np.ndarray
    affine: np.ndarray
    slice_axis: int

    @property
    def spacing(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def manifest(self) -> dict[str, object]:
        """Geometry as the manifest's columns."""
        return {"shape": "x".join(str(size) for size in self.array.shape), "slice_axis": self.slice_axis,
                "spacing_mm": "x".join(f"{value:.6g}" for value in self.spacing)}


def canonical(array: np.ndarray, affine: np.ndarray, slice_axis: int) -> Volume:
    """The same voxels at the same places, axes in the order and direction closest to RAS."""
    import nibabel

    orientation = nibabel.orientations.io_orientation(affine)
    turned = nibabel.orientations.apply_orientation(array, orientation)
    turned_affine = affine @ nibabel.orientations.inv_ornt_aff(orientation, array.shape)
    return Volume(np.ascontiguousarray(turned), turned_affine, int(orientation[slice_axis, 0]))


def read_part(headers: Sequence[Header], part: Part) -> Volume:
    """One volume of a series in measured values, each slice by its own slope. `headers` are all of the series. Raises `Refused`."""
    pixels, frames = Pixels(headers), [part.frames[index] for index in part.stack.order]
    with quiet():
        stored = [pixels.read(frame) for frame in frames]
    if all(frame.slope == 1 and frame.intercept == 0 for frame in frames):
        measured = np.stack(stored)
    else:
        measured = np.empty((len(frames), *frames[0].size), np.float32)
        for out, values, frame in zip(measured, stored, frames, strict=True):
            with np.errstate(over="ignore"):
                np.add(np.multiply(values, frame.slope, dtype=np.float64), frame.intercept, out=out, casting="same_kind")
            if values.dtype.kind != "f" and not np.isfinite(out).all():
                raise Refused("bad-rescale", f"rescaled by {frame.slope:.3g} its values are beyond what a volume can hold", EXPORT_AGAIN)
    return canonical(measured, _affine(frames[0], part.stack.step), 0)


def _affine(first: Frame, step: Sequence[float]) -> np.ndarray:
    """Voxel (slice, row, column) to world, mm RAS (PS3.3 C.7.6.2.1.1, with the two axes turned that differ between LPS and RAS)."""
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 3] = step, first.position
    lps[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    lps[:3, 2] = np.array(first.orientation[:3]) * first.spacing[1]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def read_nifti(path: Path) -> Volume:
    """A 3-D NIfTI file, canonical; slices run along its coarsest axis. Raises `Refused`."""
    import nibabel

    try:
        image = nibabel.load(path)
        array = np.asarray(image.dataobj)
    except Exception as error:  # nibabel, gzip and zlib each have their own
        why = f"the file cannot be read as NIfTI ({type(error).__name__}: truncated or damaged)"
        raise Refused("unreadable-file", why, "copy it again") from None
    if array.ndim > 3 and set(array.shape[3:]) == {1}:
        array = array.reshape(array.shape[:3])
    if array.ndim != 3 or min(array.shape) < 2:
        raise Refused("not-3d", f"the image has shape {'x'.join(map(str, array.shape))}, a volume is needed", "split it into one 3-D file per volume")
    if array.dtype.fields or np.iscomplexobj(array):
        raise Refused("colour-image", "its voxels are colours or complex numbers", "give the magnitude or the measured values")
    affine = np.asarray(image.affine, float)
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or spacing.min() <= 0:
        raise Refused("no-geometry", "its affine is singular or not finite", "write the file again with a valid affine")
    cosines = axes / spacing
    if (skew := np.abs(cosines.T @ cosines - np.eye(3)).max()) > 1e-2:
        raise Refused("sheared-affine", f"its axes are not perpendicular (cosine {skew:.2g})", "resample it onto an upright grid first")
    coarse = spacing > spacing.min() * 1.01
    axis = int(np.argmax(spacing)) if coarse.any() else int(np.argmax(np.abs(cosines[2])))  # equal voxels: axial slices
    return canonical(array, affine, axis)


def write_image(path: Path, volume: Volume) -> str:
    """Write a NIfTI volume: int16 where that holds the values exactly, float32 otherwise. Returns what had to be changed, or ''."""
    array, note = volume.array, ""
    low, high = array.min(), array.max()
    if not np.isfinite(low + high):
        bad = int((~np.isfinite(array)).sum())
        array, note = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0), f"{bad} voxels without a finite value set to 0"
        low, high = array.min(), array.max()
    if low == high:
        raise Refused("empty-image", f"every voxel has the same value, {float(low):g}", EXPORT_AGAIN)
    limits = np.iinfo(np.int16)
    fits = limits.min <= low and high <= limits.max and _whole(array)
    _write(path, volume, array.astype(np.int16 if fits else np.float32, copy=False))
    return note


def _whole(array: np.ndarray) -> bool:
    """Whether all values are whole numbers; most that are not show it in their first thousands."""
    return array.dtype.kind in "iub" or all(np.array_equal(values, np.rint(values)) for values in (array.ravel(order="K")[::997], array))


def write_label(path: Path, volume: Volume) -> None:
    """Write a label as unsigned integers."""
    _write(path, volume, volume.array.astype(np.uint8 if volume.array.max(initial=0) < 256 else np.uint16))


def _write(path: Path, volume: Volume, array: np.ndarray) -> None:
    import nibabel
    from isal import igzip  # five times as fast as zlib, in which the stage would spend most of its time

    image = nibabel.Nifti1Image(array, volume.affine)
    image.set_sform(volume.affine, code=SCANNER_CODE)
    image.set_qform(volume.affine, code=SCANNER_CODE)
    image.header.set_xyzt_units("mm")
    with staged_file(path) as temporary:
        temporary.write_bytes(igzip.compress(image.to_bytes(), 2, mtime=0) if path.suffix == ".gz" else image.to_bytes())


def load_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a volume written before."""
    import nibabel

    image = nibabel.load(path)
    return image.shape, np.asarray(image.affine, float)


