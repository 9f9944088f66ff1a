"""What tells images at one place apart: echo, b-value, phase or magnitude, time point ... as a single-frame header has it.

Standard elements first, then the private ones of each manufacturer, found by their creator in any block (PS3.5 7.8.1). Their meaning is as
dcm2niix and pydicom's private dictionary document it. Directions are used to tell images apart, not as gradient tables: GE's are in the frame of the
scan plane (frequency, phase, slice), not the patient's, and stay so.
"""

from __future__ import annotations

import math
import re

from pydicom.tag import Tag

from pipelines.ingest.elements import FIRST_BLOCK, number, numbers, private_blocks, text, texts

MODALITY, IMAGE_TYPE, COMPONENT = Tag("Modality"), Tag("ImageType"), Tag("ComplexImageComponent")
ECHO, INVERSION, KVP, STACK = Tag("EchoTime"), Tag("InversionTime"), Tag("KVP"), Tag("StackID")
B_VALUE, DIRECTION, SEQUENCE, COMMENTS = Tag("DiffusionBValue"), Tag("DiffusionGradientOrientation"), Tag("SequenceName"), Tag("ImageComments")
TRIGGER, TRIGGER_DELAY = Tag("TriggerTime"), Tag("NominalCardiacTriggerDelayTime")
TIME, FRAME_TIME = Tag("TemporalPositionIdentifier"), Tag("FrameReferenceTime")

GE_PARAMETERS, GE_ACQUISITION = (0x0043, "GEMS_PARM_01"), (0x0019, "GEMS_ACQU_01")
SIEMENS, UNITED = (0x0019, "SIEMENS MR HEADER"), (0x0065, "Image Private Header")
PHILIPS, PHILIPS_MR = (0x2001, "Philips Imaging DD 001"), (0x2005, "Philips MR Imaging DD 001")
GE_B_OFFSET = 1e9  # newer GE software adds it to b-values that differ within a scan
MOST_B = 1e5  # s/mm2: what is above is no b-value

#: Private elements used here, (group, creator, element).
PRIVATE = (*((*GE_PARAMETERS, element) for element in (0x2F, 0x39)), *((*GE_ACQUISITION, element) for element in (0xBB, 0xBC, 0xBD)),
           *((*SIEMENS, element) for element in (0x0C, 0x0E)), *((*UNITED, element) for element in (0x09, 0x37)),
           *((*PHILIPS, element) for element in (0x03, 0x08)), *((*PHILIPS_MR, element) for element in (0xB0, 0xB1, 0xB2)))
STANDARD = (MODALITY, IMAGE_TYPE, COMPONENT, ECHO, INVERSION, KVP, STACK, B_VALUE, DIRECTION, SEQUENCE, COMMENTS, TRIGGER, TRIGGER_DELAY, TIME,
            FRAME_TIME)
BLOCKS = range(FIRST_BLOCK, FIRST_BLOCK + 8)  # where private blocks begin in practice


def private_tags(elements) -> list[int]:
    """Tags at which private (group, creator, element)s can lie, with those of the creators themselves."""
    tags = {Tag(group, block) for group, _, _ in elements for block in BLOCKS}
    return sorted(tags | {Tag(group, block << 8 | element) for group, _, element in elements for block in BLOCKS})


#: What the header pass must read.
TAGS = (*STANDARD, *private_tags(PRIVATE))

COMPONENTS = {"M": "magnitude", "P": "phase", "R": "real", "I": "imaginary", "MAGNITUDE": "magnitude", "PHASE": "phase", "REAL": "real",
              "IMAGINARY": "imaginary", "PHASE MAP": "phase", "PHASE_MAP": "phase"}
GE_COMPONENTS = ("magnitude", "phase", "real", "imaginary")
#: Kinds of image -> the values of ImageType (from the third on) and FrameType that name them. Whatever is not here is ignored.
NAMES = {
    "water": ("W", "WATER"), "fat": ("F", "FAT"), "in-phase": ("IP", "IN_PHASE"),
    "out-phase": ("OP", "OUT_PHASE", "OPP_PHASE", "OPPOSED_PHASE", "OUT_OF_PHASE"), "fat-fraction": ("FF", "FAT_FRACTION"),
    "water-fraction": ("WF", "WATER_FRACTION"), "adc": ("ADC", "ADC_UNSPECIFIED"), "eadc": ("EADC", "EXP"),
    "trace": ("TRACEW", "TRACE"), "fa": ("FA",),
    "tensor": ("TENSOR",), "mip": ("MIP", "MAXIMUM"), "minip": ("MNIP", "MINIP", "MINIMUM"), "subtraction": ("SUB", "SUBTRACTION"), "mean": ("MEAN",),
    "deviation": ("STDDEV", "STD_DEVIATION"), "swi": ("SWI",), "t1": ("T1", "T1 MAP", "T1_MAP"), "t2": ("T2", "T2 MAP", "T2_MAP"),
    "t2star": ("T2_STAR", "T2STAR", "T2_STAR_MAP"), "r2star": ("R2_STAR", "R2STAR", "R2_STAR_MAP"), "r2": ("R2",), "b0": ("B0", "B0 MAP"),
    "b1": ("B1", "B1 MAP"), "velocity": ("VELOCITY", "VELOCITY MAP"), "cbf": ("CBF", "RELCBF"), "cbv": ("CBV", "RELCBV"), "mtt": ("MTT", "RELMTT"),
    "ttp": ("TTP",), "tmax": ("TMAX",), "label": ("LABEL",), "control": ("CONTROL",), "m0": ("M_ZERO_SCAN",), "localiser": ("LOCALIZER",)}
