"""A second reading of DICOM images, as plain as the standard's text, that shares no code with the ingest: what the fuzzer believes.

Each file is read as a whole by pydicom; stored values, rescaling and affine follow PS3.3 C.7.6.2, C.7.6.3 and C.11.1. Mosaics are placed by nibabel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PLACE_TOL_MM = 0.15  # a slice of a regular volume may lie this far from where the affine puts it (the ingest allows 0.1), and headers are rounded


@dataclass(frozen=True)
class Slice:
    """One two-dimensional image: measured values, and the affine of (row, column, 0, 1) to world, mm RAS."""

    values: np.ndarray
    affine: np.ndarray


def slices(paths: Sequence[Path]) -> list[Slice]:
    """All images in files that can be read; those that cannot are left out."""
    found: list[Slice] = []
    for path in paths:
        try:
            found += _of_file(path)
        except Exception:  # a mutated file, on which pydicom raises what it likes
            continue
    return found


def explained(array: np.ndarray, affine: np.ndarray, axis: int, found: Sequence[Slice]) -> bool:
    """Whether each slice of a volume is one of the images `found`, at its place, and none twice."""
    left = list(found)
    for index in range(array.shape[axis]):
        match = next((one for one in left if _same(array, affine, axis, index, one)), None)
        if match is None:
            return False
        left = [one for one in left if one is not match]
    return True


def _same(array: np.ndarray, affine: np.ndarray, axis: int, index: int, one: Slice) -> bool:
    rows, columns = one.values.shape
    corners = np.array([[0, 0, 0, 1], [rows - 1, 0, 0, 1], [0, columns - 1, 0, 1], [rows - 1, columns - 1, 0, 1]], float)
    voxels = (np.linalg.inv(affine) @ one.affine @ corners.T)[:3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    nearest = np.rint(voxels)
    if not np.isfinite(voxels).all() or np.abs((voxels - nearest) * spacing[:, None]).max() > PLACE_TOL_MM or (nearest[axis] != index).any():
        return False
    down, across = ((nearest[:, corner] - nearest[:, 0]) / max(size - 1, 1) for corner, size in ((1, rows), (2, columns)))
    i, j = np.mgrid[:rows, :columns].reshape(2, -1)
    places = np.rint(nearest[:, :1] + down[:, None] * i + across[:, None] * j).astype(int)
    if (places < 0).any() or (places.max(axis=1) >= array.shape).any() or rows * columns != array.size // array.shape[axis]:
        return False
    return bool(np.allclose(array[tuple(places)], one.values.ravel(), rtol=1e-6, atol=1e-6, equal_nan=True))


def _of_file(path: Path) -> Iterator[Slice]:
    import pydicom

    with path.open("rb") as handle:
        bare = handle.read(132)[128:] != b"DICM"
    ds = pydicom.dcmread(path, force=bare)
    if "MOSAIC" in [str(word).strip().upper() for word in ds.get("ImageType", [])]:
        yield from _of_mosaic(ds)
        return
    frames = _stored(ds)
    shared = ds.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in ds else None
    for number, stored in enumerate(frames):
        with contextlib.suppress(Exception):  # one frame's groups may be damaged and the others' not
            yield Slice(*_placed(stored, [ds.PerFrameFunctionalGroupsSequence[number], shared] if shared is not None else [ds]))


def _placed(stored: np.ndarray, groups: Sequence) -> tuple[np.ndarray, np.ndarray]:
    slope = float(_value(groups, "PixelValueTransformationSequence", "RescaleSlope", 1))
    intercept = float(_value(groups, "PixelValueTransformationSequence", "RescaleIntercept", 0))
    orientation = np.array(_value(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), float)
    spacing = np.array(_value(groups, "PixelMeasuresSequence", "PixelSpacing"), float)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = orientation[3:] * spacing[0], orientation[:3] * spacing[1]
    lps[:3, 2] = np.cross(orientation[:3], orientation[3:])
    lps[:3, 3] = np.array(_value(groups, "PlanePositionSequence", "ImagePositionPatient"), float)
    return stored * slope + intercept, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _value(groups: Sequence, sequence: str, name: str, default=None):
    """An element of a functional group: the frame's own, else the shared one; or the data set's where it has no groups."""
    if len(groups) == 1:
        return default if groups[0].get(name) in (None, "") else groups[0][name].value
    for group in groups:
        if sequence in group and name in group[sequence][0]:
            return group[sequence][0][name].value
    return default


def _stored(ds) -> np.ndarray:
    """Stored values `(frames, rows, columns)`, without what lies in unused bits."""
    shape = int(ds.get("NumberOfFrames") or 1), int(ds.Rows), int(ds.Columns)
    syntax = ds.file_meta.get("TransferSyntaxUID")  # without one, the order of bytes that pydicom found
    if syntax is not None and syntax.is_compressed:
        values = ds.pixel_array.reshape(shape)
    else:
        little = ds.original_encoding[1] if syntax is None else syntax.is_little_endian
        order = "<" if little else ">"
        kind = f"{order}{'i' if ds.PixelRepresentation == 1 else 'u'}{int(ds.BitsAllocated) // 8}"
        count = int(np.prod(shape))
        values = np.frombuffer(ds.PixelData, kind, count).reshape(shape)
    bits, stored = values.dtype.itemsize * 8, int(ds.BitsStored)
    high = int(ds.get("HighBit", stored - 1))
    if ds.PixelRepresentation not in (0, 1):
        raise ValueError("neither signed nor unsigned")
    whole = values.astype(np.int64) >> (high + 1 - stored) & ((1 << stored) - 1)
    signed = ds.PixelRepresentation == 1
    return np.where(whole >= 1 << (stored - 1), whole - (1 << stored), whole) if signed and bits >= stored else whole


def _of_mosaic(ds) -> Iterator[Slice]:
    """Tiles of a Siemens mosaic as nibabel places them."""
    from nibabel.nicom.dicomwrappers import wrapper_from_data

    wrapper = wrapper_from_data(ds)
    rows, columns, count = wrapper.image_shape
    affine, stored = np.diag([-1.0, -1.0, 1.0, 1.0]) @ wrapper.affine, _stored(ds)[0]
    values = stored * float(ds.get("RescaleSlope") or 1) + float(ds.get("RescaleIntercept") or 0)
    for index in range(count):
        down, across = divmod(index, wrapper.mosaic_size)
        placed = affine.copy()
        placed[:3, 3] = affine[:3, 3] + index * affine[:3, 2]
        yield Slice(values[down * rows:(down + 1) * rows, across * columns:(across + 1) * columns], placed)
