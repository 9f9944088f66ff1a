"""The per-image and per-label work: plain data in, files and an outcome out, so that it can run in any process and be resumed.

A plan (of DICOM or of BIDS) makes the jobs; here nothing knows names or numbers of patients any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipelines.errors import Refused
from pipelines.ingest.fingerprint.describe import describe, describe_label
from pipelines.ingest.headers import Header
from pipelines.ingest.labels import LabelSource, Segments, merge, place
from pipelines.ingest.split import Part
from pipelines.ingest.volumes import Volume, read_nifti, read_part, write_image, write_label
from pipelines.outputs import sha256, write_json, write_text

WORK = ".work"  # outcomes of finished jobs inside the unfinished output folder
#: manifest column -> (BIDS sidecar field, factor from the column's unit to BIDS's)
SIDECAR = {"manufacturer": ("Manufacturer", None), "scanner": ("ManufacturersModelName", None), "field_strength_t": ("MagneticFieldStrength", 1.0),
           "tr_ms": ("RepetitionTime", 1e-3), "te_ms": ("EchoTime", 1e-3), "ti_ms": ("InversionTime", 1e-3),
           "slice_thickness_mm": ("SliceThickness", 1.0)}


@dataclass(frozen=True)
class Case:
    """Which subject at which session; all three pseudonymous."""

    subject: str
    session: str
    site: str


@dataclass(frozen=True)
class Candidate:
    """One series or file that could become an image."""

    item: str  # how quarantine.tsv and decisions.tsv name it
    rule: str
    facts: dict[str, object]
    frame: str
    path: Path | None = None  # of a NIfTI file
    headers: tuple[Header, ...] = ()  # of a DICOM series' files
    part: Part | None = None  # which of its volumes
    scale: float | None = None  # to SUV
    note: str = ""

    @property
    def kind(self) -> str:
        return "nifti" if self.part is None else "dicom"

    def read(self) -> tuple[Volume, str]:
        """The volume, and what was done to it that is worth knowing. Raises `Refused`."""
        if self.part is None:
            return read_nifti(self.path), self.note
        if self.part.refused is None:
            return read_part(self.headers, self.part), self.note
        from pipelines.ingest.repair import repaired

        volume, done = repaired([header.file.path for header in self.headers], self.part.refused)
        return volume, "; ".join(filter(None, [self.note, done]))


@dataclass(frozen=True)
class Home:
    """An image on whose grid a label may lie."""

    item: str
    path: str
    frame: str
    modality: str
    slice_axis: int


@dataclass(frozen=True)
class ImageJob:
    """One image to write. Candidates come best first; the first that can be read is taken, the others are duplicates."""

    case: Case
    modality: str
    path: Path  # below the output folder
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class LabelJob:
    """All labels of a case, which become one on the grid of one of the case's images (best first)."""

    case: Case
    path: Path
    sources: tuple[LabelSource, ...]
    images: tuple[Home, ...] = ()


@dataclass
class Outcome:
    """What a job did: at most one manifest row, its volume in numbers, and refusals."""

    row: dict[str, object] | None = None
    described: dict[str, object] = field(default_factory=dict)
    item: str = ""
    quarantine: list[dict[str, str]] = field(default_factory=list)


def run(job: ImageJob | LabelJob, folder: Path) -> Outcome:
    """Do one job below `folder`, or read what an earlier, killed run did of it."""
    record = folder / WORK / ("_".join(job.path.parts) + ".json")
    if record.exists():
        return Outcome(**json.loads(record.read_text()))
    outcome = _image(job, folder) if isinstance(job, ImageJob) else _label(job, folder)
    record.parent.mkdir(exist_ok=True)
    write_json(record, asdict(outcome))
    return outcome


