"""What one file of a source is, by its first bytes, and what is said of those that nothing can be made of."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import Refused

NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
#: Files that go with images and hold none: tables, notes, viewers' settings. They are counted, not refused.
COMPANION_SUFFIXES = (".json", ".tsv", ".csv", ".txt", ".md", ".xml", ".html", ".pdf", ".bval", ".bvec", ".yaml", ".yml", ".log", ".xlsx", ".docx",
                      ".ini", ".inf", ".exe", ".dll", ".js", ".css", ".png", ".jpg", ".jpeg", ".gif", ".ico", ".url")
COMPANION_NAMES = ("readme", "changes", "license", "citation")
#: Zips by content that nobody means as an archive of images.
OFFICE_SUFFIXES = (".xlsx", ".docx", ".pptx", ".odt", ".ods", ".odp", ".jar", ".npz", ".pt", ".apk")
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini", "DICOMDIR", "LOCKFILE", "VERSION")
PREAMBLE = 128
START = 512  # bytes: one block of a tar
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class SourceFile:
    """One file: where its bytes are, and the names on the way to it below the source (which may identify a patient).

    A file out of an archive that lies in a folder has the archive's name, without its suffix, among `parts`, as if it had been unpacked there.
    """

    path: Path
    parts: tuple[str, ...]
    kind: str = ""  # dicom | nifti | empty | zip | tar | companion | other; '' where nobody has looked
    archive: Path | None = None  # the archive on disk that it came out of

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def is_nifti(self) -> bool:
        return self.name.lower().endswith(NIFTI_SUFFIXES)


class Files(list[SourceFile]):
    """The readable files of a source, sorted by name, and what else was there."""

    def __init__(self, files: Iterable[SourceFile] = (), refused: Iterable[tuple[str, Refused]] = (), system: int = 0) -> None:
        super().__init__(files)
        self.refused = list(refused)  # (item for quarantine.tsv, why): entries that could not be read as files at all
        self.system = system  # files of operating systems and viewers, and hidden ones, left alone

    def kinds(self) -> Counter[str]:
        """How many files of each kind there are."""
        return Counter(kind_of(file) for file in self)


def kind_of(file: SourceFile) -> str:
    """dicom | nifti | empty | zip | tar | companion | other, from the first bytes of the file."""
    return file.kind or kind_at(file.path, file.name)


def kind_at(path: Path, name: str) -> str:
    """The same of a file that `name` is the source's name of. Raises `OSError` where it cannot be read."""
    with path.open("rb") as handle:
        start = handle.read(START)
    lower = name.lower()
    if not start:
        return "empty"
    if lower.endswith(NIFTI_SUFFIXES):
        return "nifti"
    # Before 1993, and from some PACS still, DICOM begins with its first element, of group 8, and not with a preamble.
    if start[PREAMBLE:PREAMBLE + 4] == b"DICM" or start[:2] == b"\x08\x00" or lower.endswith(DICOM_SUFFIXES):
        return "dicom"
    if start.startswith(ZIP_STARTS) and not lower.endswith(OFFICE_SUFFIXES):
        return "zip"
    if is_tar(path, start):
        return "tar"
    return "companion" if lower.endswith(COMPANION_SUFFIXES) or lower in COMPANION_NAMES else "other"


def is_tar(path: Path, start: bytes) -> bool:
    """Whether a file begins with a tar header (by its checksum), plain or compressed."""
    for magic, opener in COMPRESSED.items():
        if start.startswith(magic):
            try:
                with opener(path) as stream:
                    start = stream.read(START)
            except (OSError, EOFError, lzma.LZMAError, zlib.error):
                return False
    try:
        tarfile.TarInfo.frombuf(start[:START], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def is_junk(name: str) -> bool:
    """Whether a file or folder belongs to an operating system or a viewer, or is hidden."""
    return name in JUNK or name.startswith(".")


def unusable(files: Files) -> Iterator[tuple[str, Refused]]:
    """(item, refusal) of everything in a source that is neither DICOM nor NIfTI nor an ordinary companion of them."""
    yield from files.refused
    for number, file in enumerate(files, 1):
        item = f"source file {number} of {len(files)}"
        kind = kind_of(file)
        if kind == "empty":
            yield item, Refused("empty-file", f"{item} (by name) has 0 bytes", "copy or export that file again")
        elif kind in ("zip", "tar"):
            yield item, Refused("nested-archive", f"{item} (by name) is an archive inside an archive",
                                "unpack the outer archive yourself and give the folder")
        elif kind == "other":
            yield item, Refused("not-dicom", f"{item} (by name), of {file.path.stat().st_size} bytes, begins like neither DICOM nor any archive, "
                                "and is not named .nii or .nii.gz", "copy or export that file again if it should be an image, else remove it")
