"""A private folder of studies under keyed names, in which a study is seen only when it is whole.

    <inbox>/<study>/<series>/<instance>.dcm     handed on
    <inbox>/quarantine.tsv                      instances that were refused, with the reason
    <inbox>/.arriving/<study>/...               being fetched
    <inbox>/.journal.sqlite                     what is held

Names are keyed hashes of UIDs. The ingest stage skips names that start with a dot.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import DataError, Refused, UsageError
from pipelines.ingest.pseudonyms import Pseudonyms
from pipelines.outputs import locked, sha256, staged_file
from tasks.pacs.journal import Entry, Journal

if TYPE_CHECKING:
    from pydicom import Dataset

HASH_LENGTH = 16  # 32^16 values: two of 10^9 instances collide with a chance of 4e-7, and only within one series would it matter
JOURNAL = ".journal.sqlite"
SUFFIX = ".dcm"
Key = tuple[str, str]  # series, instance


class InboxError(DataError):
    """The inbox's disk does not take more: no study can go on."""


class Inbox:
    """The folder and its journal. Open it with `open_inbox`."""

    def __init__(self, folder: Path, pseudonyms: Pseudonyms, journal: Journal) -> None:
        self.folder, self.journal, self._pseudonyms = folder, journal, pseudonyms
        self._arriving = folder / ".arriving"

    def name(self, kind: str, uid: str) -> str:
        return keyed_name(self._pseudonyms, kind, uid)

    def held(self, study: str, thorough: bool = False) -> set[Key]:
        """The instances of a study that need no fetching: refused for good, or a file that is as it was written.

        Size and time are compared, and the contents where the time differs or when `thorough`. What is damaged is forgotten, and its study is
        seen no more until it is whole again.
        """
        entries = self.journal.entries(study)
        damaged = [entry for entry in entries if not entry.code and not self._intact(study, entry, thorough)]
        if damaged:
            self._withdraw(study)
        for entry in damaged:
            self._path(self._arriving, study, entry.key).unlink(missing_ok=True)
            self.journal.forget(study, entry)
        return {entry.key for entry in entries} - {entry.key for entry in damaged}

    def put(self, study: str, key: Key, dataset: Dataset) -> int:
        """Keep an instance: written aside, renamed, journaled. Returns its bytes. Raises `InboxError` when the disk does not take it."""
        path = self._path(self._arriving, study, key)
        try:
            with staged_file(path) as temporary:
                dataset.save_as(temporary, enforce_file_format=True)
                digest = sha256(temporary)
            stamp = path.stat()
        except OSError as error:
            raise InboxError(f"cannot write to the inbox ({os.strerror(error.errno or errno.EIO)}), which holds {self._gigabytes():.1f} GB; "
                             "make room or check its permissions, and run again, what is there is kept") from None
        self.journal.write(study, Entry(*key, stamp.st_size, stamp.st_mtime_ns, digest))
        return stamp.st_size

    def refuse(self, study: str, key: Key, refused: Refused) -> None:
        self.journal.write(study, Entry(*key, code=refused.code, reason=refused.reason, remedy=refused.remedy))

    def hand_on(self, study: str, listed: Set[Key]) -> int:
        """Make `study` seen with exactly the instances `listed` (all held); what the archive lists no more goes. Returns the number of files."""
        entries = self.journal.entries(study)
        wanted = {entry.key for entry in entries if entry.key in listed and not entry.code}
        final, work, old = self.folder / study, self._arriving / study, self._arriving / f"{study}.old"
        for key in wanted:
            target = self._path(self._arriving, study, key)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(self._path(self.folder, study, key), target)
        self._remove_others(work, {self._path(self._arriving, study, key) for key in wanted})
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        if wanted:
            work.rename(final)
        else:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        for entry in entries:
            if entry.key not in listed:
                self.journal.forget(study, entry)
        return len(wanted)

    def write_quarantine(self) -> int:
        """Write quarantine.tsv anew from the journal, in the columns of every quarantine. Returns the number of its rows."""
        from pipelines.cohort import write_quarantine

        rows = [refused.row(study, "", item) for study, item, refused in self.journal.refusals()]
        write_quarantine(self.folder, rows)
        return len(rows)

    def _gigabytes(self) -> float:
        return sum(path.stat().st_size for path in self.folder.rglob(f"*{SUFFIX}")) / 1e9

    def _intact(self, study: str, entry: Entry, thorough: bool) -> bool:
        path = next((place for place in self._places(study, entry.key) if place.is_file()), None)
        if path is None:
            return False
        stamp = path.stat()
        if stamp.st_size != entry.bytes:
            return False
        if stamp.st_mtime_ns == entry.mtime_ns and not thorough:
            return True
        return sha256(path) == entry.sha256

    def _withdraw(self, study: str) -> None:
        """Take a study that was handed on back among the arriving ones."""
        final, old = self.folder / study, self._arriving / f"{study}.old"
        for path in final.rglob(f"*{SUFFIX}"):
            target = self._arriving / path.relative_to(self.folder)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(path, target)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
            shutil.rmtree(old, ignore_errors=True)

    def _places(self, study: str, key: Key) -> tuple[Path, Path]:
        return self._path(self._arriving, study, key), self._path(self.folder, study, key)

    @staticmethod
    def _path(root: Path, study: str, key: Key) -> Path:
        return root / study / key[0] / f"{key[1]}{SUFFIX}"

    @staticmethod
    def _remove_others(folder: Path, wanted: set[Path]) -> None:
        """Files of a killed run that were never journaled, and instances that are listed no more."""
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                with contextlib.suppress(OSError):  # not empty
                    path.rmdir()
            elif path not in wanted:
                path.unlink()


def keyed_name(pseudonyms: Pseudonyms, kind: str, uid: str) -> str:
    """The name that stands for a UID; `kind` is study, series or instance."""
    return pseudonyms(f"pacs-{kind}", uid, length=HASH_LENGTH)


@contextlib.contextmanager
def open_inbox(folder: Path, pseudonyms: Pseudonyms, content: str) -> Iterator[Inbox]:
    """The inbox at `folder`, made if need be, for this process alone. `content` says what its files are, for example "identified".

    Raises `UsageError` when the folder is something else, or an inbox filled with another key or other content: the same study would be in
    it twice under two names.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; give a folder")
    if folder.is_dir() and not (folder / JOURNAL).exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UsageError(f"--out {folder} holds files but is no inbox; give a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    with locked(folder / ".lock"), contextlib.closing(Journal(folder / JOURNAL)) as journal:
        wanted = {"key": pseudonyms("key-id", "", length=8), "content": content}
        before = journal.settings()
        differing = [name for name in wanted if before and before.get(name) != wanted[name]]
        if differing:
            raise UsageError(f"the inbox {folder} was filled with another {' and '.join(differing)} (now {content!r}, then "
                             f"{before.get('content')!r}); use what it was filled with, or another --out")
        journal.set(**wanted)
        yield Inbox(folder, pseudonyms, journal)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
