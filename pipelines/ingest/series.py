"""A series: the headers of its files, what they say it is, and the volumes it holds."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.frames import Frame
from pipelines.ingest.geometry import EXPORT_AGAIN, check_uniform
from pipelines.ingest.headers import SERIES_KEY, Header, quiet
from pipelines.ingest.labels.references import frame_of_reference
from pipelines.ingest.split import Part, split
from pipelines.params import Limits

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"
LABEL_CLASSES = {SEGMENTATION: "seg", LABEL_MAP_SEGMENTATION: "seg", CONTOURS: "rtstruct"}
PLANE = {"ImageOrientationPatient": 6, "ImagePositionPatient": 3, "PixelSpacing": 2}  # and how many numbers each has
PIXEL_FORMAT = ("BitsStored", "PixelRepresentation", "HighBit")  # type 1 (PS3.3 C.7.6.3.1); HighBit follows from BitsStored where absent
LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")  # JPEG baseline and extended: lossy whatever the header says
AGAIN = "split it into one series per acquisition"


@dataclass
class Series:
    """The files of one series, ordered by SOPInstanceUID so that file names and reading order change nothing."""

    headers: list[Header] = field(default_factory=list)
    copies: int = 0  # identical files left out
    conflicts: int = 0  # files that differ although they have the same SOPInstanceUID

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
    def paths(self) -> tuple[Path, ...]:
        return tuple(header.file.path for header in self.headers)

    @property
    def label_kind(self) -> str:
        """'seg' or 'rtstruct' for objects that are labels by their class, '' for all others."""
        return LABEL_CLASSES.get(self.first.text("SOPClassUID"), "")

    @property
    def frame(self) -> str:
        """Frame of reference; a series without one shares coordinates with no other."""
        return frame_of_reference(self.first.tags) or f"series {self.uid}"

    @property
    def note(self) -> str:
        """What of the files is worth knowing."""
        copies = [f"{self.copies} identical copies left out"] if self.copies else []
        lossy = any(header.text("LossyImageCompression") == "01" or header.syntax in LOSSY for header in self.headers)
        return "; ".join([*copies, *(["lossy compression"] if lossy else []), *self._gaps()])

    def _gaps(self) -> list[str]:
        """Signs that images are missing where geometry cannot tell: at the ends of a stack. No refusal, because whole series can have them too."""
        numbers = {int(number) for header in self.headers if (number := header.number("InstanceNumber")) is not None}
        missing = max(numbers, default=0) - len(numbers) if len(numbers) == len(self.headers) and min(numbers) > 0 else 0
        stated, found = int(self.first.number("ImagesInAcquisition") or 0), len(self.headers)
        return [*([f"instance numbers run to {max(numbers)}, {missing} of them are not there"] if 0 < missing < found else []),
                *([f"header speaks of {stated} images, {found} are there"] if stated > found else [])]

    @property
    def units(self) -> str:
        """What the measured values are, where the header says it."""
        units = {header.scaling[3] for header in self.headers if not isinstance(header.scaling, Refused)} - {""}
        return "; ".join(sorted(units))

    def parts(self, limits: Limits) -> list[Part]:
        """The volumes of the series, each whole and regular or with the reason why not. Raises `Refused` when it holds none."""
        self._check_kind()
        with quiet():
            frames = self._frames()
        self._check_size(frames, limits)
        return split(frames)

    def check_label(self) -> None:
        """Refuse a label object that shares its series with others."""
        if self.conflicts:
            raise self._conflict()
        if len(self.headers) > 1:
            raise Refused("several-segmentations", f"its series holds {len(self.headers)} label objects", "keep one of them per series")

    def _conflict(self) -> Refused:
        return Refused("conflicting-copies", f"{self.conflicts} of its files have the SOPInstanceUID of another one, but other content",
                       "keep the file that is right, and remove the others")

    def _check_kind(self) -> None:
        """Refuse what is no measured image."""
        if self.conflicts:
            raise self._conflict()
        if not all(header.number("Rows") and header.number("Columns") for header in self.headers):
            some = sum(not (header.number("Rows") and header.number("Columns")) for header in self.headers)
            what = "it holds no image (a report, a plan, a presentation state)" if some == len(self.headers) else \
                f"{some} of its {len(self.headers)} files hold no image or one of no size"
            raise Refused("no-image", what, "nothing to do, or export the images it belongs to")
        if any((header.number("SamplesPerPixel") or 1) != 1 or header.words("PhotometricInterpretation") == ["PALETTE COLOR"]
               for header in self.headers):
            raise Refused("colour-image", "it is a colour picture, not a measurement", "nothing to do, or export the grey-scale series it shows")
        if burned := sum(header.text("BurnedInAnnotation").upper() == "YES" for header in self.headers):
            raise Refused("burned-in", f"{burned} of its {len(self.headers)} images have text burned into the pixels, which may name the patient",
                          "export the original series; it is not used, because no header can take such text out")
        if any("LOCALIZER" in header.words("ImageType") for header in self.headers):
            raise Refused("localiser", "it is or holds a localiser (ImageType)", "nothing to do, or export the series without its localiser")
        check_uniform([header.text("SOPClassUID") for header in self.headers], "mixed-objects", "kinds of object", AGAIN)
        check_uniform([header.text("FrameOfReferenceUID") for header in self.headers], "mixed-frame", "frames of reference", AGAIN)
        for name in ("RescaleType", "Units"):
            check_uniform([header.text(name) for header in self.headers], "mixed-rescale", "units of rescaled values", AGAIN)
        given = [tuple(header.get(name) is not None for name in ("RescaleSlope", "RescaleIntercept")) for header in self.headers]
        check_uniform(given, "mixed-rescale", "kinds of rescaling, some with a slope or an intercept and some without", EXPORT_AGAIN)
        self._check_pixel_format()
        for header in self.headers:
            if isinstance(header.scaling, Refused):
                raise header.scaling

    def _check_pixel_format(self) -> None:
        """Refuse native pixels whose bits could be read in two ways (float ones have no such tags; decoders check compressed ones)."""
        stored = [header for header in self.headers if header.spot is not None and header.spot.kind == "stored"]
        for name in PIXEL_FORMAT:
            if missing := sum(len(header.numbers(name)) != 1 for header in stored if name in header.tags or name != "HighBit"):
                raise Refused("bad-bits", f"{name} is missing or no single number in {missing} of its {len(self.headers)} files, so their pixels "
                              "cannot be read for certain", EXPORT_AGAIN)
        check_uniform([header.number("PixelRepresentation") for header in self.headers], "mixed-pixels", "kinds of pixels, some signed and some not",
                      AGAIN)

    def _frames(self) -> list[Frame]:
        from pipelines.ingest import enhanced, mosaic

        frames: list[Frame] = []
        self._check_plane([header for header in self.headers if _is_classic(header)])
        for number, header in enumerate(self.headers):
            if mosaic.is_mosaic(header.words("ImageType")):
                frames += mosaic.frames(_reread(header), number)
            elif _is_classic(header):
                frames.append(_classic(header, number))
            else:
                frames += enhanced.frames(_reread(header), number)
        return frames

    def _check_plane(self, classic: Sequence[Header]) -> None:
        """Refuse single-frame objects that cannot be placed."""
        for name, width in PLANE.items():
            if bad := sum(len(header.numbers(name)) != width for header in classic):
                raise Refused("no-geometry", f"{bad} of its {len(self.headers)} files have no usable {name}, so their slices cannot be placed",
                              "export the original series, not screenshots of it")

    def _check_size(self, frames: Sequence[Frame], limits: Limits) -> None:
        """Refuse what would not fit, and what a file is too short for, before anything is read."""
        voxels = float(sum(frame.size[0] * frame.size[1] for frame in frames))
        if voxels > limits.voxels:
            raise Refused("absurd-size", f"its headers speak of {voxels:.2g} voxels, more than params ingest.limits.voxels ({limits.voxels:.2g})",
                          "raise the limit if that is true, or export the series again")
        short = []
        for header in self.headers:
            if header.spot is None:
                continue
            bits = {"stored": header.number("BitsAllocated") or 0, "float": 32, "double": 64}[header.spot.kind]
            count = (header.number("Rows") or 0) * (header.number("Columns") or 0) * (header.number("NumberOfFrames") or 1)
            if (found := min(header.spot.length, header.spot.available)) < (expected := int(count * bits // 8)):
                short.append(f"{found} of {expected} bytes")
        if short:
            raise Refused("truncated-file", f"{len(short)} of its {len(self.headers)} files end before their pixels do (the first has {short[0]})",
                          "copy or export these files again")
        if none := sum(header.syntax == "" and header.spot is None for header in self.headers):
            raise Refused("no-pixels", f"{none} of its {len(self.headers)} files have no pixels", EXPORT_AGAIN)


def _is_classic(header: Header) -> bool:
    """Whether a file holds one image that its own top-level tags place (also where it says that it has one frame)."""
    return (header.number("NumberOfFrames") or 1) == 1 and not (header.get("NumberOfFrames") and not header.get("ImagePositionPatient"))


def _classic(header: Header, number: int) -> Frame:
    """The one frame of a single-frame object."""
    slope, intercept, rescaled, _ = header.scaling
    plane = (tuple(header.numbers(name)) for name in PLANE)
    order = (header.number("InstanceNumber") or 0.0, 0.0)
    return Frame(number, 0, (int(header.number("Rows")), int(header.number("Columns"))), *plane, slope, intercept, rescaled, None, order,
                 dict(header.marks))


def _reread(header: Header):
    """All of a file's tags but its pixels."""
    import pydicom

    return pydicom.dcmread(header.file.path, stop_before_pixels=True, force=True)


