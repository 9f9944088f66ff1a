"""Labels that are multi-frame DICOM objects: segmentations (PS3.3 A.51) and parametric maps (A.75).

Frames are placed on the image's grid one by one, each by its own position. That needs no slice spacing, which sparse objects may lack, holds one
frame at a time, and finds voxels of several segments; a volume made of all frames would be `segments` times the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.geometry import EXPORT_AGAIN
from pipelines.ingest.headers import quiet
from pipelines.ingest.labels.grid import LPS_TO_RAS, onto, plane_steps
from pipelines.ingest.labels.masks import WHOLE, cut_of
from pipelines.ingest.labels.naming import object_name
from pipelines.ingest.labels.segments import LabelSource, Overlay, Segments

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
AS_BINARY = "export it again as a binary segmentation"
ON_THE_GRID = "export it again on the grid of its image"
FLOAT_PIXELS = ("FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True)
class Frames:
    """Planes of segment numbers, decoded when they are placed."""

    planes: np.ndarray  # (n, 4, 3): (row, column, 1) to homogeneous mm, RAS
    size: tuple[int, int]  # rows, columns
    numbers: tuple[int, ...]  # the segment of each frame, 0 where the pixels say it
    names: dict[int, str]
    decode: Callable[[], Iterator[np.ndarray]]  # frames of segment numbers, or masks where `numbers` has the segment
    note: str = ""
    name: str = ""  # of all segments as one

    def on_grid(self, shape: tuple[int, ...], affine: np.ndarray) -> Segments:
        steps = plane_steps(self.planes, *self.size, affine)
        places = Counter((number, step.tobytes()) for number, step in zip(self.numbers, steps, strict=True))
        if twice := sum(count - 1 for count in places.values()):
            raise Refused("label-geometry", f"{twice} of its {len(steps)} frames lie where another frame of the same segment does (time points?)",
                          "export one segmentation per volume")
        overlay = Overlay(shape)
        with quiet():
            for number, step, pixels in zip(self.numbers, steps, self.decode(), strict=True):
                for value in [number] if number else _values(pixels):
                    where = onto(np.argwhere(pixels if number else pixels == value), step, shape)
                    overlay.add(where, value)
        return overlay.finish(affine, self.names, self.note).as_one(self.name)


def read_segmentation(source: LabelSource) -> Frames:
    """A segmentation object: binary, fractional (cut at `source.threshold`) or a label map. Raises `Refused`."""
    with quiet():
        dataset = _read(source)
        kind = str(dataset.get("SegmentationType") or "BINARY").upper()
        described = {int(item.SegmentNumber): item for item in dataset.get("SegmentSequence") or []}
        count = _frame_count(dataset)
        numbers = (0,) * count if kind == "LABELMAP" else tuple(_segment_number(dataset, index) for index in range(count))
        if unknown := {number for number in numbers if number and number not in described}:
            raise Refused("label-values", f"{len(unknown)} of its segment numbers are not described in it", EXPORT_AGAIN)
        names = {number: _name(item, number, source.known) for number, item in sorted(described.items()) if number}
        decode, note = _decoder(dataset, kind, names, source.threshold)
        return Frames(_planes(dataset, count), (int(dataset.Rows), int(dataset.Columns)), numbers, names, decode, note, source.name)


def _decoder(dataset: Dataset, kind: str, names: dict[int, str], threshold: float) -> tuple[Callable[[], Iterator[np.ndarray]], str]:
    """How the frames of a segmentation become masks or segment numbers, and what of that the manifest should say."""
    if kind == "LABELMAP":
        return lambda: (_checked(pixels, 0, max(names, default=0), names) for pixels in _pixels(dataset)), ""
    if kind == "BINARY":
        return lambda: (_checked(pixels, 0, 1) > 0 for pixels in _pixels(dataset)), ""
    if kind != "FRACTIONAL":
        raise Refused("label-values", "its SegmentationType is none of BINARY, FRACTIONAL and LABELMAP", AS_BINARY)
    most = int(dataset.get("MaximumFractionalValue") or 0)
    if most < 1:
        raise Refused("label-values", "it is fractional and has no MaximumFractionalValue, so its values mean nothing", AS_BINARY)
    share = {"PROBABILITY": " probability", "OCCUPANCY": " occupancy"}.get(str(dataset.get("SegmentationFractionalType") or "").upper(), "")
    return lambda: (_checked(pixels, 0, most) >= threshold * most for pixels in _pixels(dataset)), f"fractional{share}, cut at {threshold:g}"


def _checked(pixels: np.ndarray, least: int, most: int, allowed: Sequence[int] | None = None) -> np.ndarray:
    """`pixels` unless one is out of range, or is neither 0 nor one of `allowed`."""
    low, high = int(pixels.min()), int(pixels.max())
    if low < least or high > most:
        raise Refused("label-values", f"its pixels run from {low} to {high}, and {least} to {most} is what such an object may have", EXPORT_AGAIN)
    if allowed is not None and (unknown := set(_values(pixels)) - set(allowed)):
        raise Refused("label-values", f"{len(unknown)} of its pixel values are segments that it does not describe", EXPORT_AGAIN)
    return pixels


def _values(pixels: np.ndarray) -> list[int]:
    return [int(value) for value in np.unique(pixels) if value]


def read_parametric_map(source: LabelSource) -> Frames:
    """A parametric map as a mask (see `masks.cut_of`). Raises `Refused`."""
    with quiet():
        dataset = _read(source)
        count = _frame_count(dataset)
        values = np.unique(np.concatenate([np.unique(pixels) for pixels in _pixels(dataset)]))
        cut, note = cut_of(values, source.threshold)
        as_values = cut == WHOLE and not source.name
        names = {int(value): source.names.get(int(value), str(int(value))) for value in values if value} if as_values else {}
        return Frames(_planes(dataset, count), (int(dataset.Rows), int(dataset.Columns)), (0 if as_values else 1,) * count,
                      names or {1: source.name or "1"}, lambda: (pixels if as_values else pixels >= cut for pixels in _pixels(dataset)), note)


def _read(source: LabelSource) -> Dataset:
    """The one file of a label object, whole."""
    import pydicom

    if len(source.paths) > 1:
        raise Refused("several-segmentations", f"its series holds {len(source.paths)} label objects", "keep one of them per series")
    dataset = pydicom.dcmread(source.paths[0], force=True)
    if "TransferSyntaxUID" not in getattr(dataset, "file_meta", {}):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        expected = -(-int(dataset.Rows) * int(dataset.Columns) * _frame_count(dataset) * int(_bits(dataset)) // 8)
        data = next((dataset[name].value for name in ("PixelData", *FLOAT_PIXELS) if name in dataset), b"")
        if len(data) < expected:
            raise Refused("truncated-file", f"its file ends early: {len(data)} of {expected} bytes of pixels", "copy or export that file again")
    return dataset


def _bits(dataset: Dataset) -> int:
    return 32 if "FloatPixelData" in dataset else 64 if "DoubleFloatPixelData" in dataset else dataset.BitsAllocated


def _frame_count(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _pixels(dataset: Dataset) -> Iterator[np.ndarray]:
    """Frame by frame the stored values `(rows, columns)`; of a parametric map the real-world values."""
    from pydicom.pixels import iter_pixels

    if _bits(dataset) == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from _unpacked(dataset)  # pydicom unpacks single frames only where they end with a byte
        return
    for index, pixels in enumerate(iter_pixels(dataset, raw=True)):
        if pixels.ndim != 2:
            raise Refused("colour-image", "its frames are colour pictures", AS_BINARY)
        yield _real_world(dataset, index, pixels) if dataset.SOPClassUID == PARAMETRIC_MAP else pixels


def _unpacked(dataset: Dataset) -> Iterator[np.ndarray]:
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    size = int(dataset.Rows) * int(dataset.Columns)
    for start in range(0, size * _frame_count(dataset), size):
        bits = np.unpackbits(packed[start // 8:-(-(start + size) // 8)], bitorder="little")
        yield bits[start % 8:start % 8 + size].reshape(int(dataset.Rows), int(dataset.Columns))


def _real_world(dataset: Dataset, index: int, pixels: np.ndarray) -> np.ndarray:
    """Real-world values of a parametric map's frame (PS3.3 C.7.6.16.2.11); what is no number is background."""
    mapping = _group(dataset, index, "RealWorldValueMappingSequence")
    if "RealWorldValueLUTData" in mapping:
        raise Refused("label-values", "its values are mapped by a table", "export it again as a segmentation")
    slope, intercept = (float(mapping.get(name, default)) for name, default in (("RealWorldValueSlope", 1), ("RealWorldValueIntercept", 0)))
    return np.nan_to_num(pixels * slope + intercept if (slope, intercept) != (1, 0) else pixels, posinf=0, neginf=0)


