"""Labels that are volumes themselves: series of single-frame mask images, and NIfTI files."""

from __future__ import annotations

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.labels.naming import SEPARATOR
from pipelines.ingest.labels.segments import MAX_VALUE, LabelSource, Segments
from pipelines.ingest.volumes import Volume, read_nifti, read_part

WHOLE = 1.0  # the cut of whole numbers: all above 0


def read_mask_series(source: LabelSource) -> Segments:
    """A series of slices: what is labelled as the segment `source.name`, or, without that name, its integer values as segments."""
    volume = read_part(source.headers, source.part)
    if not source.name:
        return integer_segments(volume, source)
    cut, note = cut_of(volume.array, source.threshold)
    return Segments((volume.array >= cut).astype(np.uint16), volume.affine, {1: (source.name,)}, note or _emptiness(volume.array))


def cut_of(values: np.ndarray, threshold: float) -> tuple[float, str]:
    """The least value that is labelled, from all values of a mask, and what the manifest should say of it.

    Whole numbers, and masks with one value beside 0, are labelled wherever they are above 0; shares from 0 to 1 from `threshold` on. Raises
    `Refused` (`label-values`) for anything else: it is a measurement, and where to cut it is not for us to say.
    """
    low, high = float(values.min()), float(values.max())
    if low >= 0 and np.array_equal(values, np.rint(values)) and high <= MAX_VALUE:
        return WHOLE, ""
    if low >= 0 and ((values == 0) | (values == high)).all():
        return high, ""
    if low >= 0 and high <= 1:
        return threshold, f"fractional, cut at {threshold:g}"
    raise Refused("label-values", f"its values run from {low:g} to {high:g}, neither whole numbers up to {MAX_VALUE} nor shares from 0 to 1",
                  "write the label as integers")


def read_nifti_label(source: LabelSource) -> Segments:
    """A NIfTI file of integer values, named by the table that came with it."""
    return integer_segments(read_nifti(source.paths[0]), source).as_one(source.name)


def integer_segments(volume: Volume, source: LabelSource) -> Segments:
    """Each value above 0 as a segment, named by `source.names`, else by its number. Raises `Refused` (`label-values`)."""
    array = np.nan_to_num(volume.array)
    if not np.array_equal(array, np.rint(array)) or array.min() < 0 or array.max() > MAX_VALUE:
        raise Refused("label-values", f"its values run from {array.min():g} to {array.max():g} and are not whole numbers from 0 to {MAX_VALUE}",
                      "write the label as integers")
    array = array.astype(np.uint16)
    present = [value for value in np.flatnonzero(np.bincount(array.ravel())).tolist() if value]
    names = {**source.names, **{value: str(value) for value in present if value not in source.names}} or {1: "1"}
    return Segments(array, volume.affine, {value: tuple(name.split(SEPARATOR)) for value, name in names.items()}, _emptiness(array))


def _emptiness(array: np.ndarray) -> str:
    return "" if array.any() else "no voxel is labelled"
