"""The header pass: only the tags that decide what a series is and whether it can be used; no pixels yet.

Everything read here stays in memory. What may leave is made in `rules.py`.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from pipelines.errors import Refused
from pipelines.ingest.source import SourceFile

IDENTITY = ("PatientID", "PatientName")
GROUPING = ("IssuerOfPatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
SERIES_KEY = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID")
DECIDING = ("Modality", "SeriesDescription", "ContrastBolusAgent", "RepetitionTime", "EchoTime", "InversionTime", "ImageType", "BurnedInAnnotation",
            "LossyImageCompression", "PatientIdentityRemoved", "DeidentificationMethod")
FACTS = ("Manufacturer", "ManufacturerModelName", "MagneticFieldStrength", "SliceThickness", "SpacingBetweenSlices", "SeriesNumber")
GEOMETRY = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "FrameOfReferenceUID", "RescaleType",
            "RescaleSlope", "RescaleIntercept", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit",
            "PixelRepresentation", "PhotometricInterpretation", "InstanceNumber", "ImagesInAcquisition")
UPTAKE = ("Units", "SUVType", "CorrectedImage", "DecayCorrection", "PatientWeight", "RadiopharmaceuticalInformationSequence", "SeriesDate",
          "SeriesTime", "AcquisitionDate", "AcquisitionTime")
REFERENCES = ("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")
TAGS = (*IDENTITY, *GROUPING, *DECIDING, *FACTS, *GEOMETRY, *UPTAKE, *REFERENCES)

OVERLAY_BIT_POSITION = 0x60000102  # an old overlay inside the words of the pixels
PREAMBLE = 128
COPY_AGAIN = "copy or export that file again"
CHUNK = 64  # files whose headers one process reads before it reports
LONG_LENGTH_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN")  # explicit VRs of pixels, followed by a length of four bytes
UNDEFINED_LENGTH = 0xFFFFFFFF
PLAIN_VRS = frozenset(["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"])


@dataclass(frozen=True, slots=True)
class Spot:
    """Where uncompressed pixels lie in a file, so that they can be read without parsing it again."""

    offset: int
    length: int  # bytes declared
    available: int  # bytes that the file has from `offset` on
    order: str  # '<' | '>'
    kind: str  # 'stored' | 'float' | 'double'


@dataclass(frozen=True)
class Header:
    """One file's tags by keyword, as plain text, numbers, lists and (for sequences) lists of mappings."""

    file: SourceFile
    tags: Mapping[str, object]
    marks: Mapping[str, object] = field(default_factory=dict)
    scaling: tuple[float, float, bool, str] | Refused = (1.0, 0.0, False, "")  # slope, intercept, whether the header gave them, what they give
    syntax: str = ""  # transfer syntax UID
    spot: Spot | None = None  # None where the pixels are compressed, or there are none

    def get(self, name: str, default=None):
        """A tag's value; one that is empty or cannot be decoded counts as absent."""
        value = self.tags.get(name, default)
        return default if value is None or value == "" else value

    def text(self, name: str) -> str:
        return str(self.get(name, "")).strip()

    def number(self, name: str) -> float | None:
        """A number, the first of several; None where there is none."""
        values = self.numbers(name)
        return values[0] if values else None

    def numbers(self, name: str) -> list[float]:
        value = self.get(name)
        try:
            return [float(item) for item in (value if isinstance(value, list | tuple) else [value])]
        except (TypeError, ValueError):
            return []

    def words(self, name: str) -> list[str]:
        """The values of a tag with several, in upper case."""
        value = self.get(name, [])
        return [str(item).strip().upper() for item in (value if isinstance(value, list | tuple) else [value])]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns with the offending value in the text, which may be a name; what matters is checked here instead."""
    import pydicom.config

    mode, loggers = pydicom.config.settings.reading_validation_mode, [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # by level, which the loggers of their modules inherit
        logger.setLevel(logging.CRITICAL + 1)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        pydicom.config.settings.reading_validation_mode = mode


def scan(files: Sequence[SourceFile], jobs: int = 1) -> list[Header | Refused]:
    """The headers of `files`, in their order; a refusal in place of each that has none."""
    from pipelines.parallel import spread

    chunks = [files[start:start + CHUNK] for start in range(0, len(files), CHUNK)]
    return [header for chunk in spread(_scan_chunk, chunks, jobs) for header in chunk]


def _scan_chunk(files: Sequence[SourceFile]) -> list[Header | Refused]:
    with quiet():
        return [_scan_one(file) for file in files]


def _scan_one(file: SourceFile) -> Header | Refused:
    try:
        return read_header(file)
    except Refused as refused:
        return refused
    except OSError as error:
        return Refused("unreadable-file", f"it cannot be read ({error.strerror or type(error).__name__})", COPY_AGAIN)
    except Exception as error:  # pydicom raises what a broken file makes it raise
        return Refused("unreadable-file", f"it has no readable DICOM header ({type(error).__name__}: truncated or damaged)", COPY_AGAIN)


def read_header(file: SourceFile) -> Header:
    """The header of one file. Raises `Refused`, or what pydicom raises of a broken one."""
    import pydicom

    from pipelines.ingest.marks import marks_of
    from pipelines.ingest.scaling import scaling_of

    with file.path.open("rb") as handle:
        start = handle.read(PREAMBLE + 4)
        if not start:
            raise Refused("empty-file", "it is empty (0 bytes)", COPY_AGAIN)
        handle.seek(0)
        bare = start[PREAMBLE:] != b"DICM" and start[:2] in (b"\x08\x00", b"\x02\x00")  # before 1993, and some PACS still: no preamble
        dataset = pydicom.dcmread(handle, stop_before_pixels=True, specific_tags=_wanted(), force=bare)
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else ""
        spot = _spot(handle, dataset, syntax)
    tags = plain(dataset)
    if missing := [name for name in ("SOPInstanceUID", "SeriesInstanceUID") if not tags.get(name)]:
        raise Refused("unreadable-file", f"its header has no {' and no '.join(missing)} (truncated, damaged or no image)", COPY_AGAIN)
    try:
        scaling = scaling_of(dataset)
    except Refused as refused:
        scaling = refused
    return Header(file, tags, marks_of(dataset), scaling, syntax, spot)


@cache
def _wanted() -> list[int]:
    """All tags that the pass reads, as numbers."""
    from pipelines.ingest import marks, scaling

    return sorted({*_names(), *marks.TAGS, *scaling.TAGS, *marks.private_tags(scaling.PRIVATE)})


@cache
def _names() -> dict[int, tuple[str, str]]:
    """Tag -> (keyword, value representation) of what becomes plain."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    names = {tag_for_keyword(name): name for name in TAGS}
    return {OVERLAY_BIT_POSITION: ("OverlayBitPosition", "US"), **{tag: (name, dictionary_VR(tag)) for tag, name in names.items()}}


