"""Frames of multi-frame objects: enhanced MR, CT and PET with functional groups (PS3.3 C.7.6.16), and reconstructed NM tomograms.

A functional group is looked for at the frame first, then among those that all frames share.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydicom.tag import Tag

from pipelines.errors import Refused
from pipelines.ingest.elements import item, items, number, numbers, private_blocks, text, texts
from pipelines.ingest.frames import Frame
from pipelines.ingest.marks import COMPONENTS, component_of, kind_of, marks_of, positive, unit
from pipelines.ingest.scaling import VALUE_MAPS, scaling_from, scaling_of

#: SOP classes whose objects hold functional groups with one image per frame: enhanced and legacy converted CT, MR and PET.
ENHANCED = frozenset(f"1.2.840.10008.5.1.4.1.1.{one}" for one in ("2.1", "2.2", "4.1", "4.4", "128.1", "130"))

MODALITY, KVP, STACK, COMPONENT, IMAGE_TYPE = Tag("Modality"), Tag("KVP"), Tag("StackID"), Tag("ComplexImageComponent"), Tag("ImageType")
SOP_CLASS, ROWS, COLUMNS, INSTANCE, COUNT = Tag("SOPClassUID"), Tag("Rows"), Tag("Columns"), Tag("InstanceNumber"), Tag("NumberOfFrames")
SHARED, PER_FRAME = Tag("SharedFunctionalGroupsSequence"), Tag("PerFrameFunctionalGroupsSequence")
PLANE, ORIENTATION, MEASURES = Tag("PlanePositionSequence"), Tag("PlaneOrientationSequence"), Tag("PixelMeasuresSequence")
POSITION, COSINES, SPACING, STEP = Tag("ImagePositionPatient"), Tag("ImageOrientationPatient"), Tag("PixelSpacing"), Tag("SpacingBetweenSlices")
TRANSFORM, CONTENT, FRAME_TYPE = Tag("PixelValueTransformationSequence"), Tag("FrameContentSequence"), Tag("FrameType")
FRAME_TYPES = tuple(Tag(name) for name in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"))
CONVERTED = (Tag("UnassignedSharedConvertedAttributesSequence"), Tag("UnassignedPerFrameConvertedAttributesSequence"))
ECHO, EFFECTIVE_ECHO = Tag("MREchoSequence"), Tag("EffectiveEchoTime")
MODIFIER, INVERSION_TIMES = Tag("MRModifierSequence"), Tag("InversionTimes")
DIFFUSION, DIRECTIONALITY, B_VALUE = Tag("MRDiffusionSequence"), Tag("DiffusionDirectionality"), Tag("DiffusionBValue")
GRADIENT, DIRECTION = Tag("DiffusionGradientDirectionSequence"), Tag("DiffusionGradientOrientation")
TRIGGER_DELAY, CARDIAC, XRAY = Tag("NominalCardiacTriggerDelayTime"), Tag("CardiacSynchronizationSequence"), Tag("CTXRayDetailsSequence")
LABELLING, CONTEXT = Tag("MRArterialSpinLabelingSequence"), Tag("ASLContext")
TEMPORAL, OFFSET, TIME_INDEX = Tag("TemporalPositionSequence"), Tag("TemporalPositionTimeOffset"), Tag("TemporalPositionIndex")
DIMENSIONS, POINTER, INDEX = Tag("DimensionIndexSequence"), Tag("DimensionIndexPointer"), Tag("DimensionIndexValues")
PHILIPS_FRAME = (0x2005, "Philips MR Imaging DD 005"), 0x0F
#: Dimensions that position and marks know already.
KNOWN = frozenset({STACK, POSITION, Tag("InStackPositionNumber"), TIME_INDEX, OFFSET, EFFECTIVE_ECHO, INVERSION_TIMES, B_VALUE, DIRECTION,
                   TRIGGER_DELAY})
SINGLE = "convert it to single-frame DICOM (dcm4che emf2sf) or give the NIfTI"


@dataclass(frozen=True)
class Groups:
    """The functional groups of one frame."""

    own: object
    shared: object

    def __call__(self, tag: int):
        """The item of a functional group, or None. A group that is there, but empty, counts as absent."""
        found = item(self.own, tag)
        return found if found is not None or self.shared is None else item(self.shared, tag)


def frames(dataset, file: int) -> list[Frame]:
    """The frames of a multi-frame object in stored order. `dataset` is whole but for its pixels. Raises `Refused`."""
    count = int(number(dataset, COUNT, "IS") or 1)
    if PER_FRAME not in dataset and SHARED not in dataset and text(dataset, SOP_CLASS) not in ENHANCED:
        return _tomogram(dataset, file, count) if count > 1 else [_single(dataset, file)]
    with _uncollected():
        return _grouped(dataset, file, count)


def _pointer(dimension) -> int:
    """The tag that a dimension counts, 0 where it cannot be read."""
    try:
        return Tag(dimension[POINTER].value)
    except Exception:  # pydicom raises what broken bytes make it raise
        return 0


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Python's collector of cycles held back: it would go through all items over and over while they are made, half of the time in all."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _grouped(dataset, file: int, count: int) -> list[Frame]:
    """Frames that functional groups place."""
    shared, own = item(dataset, SHARED), items(dataset, PER_FRAME)
    if not own or len(own) != count:
        raise Refused("no-geometry", f"it has {count} frames and functional groups for {len(own)} of them, so the slices cannot be placed",
                      "export the series again, or as single-frame DICOM")
    groups = [Groups(one, shared) for one in own]
    planes = [_plane(one) for one in groups]
    if missing := planes.count(None):
        raise Refused("no-geometry", f"{missing} of its {count} frames have no usable position, orientation or PixelSpacing",
                      "export the original series, not a picture of it")
    size, instance = _size(dataset), number(dataset, INSTANCE, "IS") or 0.0
    found = []
    for index, (one, (orientation, position, spacing)) in enumerate(zip(groups, planes, strict=True)):
        slope, intercept, rescaled, _ = _scaling(dataset, one)
        found.append(Frame(file, index, size, orientation, position, spacing, slope, intercept, rescaled, order=(instance, float(index)),
                           marks=_marks(one)))
    return _told_apart(found, groups, [_pointer(one) for one in items(dataset, DIMENSIONS)])


def _scaling(dataset, groups: Groups) -> tuple[float, float, bool, str]:
    mapped = next((holder for holder in (groups.own, groups.shared, dataset) if holder is not None and VALUE_MAPS in holder), None)
    rescale = groups(TRANSFORM)
    if rescale is None and any(holder is not None and TRANSFORM in holder for holder in (groups.own, groups.shared)):
        raise Refused("bad-rescale", "the rescaling of its frames (PixelValueTransformationSequence) is empty or cannot be read",
                      "export the series again")
    return scaling_from(dataset if rescale is None else rescale, mapped, _philips(groups))


def _philips(groups: Groups):
    """Philips' own copy of a frame's single-frame header, or None."""
    creator, element = PHILIPS_FRAME
    for holder in (groups.own, groups.shared):
        if holder is not None and (block := private_blocks(holder).get(creator)) and (found := item(holder, Tag(block + element))) is not None:
            return found
    return None


def _plane(groups: Groups) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None:
    """(orientation, position, spacing) of a frame, None where one is missing."""
    found = [tuple(numbers(holder, tag)) if (holder := groups(group)) is not None else ()
             for group, tag in ((ORIENTATION, COSINES), (PLANE, POSITION), (MEASURES, SPACING))]
    return tuple(found) if [len(values) for values in found] == [6, 3, 2] else None


def _marks(groups: Groups) -> dict[str, object]:
    """The marks of a frame from its functional groups; in a legacy converted object also from what the converter left as it was."""
    marks: dict[str, object] = {}
    for holder in (groups.shared, groups.own):
        for tag in CONVERTED:
            if holder is not None and (kept := item(holder, tag)) is not None:
                marks |= marks_of(kept)
    marks |= _type_marks(groups)
    if (content := groups(CONTENT)) is not None:
        marks |= {"stack": text(content, STACK) or None, "time": number(content, TIME_INDEX, "UL")}
    if marks.get("time") is None and (temporal := groups(TEMPORAL)) is not None:
        marks["time"] = number(temporal, OFFSET, "FD")
    for name, group, tag in (("echo", ECHO, EFFECTIVE_ECHO), ("inversion", MODIFIER, INVERSION_TIMES)):
        if (holder := groups(group)) is not None and (value := positive(number(holder, tag, "FD"))) is not None:
            marks[name] = value
    if (cardiac := groups(CARDIAC)) is not None:
        marks["trigger"] = number(cardiac, TRIGGER_DELAY, "FD")
    if (xray := groups(XRAY)) is not None:
        marks["energy"] = number(xray, KVP)
    if (diffusion := groups(DIFFUSION)) is not None and (b_value := number(diffusion, B_VALUE, "FD")) is not None:
        gradient = item(diffusion, GRADIENT)
        directed = gradient is not None and b_value > 0 and text(diffusion, DIRECTIONALITY) in ("DIRECTIONAL", "BMATRIX", "")
        marks |= {"b_value": round(b_value, 1) + 0.0, "direction": unit(numbers(gradient, DIRECTION, "FD")) if directed else None}
    return {name: value for name, value in marks.items() if value is not None}


def _type_marks(groups: Groups) -> dict[str, object]:
    """Component and kind, from the frame's type, else from Philips' copy of the single-frame ImageType, which tells water from fat."""
    holder = next((found for tag in FRAME_TYPES if (found := groups(tag)) is not None), None)
    words = [word.upper() for word in texts(holder, FRAME_TYPE)[2:]] if holder is not None else []
    philips = _philips(groups)
    copied = [word.upper() for word in texts(philips, IMAGE_TYPE)[2:]] if philips is not None else []
    labelling = groups(LABELLING)
    context = [text(labelling, CONTEXT).upper()] if labelling is not None else []
    named = COMPONENTS.get(text(holder, COMPONENT).upper()) if holder is not None else None
    found = {"component": named or component_of(words) or component_of(copied), "kind": kind_of([*words, *context]) or kind_of(copied)}
    return {name: value for name, value in found.items() if value is not None}


def _told_apart(found: list[Frame], groups: Sequence[Groups], pointers: Sequence[int]) -> list[Frame]:
    """Where frames lie at one place with equal marks, the dimensions that the object declares, and nothing here knows, go into the mark `time`."""
    unknown = [place for place, pointer in enumerate(pointers) if pointer not in KNOWN]
    same = Counter((frame.position, frame.orientation, tuple(sorted(frame.marks.items(), key=lambda mark: mark[0]))) for frame in found)
    timed = sum("time" in frame.marks for frame in found)
    indices = [numbers(content, INDEX, "UL") if (content := one(CONTENT)) is not None else [] for one in groups] if unknown else []
    if not unknown or max(same.values()) == 1 or timed not in (0, len(found)) or any(len(index) != len(pointers) for index in indices):
        return found
    times = [(*([frame.marks["time"]] if timed else []), *(index[place] for place in unknown)) for frame, index in zip(found, indices, strict=True)]
    return [replace(frame, marks={**frame.marks, "time": time}) for frame, time in zip(found, times, strict=True)]


def _size(dataset) -> tuple[int, int]:
    return int(number(dataset, ROWS, "US") or 0), int(number(dataset, COLUMNS, "US") or 0)


def _single(dataset, file: int) -> Frame:
    """The frame of a single-frame object that gives its number of frames."""
    orientation, position, spacing = (tuple(numbers(dataset, tag)) for tag in (COSINES, POSITION, SPACING))
    if [len(orientation), len(position), len(spacing)] != [6, 3, 2]:
        raise Refused("no-geometry", "a file has no usable position, orientation or PixelSpacing, so its slice cannot be placed",
                      "export the original series, not screenshots of it")
    slope, intercept, rescaled, _ = scaling_of(dataset)
    order = (number(dataset, INSTANCE, "IS") or 0.0, 0.0)
    return Frame(file, 0, _size(dataset), orientation, position, spacing, slope, intercept, rescaled, None, order, marks_of(dataset))


def _tomogram(dataset, file: int, count: int) -> list[Frame]:
    """Slices of a reconstructed NM tomogram: the first one's position, then SpacingBetweenSlices along the normal, negative against it (C.8.4.15)."""
    words = [word.upper() for word in texts(dataset, IMAGE_TYPE)]
    kind = next((word for word in words if word in ("RECON TOMO", "RECON GATED TOMO")), None)
    if text(dataset, MODALITY) != "NM" or kind is None:
        raise Refused("multi-frame", f"it has {count} frames and nothing that says where each lies (projections, a film or captures)", SINGLE)
    detector = item(dataset, Tag("DetectorInformationSequence"))
    orientation, first = (tuple(numbers(detector, tag)) if detector is not None else () for tag in (COSINES, POSITION))
    spacing, step = tuple(numbers(dataset, SPACING)), number(dataset, STEP)
    slices, slots = (numbers(dataset, Tag(name), "US") for name in ("SliceVector", "TimeSlotVector"))
    if [len(orientation), len(first), len(spacing), len(slices)] != [6, 3, 2, count] or not step or (slots and len(slots) != count):
        raise Refused("multi-frame", f"its {count} frames have no usable position, orientation, spacing or slice number", SINGLE)
    several = [name for name in ("EnergyWindowVector", "DetectorVector", "RRIntervalVector") if len(set(numbers(dataset, Tag(name), "US"))) > 1]
    if several:
        raise Refused("multi-frame", f"its {count} frames differ in {len(several)} ways other than place and heart phase", SINGLE)
    slope, intercept, rescaled, _ = scaling_of(dataset)
    normal, instance = np.cross(orientation[:3], orientation[3:]), number(dataset, INSTANCE, "IS") or 0.0
    return [Frame(file, index, _size(dataset), orientation, tuple(float(value) for value in np.array(first) + (place - 1) * step * normal), spacing,
                  slope, intercept, rescaled, order=(instance, float(index)), marks={"time": slots[index]} if slots else {})
            for index, place in enumerate(slices)]