KINDS = {word: kind for kind, words in NAMES.items() for word in words}
PHILIPS_COMPONENT = re.compile(r"([MPRI])_(?:FFE|SE|TSE|IR|EPI|B0|B1|PCA|TFE)")
SIEMENS_SEQUENCE = re.compile(r"\*?ep_b(\d+)(?:#(\d+))?")
CANON_COMMENT = re.compile(r"b=(\d+(?:\.\d+)?)(?:\((-?[\d.]+),(-?[\d.]+),(-?[\d.]+)\))?")


def marks_of(dataset) -> dict[str, object]:
    """The marks (see `frames.Frame`) that a single-frame header holds. Absent ones are left out; nothing is raised."""
    modality, words = text(dataset, MODALITY), [word.upper() for word in texts(dataset, IMAGE_TYPE)[2:]]
    blocks = private_blocks(dataset)
    marks: dict[str, object] = {"stack": text(dataset, STACK) or None, "kind": kind_of(words)}
    if modality == "CT":
        marks["energy"] = number(dataset, KVP)
    if modality == "PT" and (milliseconds := number(dataset, FRAME_TIME)) is not None:
        marks["time"] = milliseconds / 1000
    if modality in ("MR", ""):
        marks |= {"echo": positive(number(dataset, ECHO)), "inversion": positive(number(dataset, INVERSION)),
                  "component": _component(dataset, words, blocks), **_diffusion(dataset, blocks)}
    marks["trigger"] = _trigger(dataset, blocks)
    if (time := number(dataset, TIME, "IS")) is not None:
        marks["time"] = time
    return {name: value for name, value in marks.items() if value is not None}


def kind_of(words) -> str | None:
    """The kind of image that values of ImageType or FrameType name, in upper case."""
    return "+".join(dict.fromkeys(KINDS[word] for word in words if word in KINDS)) or None


def component_of(words) -> str | None:
    """The part of a complex signal that values of ImageType name, in upper case."""
    for word in words:
        if (name := COMPONENTS.get(word)) or ((found := PHILIPS_COMPONENT.fullmatch(word)) and (name := COMPONENTS[found[1]])):
            return name
    return None


def positive(value: float | None) -> float | None:
    """A time in ms without the digits of its rounding; 0 stands for none."""
    return round(value, 3) if value is not None and value > 0 else None


def unit(vector: list[float]) -> tuple[float, ...] | None:
    """A direction as a hashable unit vector, None for none."""
    length = math.hypot(*vector)
    if len(vector) != 3 or not math.isfinite(length) or length < 1e-3:
        return None
    return tuple(round(value / length, 3) + 0.0 for value in vector)


def _component(dataset, words: list[str], blocks: dict) -> str | None:
    if (block := blocks.get(GE_PARAMETERS)) and (code := number(dataset, block + 0x2F, "SS")) in (0, 1, 2, 3):
        return GE_COMPONENTS[int(code)]
    return COMPONENTS.get(text(dataset, COMPONENT).upper()) or component_of(words)


def _diffusion(dataset, blocks: dict) -> dict[str, object]:
    """b-value and direction. Only directions at b > 0 count: the others are left-overs of the scan's settings."""
    b_value, direction = number(dataset, B_VALUE, "FD"), numbers(dataset, DIRECTION, "FD")
    for reader in (_siemens, _philips, _ge, _united, _named) if b_value is None or not direction else ():
        found_b, found_direction = reader(dataset, blocks)
        b_value, direction = found_b if b_value is None else b_value, direction or found_direction
    if b_value is None or not 0 <= b_value < MOST_B:
        return {}
    at = direction if isinstance(direction, tuple) else unit(direction)
    return {"b_value": round(b_value, 1) + 0.0, "direction": at if b_value > 0 else None}


def _siemens(dataset, blocks: dict):
    if not (block := blocks.get(SIEMENS)):
        return None, []
    return number(dataset, block + 0x0C, "IS"), numbers(dataset, block + 0x0E, "FD")


def _philips(dataset, blocks: dict):
    block, second = blocks.get(PHILIPS), blocks.get(PHILIPS_MR)
    b_value = number(dataset, block + 0x03, "FL") if block else None
    parts = [number(dataset, second + element, "FL") for element in (0xB0, 0xB1, 0xB2)] if second else []
    return b_value, [] if None in parts else parts


def _ge(dataset, blocks: dict):
    block, second = blocks.get(GE_PARAMETERS), blocks.get(GE_ACQUISITION)
    b_value = number(dataset, block + 0x39, "IS") if block else None
    if b_value is not None and b_value >= GE_B_OFFSET:
        b_value -= GE_B_OFFSET
    parts = [number(dataset, second + element) for element in (0xBB, 0xBC, 0xBD)] if second else []
    return b_value, [] if None in parts else parts


def _united(dataset, blocks: dict):
    if not (block := blocks.get(UNITED)):
        return None, []
    return number(dataset, block + 0x09, "FD"), numbers(dataset, block + 0x37, "FD")


def _named(dataset, blocks: dict):
    """What is left when private elements were removed: Siemens' sequence name ('ep_b1000#3': the third direction), Canon's comment."""
    if found := SIEMENS_SEQUENCE.match(text(dataset, SEQUENCE)):
        return float(found[1]), (float(found[2]),) if found[2] else []
    if found := CANON_COMMENT.match(text(dataset, COMMENTS)):
        return float(found[1]), [float(part) for part in found.groups()[1:]] if found[2] else []
    return None, []


def _trigger(dataset, blocks: dict) -> float | None:
    """ms after the R wave; where a Philips header has only the number of the heart phase, that."""
    for tag, vr in ((TRIGGER, "DS"), (TRIGGER_DELAY, "FD")):
        if (value := number(dataset, tag, vr)) is not None:
            return round(value, 3)
    return number(dataset, block + 0x08, "IS") if (block := blocks.get(PHILIPS)) else None