def plain(dataset) -> dict[str, object]:
    """The tags of the pass as text, numbers, lists and mappings, which cross process borders fast."""
    tags = {}
    for tag, (name, usual) in _names().items():
        if tag not in dataset:
            continue
        raw = dataset.get_item(tag)
        value = raw.value
        if isinstance(value, bytes) and (raw.VR or usual) in PLAIN_VRS and value.isascii() and b"\x1b" not in value:
            items = [item.strip(" \0") for item in value.decode().split("\\")]
            tags[name] = items[0] if len(items) == 1 else items
        else:
            try:
                tags[name] = _plain_value(dataset[tag].value)
            except Exception:  # a value that pydicom cannot decode counts as absent
                continue
    return tags


def _plain_value(value: object) -> object:
    from pydicom.dataset import Dataset

    if isinstance(value, Dataset):
        return {element.keyword: _plain_value(element.value) for element in value if element.keyword}
    if isinstance(value, int | float | str | bytes | None):
        return value if type(value) in (int, float, str, bytes, type(None)) else (str(value) if isinstance(value, str) else float(value))
    if isinstance(value, Sequence):
        return [_plain_value(item) for item in value]
    return str(value)


def _spot(handle, dataset, syntax: str) -> Spot | None:
    """Where native pixels begin, when the header pass stopped right before them."""
    from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

    if syntax and (syntax == DeflatedExplicitVRLittleEndian or UID(syntax).is_compressed):
        return None
    order = "big" if syntax == ExplicitVRBigEndian else "little"
    position, element = handle.tell(), handle.read(12)
    if len(element) < 8:
        return None
    group, number = int.from_bytes(element[:2], order), int.from_bytes(element[2:4], order)
    kind = {0x0010: "stored", 0x0008: "float", 0x0009: "double"}.get(number) if group == 0x7FE0 else None
    if kind is None:
        return None
    explicit = element[4:6] in LONG_LENGTH_VRS and syntax != ImplicitVRLittleEndian
    if syntax and syntax != ImplicitVRLittleEndian and not explicit:  # a damaged type, after which the length may be anywhere
        return None
    length = int.from_bytes(element[8:12] if explicit else element[4:8], order)
    offset = position + (12 if explicit else 8)
    size = handle.seek(0, 2)
    return None if length == UNDEFINED_LENGTH else Spot(offset, length, max(size - offset, 0), "<" if order == "little" else ">", kind)
