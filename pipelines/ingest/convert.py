"""Every series of a source as exact volumes or refusals, with no rule about what is wanted. `benchmarks/conformance.py` and the fuzzer use it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.errors import Refused
from pipelines.ingest.headers import Header, scan
from pipelines.ingest.jobs import attempt
from pipelines.ingest.series import Series, group
from pipelines.ingest.source import SourceFile
from pipelines.ingest.split import Part
from pipelines.ingest.volumes import Volume, read_part
from pipelines.params import Limits


@dataclass(frozen=True)
class Converted:
    """One volume, or why there is none. `series` is None for a file that belongs to no series; `name` is '' where a series is one volume."""

    series: Series | None
    name: str
    part: Part | None
    result: Volume | Refused


def convert(files: Sequence[SourceFile], limits: Limits | None = None) -> Iterator[Converted]:
    """The volumes of all DICOM files in `files`, one at a time."""
    headers = scan(files)
    yield from (Converted(None, "", None, header) for header in headers if isinstance(header, Refused))
    for series in group([header for header in headers if isinstance(header, Header)]):
        if series.label_kind:
            yield Converted(series, "", None, Refused("label-object", "it is a label, which has no values of its own", "ingest it with its images"))
            continue
        try:
            parts = attempt(lambda series=series: series.parts(limits or Limits()))
        except Refused as refused:
            yield Converted(series, "", None, refused)
            continue
        for part in parts:
            yield Converted(series, part.name, part, part.refused or _volume(series, part))


def _volume(series: Series, part: Part) -> Volume | Refused:
    try:
        return attempt(lambda: read_part(series.headers, part))
    except Refused as refused:
        return refused
