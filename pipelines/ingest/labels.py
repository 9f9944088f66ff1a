"""Labels as they come: DICOM segmentation objects, series of mask images, integer NIfTI files. One lookup of names over one integer array."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.geometry import place_on_grid
from pipelines.ingest.headers import quiet
from pipelines.ingest.vocabulary import SEGMENT_WORDS
from pipelines.ingest.volumes import read_nifti, read_part


@dataclass(frozen=True)
class LabelSource:
    """Where a label comes from and which names its segments may bear."""

    item: str
    kind: str  # seg | mask | nifti
    paths: tuple[Path, ...]
    rule: str
    frame: str
    name: str = ""  # of a binary mask
    names: dict[int, str] = field(default_factory=dict)  # lookup of a NIfTI label
    known: frozenset[str] = frozenset()  # names that params.yaml's labels ask for
    refers_to: str = ""  # item of the image series it was drawn on
    headers: tuple = ()
    part: object = None


@dataclass(frozen=True)
class Segments:
    """An integer label `(i, j, k)`, 0 for background, its affine (mm, RAS) and the name of each value."""

    array: np.ndarray
    affine: np.ndarray
    names: dict[int, str]

    def on_grid(self, shape: tuple[int, ...], affine: np.ndarray) -> Segments | None:
        placed = place_on_grid(self.array, self.affine, shape, affine)
        return None if placed is None else Segments(placed, affine, self.names)


def read_segments(source: LabelSource) -> Segments:
    """Read one label of any kind. Raises `Refused`."""
    if source.kind == "seg":
        return _read_seg(source)
    if source.kind == "mask":
        volume = read_part(source.headers, source.part)
        return Segments((volume.array > 0).astype(np.uint16), volume.affine, {1: source.name})
    return _read_nifti_label(source)


def merge(first: Segments | None, second: Segments) -> Segments:
    """Two labels on one grid as one; values of the second follow those of the first."""
    if first is None:
        return second
    if twice := set(first.names.values()) & set(second.names.values()):
        raise Refused("duplicate-label", f"another label of this session has {'the segment' if len(twice) == 1 else 'segments'} "
                      f"{', '.join(sorted(twice))} too", "keep one of them in the source")
    if both := int(((first.array > 0) & (second.array > 0)).sum()):
        raise Refused("label-overlap", f"{both} voxels are in another label of this session too", "make the segments exclusive")
    offset = max(first.names, default=0)
    shifted = np.where(second.array > 0, second.array + offset, first.array)
    return Segments(shifted, first.affine, first.names | {value + offset: name for value, name in second.names.items()})


def _read_seg(source: LabelSource) -> Segments:
    """A DICOM segmentation (PS3.3 A.51). Frames left out because they are empty are filled in by highdicom."""
    import highdicom as hd

    with quiet():
        segmentation = hd.seg.segread(source.paths[0])
        numbers = list(segmentation.segment_numbers)
        labels = [str(segmentation.get_segment_description(number).segment_label) for number in numbers]
        if segmentation.get_volume_geometry() is None:
            raise Refused("label-geometry", "the frames of the segmentation make no regular volume", "export it again on the grid of its image")
        volume = segmentation.get_volume(segment_numbers=numbers)
    stack = np.asarray(volume.array)  # (slices, rows, columns, segments)
    if not np.isin(stack, (0, 1)).all():
        raise Refused("label-fractional", "the segmentation has fractional values, so its borders are undecided",
                      "export it as a binary segmentation")
    stack = stack.astype(bool)
    if overlap := int((stack.sum(axis=-1) > 1).sum()):
        raise Refused("label-overlap", f"{overlap} voxels belong to more than one segment", "make the segments exclusive")
    values = np.array(numbers, np.uint16)
    array = (stack * values).sum(axis=-1, dtype=np.uint16)
    names = {number: safe_name(label, number, source.known) for number, label in zip(numbers, labels, strict=True)}
    if source.name:
        array, names = (array > 0).astype(np.uint16), {1: source.name}
    return Segments(array, volume.get_affine("RAS"), names)


def _read_nifti_label(source: LabelSource) -> Segments:
    volume = read_nifti(source.paths[0])
    array = np.nan_to_num(volume.array)
    if not np.array_equal(array, np.rint(array)) or array.min() < 0 or array.max() > np.iinfo(np.uint16).max:
        raise Refused("label-values", f"its values run from {array.min():g} to {array.max():g} and are not whole numbers from 0 to 65535",
                      "write the label as integers")
    array = array.astype(np.uint16)
    present = [int(value) for value in np.unique(array) if value]
    names = {**source.names, **{value: str(value) for value in present if value not in source.names}}
    return Segments(array, volume.affine, names or {1: "1"})


def safe_name(text: str, number: int, known: frozenset[str]) -> str:
    """A segment's name if params.yaml asks for it or it is made of words for segments, else 'segment <number>'."""
    text = " ".join(text.split())
    words = re.findall(r"[^\W_]+", text.casefold())
    ordinary = bool(words) and all(word in SEGMENT_WORDS or (word.isdigit() and len(word) < 3) for word in words)
    return text if ordinary or text in known else f"segment {number}"


def referenced_series(tags) -> list[str]:
    return [item.get("SeriesInstanceUID", "") for item in tags.get("ReferencedSeriesSequence", [])]
