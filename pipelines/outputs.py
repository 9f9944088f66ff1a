"""Outputs that are either whole or absent.

A stage writes beside its final place and renames at the end, so that a killed stage leaves nothing that a later one could take for
whole. Work done before the kill is kept in the sibling folder and picked up again by the next run with the same inputs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

STATE_FILE = ".inputs"
#: The names that `staged_file` gives files while they are written.
HALF_WRITTEN = ".[0-9]*.*"


@contextlib.contextmanager
def staged_folder(final: Path, inputs: str | None = None) -> Iterator[Path]:
    """A folder to write into, renamed to `final` when the block ends without an error.

    The working folder is `.<name>.partial` beside `final`. `inputs` identifies what the work depends on (any string): when a killed run
    left a partial folder for the same `inputs`, its content is handed back to be resumed; otherwise it is emptied first. A lock makes a
    second writer wait for the first, so two of them never mix their files.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.parent / f".{final.name}.partial"
    with locked(final.parent / f".{final.name}.lock"):
        state = partial / STATE_FILE
        if inputs is None or not state.exists() or state.read_text() != inputs:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        for half in filter(Path.is_file, partial.rglob(HALF_WRITTEN)):  # by a process that was killed: nobody else writes here now
            half.unlink()
        if inputs is not None:
            write_text(state, inputs)
        yield partial
        state.unlink(missing_ok=True)
        old = final.parent / f".{final.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """A path to write to, moved over `final` when the block ends without an error. Keeps the suffixes, which writers look at."""
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{os.getpid()}.{final.name}"
    try:
        yield temporary
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(final: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with staged_file(final) as path:
        path.write_text(text)


def write_json(final: Path, value: object) -> None:
    """Write JSON with sorted keys, so that equal values make equal bytes."""
    write_text(final, json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (flock: the kernel frees it when the holder dies)."""
    with Path(path).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process writes here, waiting for it: {path.name}", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
