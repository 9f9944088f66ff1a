"""Zip and tar, unpacked by Python's own readers into numbered files, within limits that hold for what comes out, not for what is declared."""

from __future__ import annotations

import errno
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from pipelines.errors import Refused
from pipelines.ingest.source.files import COMPRESSED, NIFTI_SUFFIXES, START, Files, SourceFile, is_junk, is_tar, kind_at
from pipelines.params import Limits

#: Below this an archive may compress as well as it likes: a few masks do, and it fills no disk.
HARMLESS_BYTES = 256_000_000
MAX_HEADER_BYTES = 1 << 20  # of a tar member: long names and times, read into memory
LOCAL_HEADER_BYTES = 30  # the least that lies before a zip member's data
PIECE = 1 << 20
THREADS = 4
UNPACK_YOURSELF = "if it is to be trusted, unpack it yourself and give the folder"
EXPORT_AGAIN = "export it again"
ARCHIVE_SUFFIX = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz))$", re.IGNORECASE)
#: What the readers raise on broken archives (OSError apart).
DAMAGES = (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error, lzma.LZMAError, MemoryError)


@dataclass
class Budget:
    """What a source may still unpack to, over all of its archives."""

    limits: Limits
    files: int = 0
    bytes: int = 0
    archives: int = 0

    def count(self) -> None:
        """One more file."""
        self.files += 1
        if self.files > self.limits.files:
            raise Refused("archive-files", f"the source has more than {self.limits.files} files", UNPACK_YOURSELF)

    def check_size(self, size: int, where: str) -> None:
        if size > self.limits.file_gb * 1e9:
            raise Refused("archive-size", f"{where} unpacks to more than {self.limits.file_gb:g} GB; refused", UNPACK_YOURSELF)

    def check_total(self, unpacked: int, packed: int) -> None:
        """Whether one archive of `packed` bytes may become `unpacked` bytes, beside what others have become."""
        if self.bytes + unpacked > self.limits.total_gb * 1e9:
            raise Refused("archive-size", f"the source unpacks to more than {self.limits.total_gb:g} GB; refused", UNPACK_YOURSELF)
        if unpacked > max(HARMLESS_BYTES, packed * self.limits.ratio):
            raise Refused("archive-ratio", f"it unpacks to more than {self.limits.ratio:g} times its {packed} bytes; refused, images do not compress "
                          "so well", UNPACK_YOURSELF)


class Target:
    """Where the members of one archive go, as numbered files."""

    def __init__(self, archive: Path, folder: Path, budget: Budget) -> None:
        self.archive, self.folder, self.budget = archive, folder, budget
        self.packed, self.files, self.system = archive.stat().st_size, [], 0

    def write(self, number: int, parts: tuple[str, ...], reader: IO[bytes]) -> None:
        """One member's bytes. Both readers give no more of them than its header declares, which has been checked by then.

        Threads may write members side by side, each under its own number.
        """
        name = parts[-1].lower()
        suffix = next((suffix for suffix in NIFTI_SUFFIXES[::-1] if name.endswith(suffix)), "")  # nibabel tells by the name
        path = self.folder / f"{number:07d}{suffix}"
        with path.open("xb") as writer:
            shutil.copyfileobj(reader, writer, PIECE)
        self.files.append(SourceFile(path, parts, kind_at(path, parts[-1]), self.archive))


def archive_kind(path: Path) -> str | None:
    """zip | tar by content, None for neither."""
    if zipfile.is_zipfile(path):
        return "zip"
    with path.open("rb") as handle:
        return "tar" if is_tar(path, handle.read(START)) else None


def stem(name: str) -> str:
    """An archive's name without what says that it is one."""
    return ARCHIVE_SUFFIX.sub("", name) or name


