"""Compare the ingest's volumes with reference NIfTI files, in world coordinates: `python -m benchmarks.conformance IN_DIR REF_DIR`.

Made for validation suites of dcm2niix (a folder of DICOM and a folder of its output), but nothing here knows a suite. References may be 3-D or
4-D, in any axis order, as scaled integers or floats, with or without a JSON sidecar. A 4-D reference is compared with a sequence of our volumes.

Each reference ends as
exact     one of our volumes (for 4-D: one for each of its volumes, in order) has the same voxels at the same places
refused   no volume of ours is the same, and the series it was made of was refused (the code is shown)
wrong     its series became a volume, on another grid or with other values
lost      nothing of ours has its grid, and nothing that was refused can be its series
Our volumes that no reference shows are counted as extra, which is no fault: dcm2niix leaves out derived images on request.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts
import numpy as np

from benchmarks.references import Reference, load, onto, same_values
from pipelines.cli import run
from pipelines.errors import Refused, UsageError
from pipelines.outputs import write_json

if TYPE_CHECKING:
    from pipelines.ingest.convert import Converted

FILE = "file"  # what a refusal is called that belongs to no series
OUTCOMES = ("exact", "refused", "wrong", "lost")
RESAMPLED = re.compile(r"_(Tilt|Eq)(_\d+)?[a-z]?$")  # dcm2niix's names for grids it made itself

app = cyclopts.App(name="python -m benchmarks.conformance")


@dataclass
class Ours:
    """One volume of the ingest, or the refusal of one. `number` is SeriesNumber, `uid` SeriesInstanceUID, `times` HH:MM:SS of acquisition."""

    item: str
    name: str = ""
    uid: str = ""
    number: int | None = None
    times: frozenset[str] = frozenset()
    description: str = ""
    array: np.ndarray | None = None
    affine: np.ndarray | None = None
    code: str = ""
    reason: str = ""
    used: bool = False


@dataclass(frozen=True)
class Verdict:
    """What became of one reference."""

    reference: str
    shape: str
    outcome: str
    ours: str = ""
    why: str = ""


@dataclass
class Report:
    verdicts: list[Verdict] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(verdict.outcome for verdict in self.verdicts)
        return {outcome: found[outcome] for outcome in OUTCOMES}


@app.default
def main(in_dir: Path, ref_dir: Path, *, out: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None) -> None:
    """Convert all DICOM below IN_DIR in memory and compare with all NIfTI below REF_DIR. Exit status 1 when any reference is wrong or lost.

    For example, on the suite of the NIH: `python -m benchmarks.conformance dcm_qa_nih/In dcm_qa_nih/Ref --json nih.json`

    Parameters
    ----------
    in_dir
        Folder (or archive) of DICOM.
    ref_dir
        Folder with .nii or .nii.gz, each with a JSON sidecar beside it or without.
    out
        Where to write the result as JSON.
    """
    if not (paths := sorted([*ref_dir.rglob("*.nii"), *ref_dir.rglob("*.nii.gz")])):
        raise UsageError(f"{ref_dir} holds no .nii or .nii.gz; give the folder of reference images")
    report = compare([load(path) for path in paths], list(converted(in_dir)))
    _print(report)
    if out is not None:
        write_json(out, {"counts": report.counts, **asdict(report)})
    if report.counts["wrong"] or report.counts["lost"]:
        sys.exit(1)


def compare(references: Sequence[Reference], ours: Sequence[Ours]) -> Report:
    """Judge each reference, in the order given. One volume of ours may stand for several references (dcm2niix writes some twice)."""
    for one in ours:
        one.used = False
    verdicts = [_exact(reference, ours) for reference in references]  # first, because what is exact for one cannot be a wrong other one
    report = Report([verdict or _failed(reference, ours) for reference, verdict in zip(references, verdicts, strict=True)])
    report.extra = [_called(one) for one in ours if one.array is not None and not one.used]
    report.refused = [f"{_called(one)}: {one.code}" for one in ours if one.code]
    return report


def _exact(reference: Reference, ours: Sequence[Ours]) -> Verdict | None:
    """The volumes of ours that are the reference, if any; looked for in its own series first, because a sidecar's number may be another study's."""
    on_grid = [(one, turned) for one in ours if one.array is not None and (turned := _turned(reference, one)) is not None]
    for pool in ([pair for pair in on_grid if related_by_sidecar(reference, pair[0])], on_grid):
        if found := _sequence(pool, len(reference.volumes)):
            for one in found:
                one.used = True
            return Verdict(reference.stem, reference.shape, "exact", _listed(found))
    return None


def _sequence(pool: Sequence[tuple[Ours, np.ndarray]], count: int) -> list[Ours]:
    """One volume of ours for each of the reference's, in order; in any order only where ours are not points in time."""
    found: list[int] = []
    for number in range(count):
        later = range(found[-1] + 1 if found else 0, len(pool))
        timeless = [index for index in range(len(pool)) if index not in found and "time-" not in pool[index][0].name]
        index = next((index for index in [*later, *timeless] if same_values(pool[index][1][number], pool[index][0].array)), None)
        if index is None:
            return []
        found.append(index)
    return [pool[index][0] for index in found]


