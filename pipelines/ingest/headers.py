"""The header pass: only the tags that decide what a series is and whether it can be used; no pixels yet.

Everything read here stays in memory. What may leave is made in `facts.py`.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.geometry import check_stack, check_uniform
from pipelines.ingest.pseudonyms import tokens
from pipelines.ingest.source import SourceFile

IDENTITY = ("PatientID", "PatientName", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientBirthDate", "PatientMotherBirthName",
            "AccessionNumber", "StudyID", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName")
GROUPING = ("IssuerOfPatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
SERIES_KEY = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID")
DECIDING = ("Modality", "SeriesDescription", "ContrastBolusAgent", "RepetitionTime", "EchoTime", "InversionTime")
FACTS = ("Manufacturer", "ManufacturerModelName", "MagneticFieldStrength", "SliceThickness")
GEOMETRY = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "FrameOfReferenceUID", "RescaleSlope",
            "RescaleIntercept", "NumberOfFrames", "SamplesPerPixel")
UPTAKE = ("Units", "SUVType", "CorrectedImage", "DecayCorrection", "PatientWeight", "RadiopharmaceuticalInformationSequence", "SeriesDate",
          "SeriesTime", "AcquisitionDate", "AcquisitionTime")
TAGS = [*IDENTITY, *GROUPING, *DECIDING, *FACTS, *GEOMETRY, *UPTAKE, "ReferencedSeriesSequence"]

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
PREAMBLE = 128
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Header:
    """One file's tags (a pydicom data set without pixels)."""

    file: SourceFile
    tags: object

    def get(self, name: str, default=None):
        """A tag's value; a value that cannot be decoded counts as absent."""
        try:
            value = self.tags.get(name, default)
        except Exception:  # pydicom raises what a broken value makes it raise
            return default
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
            numbers = [float(item) for item in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])]
        except (TypeError, ValueError):
            return []
        return numbers


@dataclass
class Series:
    """The files of one series, ordered by SOPInstanceUID so that file names and reading order change nothing."""

    headers: list[Header] = field(default_factory=list)

    @property
    def first(self) -> Header:
        return self.headers[0]

    @property
    def patient(self) -> tuple[str, str]:
        return self.first.text("PatientID"), self.first.text("IssuerOfPatientID")

    @property
    def study(self) -> str:
        return self.first.text("StudyInstanceUID")

    @property
    def uid(self) -> str:
        return self.first.text("SeriesInstanceUID")

    @property
    def is_segmentation(self) -> bool:
        return self.first.text("SOPClassUID") in (SEGMENTATION, LABEL_MAP_SEGMENTATION)

    @property
    def frame(self) -> str:
        """Frame of reference; a series without one shares coordinates with no other."""
        return self.first.text("FrameOfReferenceUID") or f"series {self.uid}"

    @cached_property
    def identity(self) -> frozenset[str]:
        """Pieces of names and numbers of people, which no output may contain."""
        named = {header.text(name) for header in self.headers for name in IDENTITY}
        return tokens(named)

    def resolution(self) -> tuple:
        """A sort key: most slices first, then finest voxels, then the UID, so that equal sources choose alike."""
        spacing = self.first.numbers("PixelSpacing")
        return -len(self.headers), float(np.prod(spacing)) if spacing else np.inf, self.uid

    def check(self) -> None:
        """Refuse a series that is not one regular volume (see `geometry.py`). SEG objects carry their own geometry."""
        if self.is_segmentation:
            if len(self.headers) > 1:
                raise Refused("several-segmentations", f"its series holds {len(self.headers)} segmentation objects", "keep one of them per series")
            return
        if not self.first.get("Rows"):
            raise Refused("no-image", "it holds no image (a report, a plan, a presentation state or contours)",
                          "nothing to do, or convert contours (RTSTRUCT) to DICOM SEG")
        if (self.first.number("SamplesPerPixel") or 1) != 1:
            raise Refused("colour-image", "it is a colour picture, not a measurement", "nothing to do, or export the grey-scale series it shows")
        if any((header.number("NumberOfFrames") or 1) > 1 for header in self.headers):
            raise Refused("multi-frame", "it is stored as a multi-frame object, which is read for segmentations only",
                          "convert it to single-frame DICOM (dcm4che emf2sf) or give the NIfTI")
        again = "split it into one series per acquisition"
        check_uniform([(header.get("Rows"), header.get("Columns")) for header in self.headers], "mixed-matrix", "matrix sizes", again)
        check_uniform([header.text("FrameOfReferenceUID") for header in self.headers], "mixed-frame", "frames of reference", again)
        check_uniform([header.number("RescaleSlope") is None for header in self.headers], "mixed-rescale", "kinds of rescaling, some with a slope "
                      "and some without", "export the series again")
        if any(not np.isfinite(slope) or slope == 0 for header in self.headers for slope in header.numbers("RescaleSlope")):
            raise Refused("bad-rescale", "a RescaleSlope is 0 or not a number", "export the series again")
        check_stack(self._matrix("ImageOrientationPatient", 6), self._matrix("ImagePositionPatient", 3), self._matrix("PixelSpacing", 2))

    def _matrix(self, name: str, width: int) -> np.ndarray:
        rows = [header.numbers(name) for header in self.headers]
        if bad := sum(len(row) != width for row in rows):
            raise Refused("no-geometry", f"{bad} of {len(rows)} files have no usable {name}, so the slices cannot be placed",
                          "export the original series, not screenshots of it")
        return np.array(rows)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns with the offending value in the text, which may be a name; what matters is checked here instead."""
    import pydicom.config

    logger, mode = logging.getLogger("pydicom"), pydicom.config.settings.reading_validation_mode
    highdicom_logger, disabled = logging.getLogger("highdicom"), logger.disabled
    logger.disabled = highdicom_logger.disabled = True
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = highdicom_logger.disabled = disabled
        pydicom.config.settings.reading_validation_mode = mode


def looks_dicom(file: SourceFile) -> bool:
    """Whether a file is DICOM by its first bytes (the preamble, or a first element of group 8), or at least by its name."""
    with file.path.open("rb") as handle:
        start = handle.read(PREAMBLE + 4)
    return start[PREAMBLE:] == b"DICM" or start[:2] == b"\x08\x00" or file.name.lower().endswith(DICOM_SUFFIXES)


def read_header(file: SourceFile) -> Header | None:
    """The header of one file, or None for one that cannot be read or belongs nowhere."""
    import pydicom

    with file.path.open("rb") as handle:
        old_style = handle.read(2) == b"\x08\x00"  # before 1993, and some PACS still: no preamble
    try:
        header = Header(file, pydicom.dcmread(file.path, stop_before_pixels=True, specific_tags=TAGS, force=old_style))
    except Exception:  # pydicom raises what a broken file makes it raise
        return None
    return header if header.text("SeriesInstanceUID") and header.text("SOPInstanceUID") else None


def group(headers: Sequence[Header]) -> list[Series]:
    """Headers as series, ordered by patient, study time and UID."""
    series: dict[tuple, Series] = defaultdict(Series)
    for header in sorted(headers, key=lambda header: (header.text("SOPInstanceUID"), header.file.parts)):
        series[tuple(header.text(name) for name in SERIES_KEY)].headers.append(header)
    return [series[key] for key in sorted(series)]