def _planes(dataset: Dataset, count: int) -> np.ndarray:
    """The planes of all frames (see `Frames.planes`), from per-frame or shared groups, or else the data set's top level."""
    planes = np.zeros((count, 4, 3))
    for index in range(count):
        found = [_group(dataset, index, group).get(name) for group, name, _ in PLACING]
        if missing := [name for value, (_, name, width) in zip(found, PLACING, strict=True) if value is None or len(value) != width]:
            raise Refused("label-geometry", f"frame {index + 1} of {count} has no usable {' and no usable '.join(missing)}, so it cannot be placed",
                          ON_THE_GRID)
        spacing, orientation, position = (np.array(value, float) for value in found)
        planes[index, :3] = np.column_stack([orientation[3:] * spacing[0], orientation[:3] * spacing[1], position])
    planes[:, 3, 2] = 1
    if not np.isfinite(planes).all() or (np.linalg.norm(planes[:, :3, :2], axis=1) <= 0).any():
        raise Refused("label-geometry", "a position, an orientation or a pixel spacing of it is 0 or no number", ON_THE_GRID)
    return LPS_TO_RAS @ planes


#: functional group, attribute, how many numbers
PLACING = (("PixelMeasuresSequence", "PixelSpacing", 2), ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
           ("PlanePositionSequence", "ImagePositionPatient", 3))


def _group(dataset: Dataset, index: int, name: str) -> Dataset:
    """A functional group of one frame: its own, the shared one, or the data set itself, where single-frame writers put the attributes."""
    own, shared = dataset.get("PerFrameFunctionalGroupsSequence") or [], dataset.get("SharedFunctionalGroupsSequence") or []
    for holder in (*own[index:index + 1], *shared[:1]):
        if items := holder.get(name):
            return items[0]
    return dataset


def _segment_number(dataset: Dataset, index: int) -> int:
    number = int(_group(dataset, index, "SegmentIdentificationSequence").get("ReferencedSegmentNumber") or 0)
    if number < 1:
        raise Refused("label-geometry", f"frame {index + 1} does not say which segment it shows", EXPORT_AGAIN)
    return number


def _name(item: Dataset, number: int, known: frozenset[str]) -> str:
    """SegmentLabel, or the coded property type where the label says nothing that may leave."""
    coded = item.get("SegmentedPropertyTypeCodeSequence") or []
    return object_name([str(item.get("SegmentLabel") or ""), *(str(code.get("CodeMeaning") or "") for code in coded[:1])], number, known)
