"""The files of a source, be it a folder, an archive or a folder of archives, without trusting any of them.

An archive from a PACS is written by others: its member names may climb out of the folder, its members may be links or unpack to more than
the disk holds. And file names often are patient names, so unpacked members get numbers for names and live only while they are read, and
no message repeats a name from inside the source.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.errors import DataError, Refused, UsageError
from pipelines.ingest.source.archives import Budget, archive_kind, unpack
from pipelines.ingest.source.files import Files, SourceFile, kind_of, unusable
from pipelines.ingest.source.scratch import scratch_folder
from pipelines.ingest.source.walk import walk
from pipelines.params import Limits

__all__ = ["Files", "Limits", "SourceFile", "fingerprint", "kind_of", "open_source", "unusable"]


@contextlib.contextmanager
def open_source(source: Path, limits: Limits | None = None) -> Iterator[Files]:
    """The files below a folder or inside a zip or tar, sorted by name; unpacked ones vanish when the block ends.

    Archives that lie in a folder (one for each patient, as some PACS export) are unpacked too, one level deep. What is no readable file is
    in `Files.refused`, one entry each. Raises `UsageError` for what is neither folder nor archive, and `DataError` for an archive that is
    damaged, exceeds `limits` or tries to leave its folder; in a folder of archives such a one is refused and the others are read.
    """
    source, limits = Path(source), limits or Limits()
    if not source.exists():
        raise UsageError(f"--source {source} does not exist; give a folder, .zip or .tar with DICOM or BIDS NIfTI")
    with scratch_folder() as scratch:
        if source.is_dir():
            yield walk(source, scratch, limits)
            return
        kind = archive_kind(source) if source.is_file() else None
        if kind is None:
            raise UsageError(f"--source {source} is neither a folder nor a zip or tar (a truncated zip looks like this too); "
                             "give a folder or a whole archive")
        try:
            files = unpack(source, kind, scratch, Budget(limits))
        except Refused as refused:
            raise DataError(f"{source}: {refused}") from None
        yield files


def fingerprint(source: Path, files: Sequence[SourceFile]) -> str:
    """A hash that changes when the source does: names, sizes and times, not contents, which would cost a second reading."""
    digest = hashlib.sha256()
    stamps = [path.stat() for path in sorted({file.archive or file.path for file in files} or {source})]
    names = ["/".join(file.parts) for file in files]
    digest.update("\n".join([*names, *(f"{stamp.st_size} {stamp.st_mtime_ns}" for stamp in stamps)]).encode())
    return digest.hexdigest()