def _failed(reference: Reference, ours: Sequence[Ours]) -> Verdict:
    """Why nothing of ours is the same: refused, other values on its grid, another grid, or nothing."""
    related = [one for one in ours if related_by_sidecar(reference, one)]
    refusals = [one for one in related if one.code]
    suspects = [one for one in related if one.array is not None and not _explained(reference, one)]
    if refusals and (RESAMPLED.search(reference.stem) or not suspects):
        return Verdict(reference.stem, reference.shape, "refused", _listed(refusals[:1]), f"{refusals[0].code}: {refusals[0].reason}")
    if suspects:
        why = "; ".join(f"{_called(one)}: {_difference(reference, one)}" for one in suspects[:3])
        return Verdict(reference.stem, reference.shape, "wrong", _listed(suspects), why)
    unused = [one for one in ours if one.array is not None and not one.used]
    if not related and (similar := [one for one in unused if _turned(reference, one) is not None]):
        return Verdict(reference.stem, reference.shape, "wrong", _listed(similar), f"on its grid, {_difference(reference, similar[0])}")
    if not (reference.facts.get("SeriesNumber") or reference.facts.get("SeriesInstanceUID")) and (refusals := [one for one in ours if one.code]):
        codes = ", ".join(sorted({one.code for one in refusals}))
        return Verdict(reference.stem, reference.shape, "refused", "", f"no sidecar says which of {len(refusals)} refused ones it is ({codes})")
    if nameless := [one for one in ours if one.code and one.item == FILE]:
        return Verdict(reference.stem, reference.shape, "refused", "", f"{len(nameless)} DICOM file(s) that name no series were refused one by one "
                       f"({', '.join(sorted({one.code for one in nameless}))})")
    return Verdict(reference.stem, reference.shape, "lost", "", "nothing of ours has its grid, and nothing that was refused is its series")


def _turned(reference: Reference, one: Ours) -> np.ndarray | None:
    return onto(reference, one.array.shape, one.affine)


def _explained(reference: Reference, one: Ours) -> bool:
    """Whether a volume of ours is right: it is another reference, or one of this one's volumes."""
    turned = None if one.used else _turned(reference, one)
    return one.used or (turned is not None and any(same_values(volume, one.array) for volume in turned))


def related_by_sidecar(reference: Reference, one: Ours) -> bool:
    """Whether the sidecar can be of that series: by UID, else by number and, where both tell it, description and time of acquisition."""
    facts = reference.facts
    if facts.get("SeriesInstanceUID") and one.uid:
        return facts["SeriesInstanceUID"] == one.uid
    if facts.get("SeriesNumber") is None or one.number is None:
        return False
    number = int(facts["SeriesNumber"])
    if one.number not in (number, number % 1000):  # dcm2niix adds thousands to numbers that occur twice
        return False
    time, described = clock(facts.get("AcquisitionTime")), str(facts.get("SeriesDescription", ""))
    if time and one.times and time in one.times:
        return True
    plain = [re.sub(r"[^a-z0-9]", "", text.casefold()) for text in (described, one.description)]
    return not all(plain) or plain[0] == plain[1]


def clock(value: object) -> str:
    """HHMMSS of a DICOM or a BIDS time ('' where there is none)."""
    digits = re.sub(r"\D", "", str(value or "").split(".")[0])
    return digits[:6] if len(digits) >= 6 else ""


def _difference(reference: Reference, one: Ours) -> str:
    """How a volume differs from a reference, in words."""
    if (turned := _turned(reference, one)) is not None:
        largest = min(float(np.nanmax(np.abs(volume.astype(float) - one.array.astype(float)))) for volume in turned)
        return f"same grid, values differ by {largest:.4g} at least"
    spacing = np.linalg.norm(one.affine[:3, :3], axis=0)
    return f"another grid, {'x'.join(map(str, one.array.shape))} voxels of {' x '.join(f'{size:.4g}' for size in spacing)} mm"


def _called(one: Ours) -> str:
    return f"{one.item} {one.name}".strip()


def _listed(found: Sequence[Ours]) -> str:
    return _called(found[0]) + (f" .. {found[-1].name or found[-1].item} ({len(found)})" if len(found) > 1 else "")


def converted(source: Path) -> Iterator[Ours]:
    """Every volume and every refusal of a source, with the facts by which references name their series."""
    from pipelines.ingest.convert import convert
    from pipelines.ingest.source import kind_of, open_source

    with open_source(source) as files:
        for one in convert([file for file in files if kind_of(file) == "dicom"]):
            yield _ours(one)


def _ours(one: Converted) -> Ours:
    facts: dict[str, object] = {"item": FILE}
    if one.series is not None:
        first = one.series.first
        number = first.number("SeriesNumber")
        facts = {"item": "series" if number is None else f"series {number:.0f}", "uid": one.series.uid,
                 "number": None if number is None else int(number),
                 "times": frozenset(clock(header.text("AcquisitionTime")) for header in one.series.headers) - {""},
                 "description": first.text("SeriesDescription")}
    if isinstance(one.result, Refused):
        return Ours(**facts, name=one.name, code=one.result.code, reason=one.result.reason)
    return Ours(**facts, name=one.name, array=_small(one.result.array), affine=one.result.affine)


def _small(array: np.ndarray) -> np.ndarray:
    """Values in half the memory where that holds them as exactly as references do, because a suite is held in memory as a whole."""
    if array.dtype != np.float64:
        return array
    whole = np.isfinite(array).all() and np.abs(array).max(initial=0) < 2**31 and np.array_equal(array, np.rint(array))
    return array.astype(np.int32 if whole else np.float32)


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console, table = Console(width=200), Table("reference", "shape", "outcome", "ours", "why")
    for verdict in report.verdicts:
        table.add_row(verdict.reference, verdict.shape, verdict.outcome, verdict.ours, verdict.why)
    console.print(table)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.counts.items())
    console.print(f"{len(report.verdicts)} references: {counts}; {len(report.extra)} extra volumes, {len(report.refused)} refusals")


if __name__ == "__main__":
    run(app)
