"""The files of a source, be it a folder or a zip, without trusting either.

A zip from a PACS is written by others: its member names may climb out of the folder, its members may be links or unpack to more than
the disk holds. And file names often are patient names, so unpacked members get numbers for names and live only while they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.errors import DataError, UsageError

MAX_FILES = 1_000_000
MAX_FILE_BYTES = 8 << 30  # larger than any clinical multi-frame object
MAX_TOTAL_BYTES = 256 << 30
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini", "DICOMDIR", "LOCKFILE", "VERSION")
NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class SourceFile:
    """One file: where its bytes are, and the names on the way to it below the source (which may identify a patient)."""

    path: Path
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def is_nifti(self) -> bool:
        return self.name.lower().endswith(NIFTI_SUFFIXES)


@contextlib.contextmanager
def open_source(source: Path) -> Iterator[list[SourceFile]]:
    """The files below a folder or inside a zip, sorted by name; unpacked ones vanish when the block ends."""
    source = Path(source)
    if not source.exists():
        raise UsageError(f"--source {source} does not exist; give a folder or a .zip with DICOM or BIDS NIfTI")
    if source.is_dir():
        yield _walk(source)
    elif zipfile.is_zipfile(source):
        with _ending_on_sigterm(), tempfile.TemporaryDirectory(prefix="semiflow-") as folder:
            yield _unpack(source, Path(folder))
    else:
        raise UsageError(f"--source {source} is neither a folder nor a zip (a truncated zip looks like this too); give a folder or a whole .zip")


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program the ordinary way, so that unpacked patient files are removed. Only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fingerprint(source: Path, files: list[SourceFile]) -> str:
    """A hash that changes when the source does: names, sizes and times, not contents, which would cost a second reading."""
    digest = hashlib.sha256()
    stamps = [source.stat()] if source.is_file() else [file.path.stat() for file in files]
    names = ["/".join(file.parts) for file in files]
    digest.update("\n".join([*names, *(f"{stamp.st_size} {stamp.st_mtime_ns}" for stamp in stamps)]).encode())
    return digest.hexdigest()


def _walk(source: Path) -> list[SourceFile]:
    """Files of a folder. Links to files are read (DVC links data), links to folders are not followed (they can be loops)."""
    files = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        for name in names:
            path = Path(folder, name)
            if not _is_junk(name) and path.is_file():
                files.append(SourceFile(path, path.relative_to(source).parts))
    return sorted(files, key=lambda file: file.parts)


def _unpack(source: Path, folder: Path) -> list[SourceFile]:
    files = []
    try:
        with zipfile.ZipFile(source) as archive:
            members = _safe_members(source, archive)
            needed = sum(member.file_size for member in members)
            if needed > shutil.disk_usage(folder).free:
                raise DataError(f"{source} unpacks to {needed / 1e9:.1f} GB, more than {folder.parent} has free; set TMPDIR to a larger disk")
            for number, member in enumerate(members):
                parts = PurePosixPath(member.filename).parts
                target = folder / (f"{number:07d}" + "".join(PurePosixPath(parts[-1].lower()).suffixes[-2:] if _looks_nifti(parts[-1]) else ()))
                with archive.open(member) as reader, target.open("wb") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
                files.append(SourceFile(target, parts))
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{source} cannot be unpacked ({type(error).__name__}: damaged, encrypted or of an unknown kind); export it again") from None
    return sorted(files, key=lambda file: file.parts)


def _safe_members(source: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Members to unpack; a zip that tries to leave its folder is refused whole. Names are not repeated: they may be a patient's."""
    members = archive.infolist()
    if len(members) > MAX_FILES:
        raise DataError(f"{source} has {len(members)} members, more than {MAX_FILES}; unpack it yourself and give the folder")
    for number, member in enumerate(members, 1):
        where = f"member {number} of {len(members)} of {source}"
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
            raise DataError(f"{where} has a name that leads out of the archive; refused, because no exporter of images writes such a name")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{where} is a symbolic link; refused, pack the files themselves")
        if member.file_size > MAX_FILE_BYTES:
            raise DataError(f"{where} unpacks to {member.file_size / 1e9:.1f} GB, more than {MAX_FILE_BYTES / 1e9:.0f} GB; refused")
    total = sum(member.file_size for member in members)
    if total > MAX_TOTAL_BYTES:
        raise DataError(f"{source} unpacks to {total / 1e9:.0f} GB, more than {MAX_TOTAL_BYTES / 1e9:.0f} GB; unpack it yourself and give the folder")
    return [member for member in members if not member.is_dir() and not any(_is_junk(part) for part in PurePosixPath(member.filename).parts)]


def _looks_nifti(name: str) -> bool:
    return name.lower().endswith(NIFTI_SUFFIXES)


def _is_junk(name: str) -> bool:
    return name in JUNK or name.startswith(".")