def group(headers: Sequence[Header]) -> list[Series]:
    """Headers as series, ordered by patient, study and UID. Of files with the same content and SOPInstanceUID one is kept."""
    series: dict[tuple, Series] = defaultdict(Series)
    for header in sorted(headers, key=lambda header: (header.text("SOPInstanceUID"), header.file.parts)):
        series[tuple(header.text(name) for name in SERIES_KEY)].headers.append(header)
    for one in series.values():
        _leave_copies_out(one)
    return [series[key] for key in sorted(series)]


def _leave_copies_out(series: Series) -> None:
    kept: dict[str, Header] = {}
    for header in series.headers:
        other = kept.setdefault(header.text("SOPInstanceUID"), header)
        if other is not header:
            same = _content(other) == _content(header)
            series.copies += same
            series.conflicts += not same
    series.headers = list(kept.values())


def _content(header: Header) -> tuple:
    """What makes two files the same image: the tags read and the pixels (of compressed ones the whole file)."""
    with header.file.path.open("rb") as handle:
        handle.seek(header.spot.offset if header.spot else 0)
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return dict(header.tags), dict(header.marks), digest


def resolution(part: Part) -> tuple[int, float]:
    """A sort key of volumes: most slices first, then finest voxels."""
    return -len(part.frames), float(np.prod(part.frames[0].spacing))
