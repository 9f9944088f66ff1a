"""What a label object says about the images it was drawn on; for the header pass, so nothing here reads pixels or contours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

#: Tags that the two functions below need beside FrameOfReferenceUID. Both sequences are small: contours and pixels lie elsewhere.
REFERENCE_TAGS = ("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")


def referenced_series(dataset: Dataset) -> list[str]:
    """SeriesInstanceUIDs of the images a label object refers to, each once, in its order; [] where it names none.

    SEG and Parametric Map: ReferencedSeriesSequence (PS3.3 C.12.1.2). RTSTRUCT: ReferencedFrameOfReferenceSequence > RTReferencedStudySequence >
    RTReferencedSeriesSequence (C.8.8.5).
    """
    direct = _items(dataset, "ReferencedSeriesSequence")
    nested = (series for frame in _items(dataset, "ReferencedFrameOfReferenceSequence") for study in _items(frame, "RTReferencedStudySequence")
              for series in _items(study, "RTReferencedSeriesSequence"))
    found = (str(item.get("SeriesInstanceUID") or "") for series in (direct, nested) for item in series)
    return [uid for uid in dict.fromkeys(found) if uid]


def frame_of_reference(dataset: Dataset) -> str:
    """The frame of reference of a label object; '' where it names none or several. An RTSTRUCT often has it only beside its references."""
    if uid := str(dataset.get("FrameOfReferenceUID") or ""):
        return uid
    uids = {str(item.get("FrameOfReferenceUID") or "") for item in _items(dataset, "ReferencedFrameOfReferenceSequence")}
    return uids.pop() if len(uids) == 1 else ""


def _items(dataset: Dataset, name: str) -> Iterator[Dataset]:
    yield from dataset.get(name) or []