def attempt(work: Callable[[], object]) -> object:
    """Run `work`; what a library raises on a damaged file becomes a refusal, without its text, which may quote the header."""
    try:
        return work()
    except Refused:
        raise
    except (MemoryError, OSError) as error:
        why = getattr(error, "strerror", None) or "memory"
        raise Refused("unreadable-series", f"it could not be read or written ({type(error).__name__}: {why})",
                      "see that disk and memory suffice, then run again") from None
    except Exception as error:
        raise Refused("unreadable-series", f"its files are damaged or of a kind not known here ({type(error).__name__} while reading)",
                      "export the series again, or convert it with another tool and give the NIfTI") from None


def _image(job: ImageJob, folder: Path) -> Outcome:
    outcome = Outcome()
    for candidate in job.candidates:
        try:
            if outcome.row is not None:
                raise Refused("duplicate-modality", f"another series of this session is {job.modality} too and has more slices or finer voxels",
                              "nothing to do, or tell the two apart with rules in params ingest.rules")
            outcome.row, outcome.described = attempt(lambda candidate=candidate: _write_image(job, candidate, folder))
            outcome.item = candidate.item
        except Refused as refused:
            outcome.quarantine.append(refused.row(job.case.subject, job.case.session, candidate.item))
    return outcome


def _write_image(job: ImageJob, candidate: Candidate, folder: Path) -> tuple[dict[str, object], dict[str, object]]:
    """Write one volume; returns its row of the manifest, and its description for the fingerprint."""
    volume, note = candidate.read()
    if candidate.scale is not None:
        volume = Volume(volume.array * candidate.scale, volume.affine, volume.slice_axis)
    path = folder / job.path
    path.parent.mkdir(parents=True, exist_ok=True)
    changed = write_image(path, volume)
    sidecar = {name: value if factor is None else round(float(value) * factor, 9) for column, (name, factor) in SIDECAR.items()
               if (value := candidate.facts.get(column)) not in (None, "")}
    if candidate.scale is not None:
        sidecar["Units"] = "g/mL"
    note = "; ".join(filter(None, [note, changed, "SUV by body weight" if candidate.scale is not None else ""]))
    write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), sidecar)
    row = {**asdict(job.case), "kind": "image", "modality": job.modality, "path": job.path.as_posix(), "sha256": sha256(path), **volume.manifest(),
           "frame_of_reference": candidate.frame, **candidate.facts, "rule": candidate.rule, "source_kind": candidate.kind, "note": note}
    return row, describe(volume.array, volume.affine)


def _label(job: LabelJob, folder: Path) -> Outcome:
    outcome, used, merged, home = Outcome(), [], None, None
    for source in job.sources:
        try:
            merged, home = attempt(lambda source=source, so_far=merged, at=home: _joined(so_far, source, (at,) if at else job.images, folder))
            used.append(source)
        except Refused as refused:
            outcome.quarantine.append(refused.row(job.case.subject, job.case.session, source.item))
    if merged is not None:
        outcome.row, outcome.item = _write_label(job, used, merged, home, folder), used[0].item
        outcome.described = describe_label(merged.array, merged.affine, merged.spelled())
    return outcome


def _joined(so_far: Segments | None, source: LabelSource, images: Sequence[Home], folder: Path) -> tuple[Segments, Home]:
    """The label so far with one more source in it, and the image on whose grid both lie."""
    placed, home = place(source, images, folder)
    return merge(so_far, placed), home


def _write_label(job: LabelJob, used: Sequence[LabelSource], merged: Segments, home: Home, folder: Path) -> dict[str, object]:
    path, note = folder / job.path, "; ".join(filter(None, [f"on the grid of {home.modality}", merged.note]))
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = Volume(merged.array, merged.affine, home.slice_axis)
    write_label(path, volume)
    write_text(path.with_name(path.name.removesuffix(".nii.gz") + ".tsv"), merged.lookup())
    return {**asdict(job.case), "kind": "label", "modality": "dseg", "path": job.path.as_posix(), "sha256": sha256(path), **volume.manifest(),
            "frame_of_reference": home.frame, "rule": " ".join(dict.fromkeys(source.rule for source in used)),
            "source_kind": "nifti" if used[0].kind == "nifti" else "dicom", "note": note}
