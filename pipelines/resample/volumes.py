"""Volumes in memory, and their way from and to NIfTI files."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import Refused
from pipelines.outputs import staged_file
from pipelines.resample.grid import Grid


@dataclass(frozen=True)
class Volume:
    """Voxel values and where they lie."""

    array: np.ndarray
    grid: Grid


def read_volume(path: Path) -> Volume:
    """Read a NIfTI file as RAS+ (axes permuted and flipped, never interpolated), float32.

    Raises Refused where the file is damaged, not three-dimensional or has an impossible affine.
    """
    import nibabel

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        array = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        detail = " ".join(str(error).replace(str(path), path.name).split())
        raise Refused("unreadable", f"cannot be read as NIfTI ({type(error).__name__}: {detail})", "write the file again") from None
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise Refused("not-3d", f"has shape {'x'.join(map(str, array.shape))}, not three dimensions", "split it into one file per volume")
    affine = np.asarray(image.affine, dtype=float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise Refused("affine", "its affine cannot be inverted, so that its voxels have no place in the world", "repair its header")
    return Volume(array, Grid(tuple(int(n) for n in array.shape), affine))


def write_volume(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write NIfTI, whole or not at all. nibabel's gzip carries no name and no time, so equal volumes make equal bytes."""
    import nibabel

    image = nibabel.Nifti1Image(array, grid.affine)
    image.header.set_xyzt_units("mm")
    with staged_file(path) as temporary:
        nibabel.save(image, temporary)
