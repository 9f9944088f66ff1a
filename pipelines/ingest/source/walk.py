"""The files below a folder, each of them accounted for, with archives among them unpacked one level deep."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipelines.errors import DataError, Refused
from pipelines.ingest.source.archives import Budget, stem, unpack
from pipelines.ingest.source.files import Files, SourceFile, is_junk, kind_at
from pipelines.params import Limits

Entry = tuple[tuple[str, ...], Path, Refused | None]


def walk(source: Path, scratch: Path, limits: Limits) -> Files:
    """The files of a folder, those out of its archives included. Links to files are read (DVC links data), links to folders are not followed."""
    entries, system = _entries(source, limits)
    files, refused, budget = [], [], Budget(limits, files=len(entries))
    for number, (parts, path, problem) in enumerate(entries, 1):
        try:
            if problem is not None:
                raise problem
            kind = kind_at(path, parts[-1])
            if kind in ("zip", "tar"):
                unpacked = unpack(path, kind, scratch, budget)
                files += [replace(file, parts=(*parts[:-1], stem(parts[-1]), *file.parts)) for file in unpacked]
                system += unpacked.system
            else:
                files.append(SourceFile(path, parts, kind))
        except Refused as problem:
            item = f"source entry {number} of {len(entries)}"
            refused.append((item, Refused(problem.code, f"{item} (by name): {problem.reason}", problem.remedy)))
        except OSError as error:
            item = f"source entry {number} of {len(entries)}"
            refused.append((item, Refused("unreadable-file", f"{item} (by name) cannot be opened ({error.strerror or type(error).__name__})",
                                          "let this user read it, or copy it again")))
    return Files(sorted(files, key=lambda file: file.parts), refused, system)


def _entries(source: Path, limits: Limits) -> tuple[list[Entry], int]:
    """Everything below a folder, sorted by name, and how many hidden or system files were left alone."""
    entries: list[Entry] = []
    system = 0
    for entry in _scan(source):
        if entry is None:
            system += 1
            continue
        entries.append(entry)
        if len(entries) > limits.files:
            raise DataError(f"{source} has more than {limits.files} files; give a smaller folder, or raise params ingest.limits.files")
    limit = limits.file_gb * 1e9
    checked = [(parts, path, problem or _problem(path, limit)) for parts, path, problem in entries]
    return sorted(checked, key=lambda entry: entry[0]), system


def _scan(source: Path) -> Iterator[Entry | None]:
    """Each file and each folder that is not gone into; None for a hidden or system one."""
    blocked: list[str] = []
    for folder, folders, names in os.walk(source, onerror=lambda error: blocked.append(error.filename)):
        descend = []
        for name in folders:
            path = Path(folder, name)
            if is_junk(name):
                yield None
            elif path.is_symlink():
                yield _parts(path, source), path, Refused("linked-folder", "it is a link to a folder, which is not followed (it could be a loop)",
                                                          "put the folder itself there, or give it as a source of its own")
            else:
                descend.append(name)
        folders[:] = descend
        for name in names:
            yield None if is_junk(name) else (_parts(path := Path(folder, name), source), path, None)
    for folder in blocked:
        yield _parts(Path(folder), source), Path(folder), Refused("unreadable-folder", "the folder cannot be opened", "let this user read it")


def _parts(path: Path, source: Path) -> tuple[str, ...]:
    """Names below the source. Bytes that are not UTF-8 become question marks, so that names can be hashed, compared and sorted."""
    return tuple(os.fsencode(part).decode("utf-8", "replace") for part in path.relative_to(source).parts) or (".",)


def _problem(path: Path, limit: float) -> Refused | None:
    """Why an entry is no file to open: opening a pipe would wait for ever."""
    try:
        found = path.stat()
    except OSError:
        return Refused("broken-link", "it is a link to nothing, or to itself", "put the file itself there")
    if not stat.S_ISREG(found.st_mode):
        return Refused("special-file", "it is a pipe, socket or device and no file", "remove it")
    if found.st_size > limit:
        return Refused("too-large", f"it has {found.st_size / 1e9:.1f} GB, more than {limit / 1e9:g} GB",
                       "see whether it is an image; if so, raise params ingest.limits.file_gb")
    return None