def unpack(archive: Path, kind: str, scratch: Path, budget: Budget) -> Files:
    """The members of a zip or tar as files below `scratch`. Raises `Refused`, and leaves nothing unpacked then."""
    budget.archives += 1
    files = budget.files
    folder = scratch / f"{budget.archives:05d}"
    folder.mkdir()
    target = Target(archive, folder, budget)
    try:
        with _damage_refused():
            (_unpack_zip if kind == "zip" else _unpack_tar)(archive, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        budget.files = files
        raise
    budget.bytes += sum(file.path.stat().st_size for file in target.files)
    return Files(sorted(target.files, key=lambda file: file.parts), system=target.system)


@contextmanager
def _damage_refused() -> Iterator[None]:
    """What the readers raise on a broken archive, as a refusal without their text, which may quote a member's name."""
    try:
        yield
    except Refused:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise Refused("no-space", "it unpacks to more than the temporary folder has free", "set TMPDIR to a larger disk") from None
        raise Refused("archive-damaged", f"it cannot be unpacked ({type(error).__name__}: damaged, or not readable)", EXPORT_AGAIN) from None
    except DAMAGES as error:
        raise Refused("archive-damaged", f"it cannot be unpacked ({type(error).__name__}: damaged, truncated or of an unknown kind)",
                      EXPORT_AGAIN) from None


def _checked(name: str, where: str, seen: set[tuple[str, ...]] | None = None) -> tuple[str, ...]:
    """The parts of a member's name; one that leads out of the archive, or comes twice among `seen`, is refused."""
    path = PurePosixPath(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise Refused("archive-path", f"{where} has a name that leads out of the archive; refused, because no exporter of images writes such a name",
                      UNPACK_YOURSELF)
    if seen is not None:
        if not path.parts or path.parts in seen:
            what = "the name of another member, so one would hide the other" if path.parts else "no name"
            raise Refused("archive-duplicate", f"{where} has {what}", EXPORT_AGAIN)
        seen.add(path.parts)
    return path.parts


def _unpack_zip(source: Path, target: Target) -> None:
    with zipfile.ZipFile(source) as archive:
        wanted = _checked_zip(archive, target)
        needed = sum(member.file_size for member, _ in wanted)
        if needed > shutil.disk_usage(target.folder).free:
            raise Refused("no-space", f"it unpacks to {needed / 1e9:.1f} GB, more than the temporary folder has free", "set TMPDIR to a larger disk")

        def write(number: int) -> None:
            member, parts = wanted[number]
            with archive.open(member) as reader:
                target.write(number, parts, reader)

        with ThreadPoolExecutor(THREADS) as pool:  # unpacking leaves Python's lock
            for _ in pool.map(write, range(len(wanted))):
                pass


def _checked_zip(archive: zipfile.ZipFile, target: Target) -> list[tuple[zipfile.ZipInfo, tuple[str, ...]]]:
    """The members to unpack, after everything that the directory says has been looked at: nothing is written for a bad archive."""
    members = archive.infolist()
    seen, wanted = set(), []
    for number, member in enumerate(members, 1):
        where = f"member {number} of {len(members)}"
        parts = _checked(member.filename, where, None if member.is_dir() else seen)
        if stat.S_ISLNK(mode := member.external_attr >> 16):
            raise Refused("archive-link", f"{where} is a symbolic link; refused", "pack the files themselves")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refused("archive-special", f"{where} is a pipe or device; refused", "pack the files themselves")
        if member.flag_bits & 0x1:
            raise Refused("archive-encrypted", f"{where} is encrypted", "unpack it yourself with the password and give the folder")
        target.budget.count()
        target.budget.check_size(member.file_size, where)
        if member.is_dir():
            continue
        if any(is_junk(part) for part in parts):
            target.system += 1
        else:
            wanted.append((member, parts))
    target.budget.check_total(sum(member.file_size for member in members), target.packed)
    _check_overlap(members, archive.start_dir)
    return wanted


def _check_overlap(members: list[zipfile.ZipInfo], end: int) -> None:
    """Members that share bytes make a small file unpack to anything (D. Fifield, A better zip bomb, 2019)."""
    for member in sorted(members, key=lambda member: member.header_offset, reverse=True):
        if member.header_offset + LOCAL_HEADER_BYTES + member.compress_size > end:
            raise Refused("archive-overlap", "members overlap in the file; refused, no packer writes that", UNPACK_YOURSELF)
        end = member.header_offset


class Meter:
    """A stream that counts what comes out of it, so that no header of a tar is believed."""

    def __init__(self, stream: IO[bytes], target: Target) -> None:
        self._stream, self._target, self._count = stream, target, 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        self._target.budget.check_total(self._count, self._target.packed)
        return data


def _guarded(ended: Callable[[], None]) -> type[tarfile.TarInfo]:
    """Tar headers that say when the end mark was seen, and refuse extended headers that would fill the memory."""

    class Guarded(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
            if len(buf) == START and not buf.strip(b"\0"):
                ended()
            member = super().frombuf(buf, encoding, errors)
            if not (member.isreg() or member.isdir()) and member.size > MAX_HEADER_BYTES:
                raise Refused("archive-special", f"it has a header of {member.size} bytes, where names and times belong; refused", UNPACK_YOURSELF)
            return member

    return Guarded


def _unpack_tar(source: Path, target: Target) -> None:
    with source.open("rb") as raw:
        start = raw.read(START)
        raw.seek(0)
        opener = next((opener for magic, opener in COMPRESSED.items() if start.startswith(magic)), None)
        stream = opener(raw) if opener else raw
        marks: list[bool] = []
        seen: set[tuple[str, ...]] = set()
        with tarfile.open(fileobj=Meter(stream, target), mode="r|", tarinfo=_guarded(lambda: marks.append(True))) as archive:
            number = 0
            while (member := archive.next()) is not None:
                archive.members = []  # tarfile would keep them all
                number += 1
                _tar_member(archive, member, f"member {number}", target, seen)
            if not marks:
                raise Refused("archive-damaged", f"it ends after {number} member(s) without a tar's end mark, so some may be missing", EXPORT_AGAIN)
            while rest := archive.fileobj.read(PIECE):
                if rest.strip(b"\0"):
                    raise Refused("archive-damaged", "it goes on behind its end mark (two archives joined), which readers would skip",
                                  "give each archive as a file of its own")


def _tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str, target: Target, seen: set[tuple[str, ...]]) -> None:
    parts = _checked(member.name, where, None if member.isdir() else seen)
    if member.issym() or member.islnk():
        raise Refused("archive-link", f"{where} is a symbolic link or hard link; refused", "pack the files themselves")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise Refused("archive-special", f"{where} is a pipe, a device or a file with holes; refused", "pack the files themselves")
    if hasattr(tarfile, "data_filter"):  # a second opinion, from Python 3.11.4 on
        try:
            tarfile.data_filter(member, str(target.folder))
        except tarfile.FilterError:
            raise Refused("archive-path", f"{where} is refused by Python's own filter for archives of data", UNPACK_YOURSELF) from None
    target.budget.count()
    if member.isdir():
        return
    if any(is_junk(part) for part in parts):
        target.system += 1
        return
    target.budget.check_size(member.size, where)
    target.write(len(target.files), parts, archive.extractfile(member))
