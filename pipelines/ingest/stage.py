"""The stage: a source in, a BIDS cohort out, every file accounted for."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipelines.cohort import frame, manifest_schema, write_manifest, write_quarantine
from pipelines.errors import DataError
from pipelines.ingest.bids import plan_bids, source_tables
from pipelines.ingest.dicom import Plan, plan_dicom
from pipelines.ingest.fingerprint.stage import FILE, write_fingerprint
from pipelines.ingest.jobs import WORK, Case, Home, ImageJob, LabelJob, Outcome, run
from pipelines.ingest.participants import write_participants
from pipelines.ingest.pseudonyms import Pseudonyms, load_key
from pipelines.ingest.source import Files, SourceFile, fingerprint, kind_of, open_source, unusable
from pipelines.outputs import sha256, staged_folder, write_json, write_text
from pipelines.parallel import spread
from pipelines.params import Params, SiteRule

BIDS_VERSION = "1.10.0"
DECISION_COLUMNS = dict.fromkeys(["subject", "session", "item", "rule", "outcome", "evidence"], "str")


@dataclass(frozen=True)
class Summary:
    """What came of a source."""

    subjects: int
    cases: int
    images: int
    labels: int
    quarantined: int

    def __str__(self) -> str:
        return (f"{self.subjects} subject(s), {self.cases} case(s), {self.images} image(s), {self.labels} label(s); "
                f"{self.quarantined} refused (quarantine.tsv says why)")


def ingest(source: Path, out: Path, params: Params, *, site: str | None = None, key_file: Path | None = None, fingerprint_copy: Path | None = None,
           jobs: int = 2) -> Summary:
    """Read `source` (folder or archive of DICOM, BIDS NIfTI, or both) and write the cohort to `out`.

    `site` stands in for params' site rule, `key_file` for its pseudonym key; `fingerprint_copy` gets a copy of the cohort's fingerprint.json.
    Raises `UsageError` for a source that does not exist and `DataError` when nothing in it can be used; a series that cannot be used
    among others that can goes to `quarantine.tsv`.
    """
    if site is not None:
        params = params.model_copy(update={"cohort": params.cohort.model_copy(update={"site": SiteRule(constant=site)})})
    with open_source(source, params.ingest.limits) as files:
        dicom = _dicom(files)
        if not dicom and not any(file.is_nifti for file in files):
            held = f"holds {len(files)} file(s), none of them DICOM or NIfTI" if files else "is empty"
            raise DataError(f"{source} {held}; give a folder or archive with DICOM, or with NIfTI files named as BIDS names them")
        key = _key(params, key_file, (source, out)) if dicom else b""
        with staged_folder(out, inputs=_state(source, files, params, key)) as folder:
            plan = _plan(files, params, key, jobs)
            summary = _write(folder, source, plan, files=files, params=params, jobs=jobs)
            if fingerprint_copy is not None:
                write_text(fingerprint_copy, (folder / FILE).read_text())
            return summary


def _state(source: Path, files: Sequence[SourceFile], params: Params, key: bytes) -> str:
    """What the work depends on, so that a killed run is resumed only by an equal one (also of this code)."""
    code = [sha256(path) for path in sorted(Path(__file__).parent.rglob("*.py"))]
    parts = [fingerprint(source, files), hashlib.sha256(key).hexdigest(), params.cohort.model_dump_json(), params.ingest.model_dump_json(), *code]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _dicom(files: Files) -> list[SourceFile]:
    return [file for file in files if kind_of(file) == "dicom"]


def _key(params: Params, key_file: Path | None, data: Sequence[Path]) -> bytes:
    return load_key(key_file, Path(params.cohort.pseudonym_key) if params.cohort.pseudonym_key else None, data=data)


def _plan(files: Files, params: Params, key: bytes, jobs: int) -> Plan:
    plan, dicom, nifti = Plan(), _dicom(files), [file for file in files if file.is_nifti]
    if dicom:
        _say(f"reading {len(dicom)} DICOM headers")
        plan = plan_dicom(dicom, params, Pseudonyms(key), jobs)
    if nifti:
        other = plan_bids(files, params)
        plan = Plan(plan.images + other.images, plan.labels + other.labels, plan.quarantine + other.quarantine, plan.decisions + other.decisions,
                    plan.dates)
    refused = [refusal.row("", "", item) for item, refusal in unusable(files)]
    plan.quarantine += refused
    left = len(files) - len(dicom) - len(nifti) - len(refused) + len(files.refused)
    _say(f"{len(plan.images)} image(s) and {len(plan.labels)} label(s) to write, {len(plan.quarantine)} series or file(s) refused by their headers"
         + (f"; {left} other file(s) left alone" if left else ""))
    return plan


def _write(folder: Path, source: Path, plan: Plan, *, files: Sequence[SourceFile], params: Params, jobs: int) -> Summary:
    done = _run(plan.images, folder, jobs, "images")
    homes = _homes(plan.images, done, params)
    labels = [replace(job, images=tuple(homes.get((job.case.subject, job.case.session), ()))) for job in plan.labels]
    outcomes = done + _run(labels, folder, jobs, "labels")
    rows = [outcome.row for outcome in outcomes if outcome.row]
    quarantine = plan.quarantine + [row for outcome in outcomes for row in outcome.quarantine]
    if not any(row["kind"] == "image" for row in rows):
        raise DataError(_nothing(source, quarantine, plan))
    write_manifest(folder, rows)
    write_quarantine(folder, quarantine)
    _write_decisions(folder, plan, quarantine)
    _write_dataset(folder, rows, files, params)
    _write_sessions(folder, rows, plan.dates)
    write_fingerprint(folder, {outcome.row["path"]: outcome.described for outcome in outcomes if outcome.row})
    shutil.rmtree(folder / WORK, ignore_errors=True)
    table = frame(rows)
    return Summary(table.subject.nunique(), len(table.groupby(["subject", "session"])), int((table.kind == "image").sum()),
                   int((table.kind == "label").sum()), len(quarantine))


def _run(work: Sequence[ImageJob | LabelJob], folder: Path, jobs: int, what: str) -> list[Outcome]:
    """Run jobs in processes of their own, with a progress bar, in the order given."""
    from rich.console import Console
    from rich.progress import track

    outcomes = spread(partial(run, folder=folder), work, jobs)
    manifest_schema().validate(frame([]))  # pandera imports for half a second: now, while the workers are at it
    return list(track(outcomes, what, len(work), console=Console(stderr=True)))


def _homes(images: Sequence[ImageJob], outcomes: Sequence[Outcome], params: Params) -> dict[tuple[str, str], list[Home]]:
    """The written images of each case, in the order of params' modalities."""
    order = list(params.ingest.modalities)
    homes: dict[tuple[str, str], list[Home]] = {}
    for job, outcome in sorted(zip(images, outcomes, strict=True), key=lambda pair: order.index(pair[0].modality)):
        if (row := outcome.row) is not None:
            home = Home(outcome.item, row["path"], row["frame_of_reference"], job.modality, row["slice_axis"])
            homes.setdefault((job.case.subject, job.case.session), []).append(home)
    return homes


def _nothing(source: Path, quarantine: Sequence[dict[str, str]], plan: Plan) -> str:
    if not quarantine:
        return f"{source} has no image that the rules want ({len(plan.decisions)} series or files skipped or labels only); see params ingest.rules"
    code, count = Counter(row["code"] for row in quarantine).most_common(1)[0]
    first = next(row for row in quarantine if row["code"] == code)
    others = f" (so {count} of {len(quarantine)} refused series or files)" if len(quarantine) > 1 else ""
    return f"nothing in {source} can be used: {code}, {first['reason']}{others}; {first['remedy']}"


def _write_decisions(folder: Path, plan: Plan, quarantine: Sequence[dict[str, str]]) -> None:
    """decisions.tsv: each series or file, the rule that decided and what it looked at."""
    refused = {(row["subject"], row["session"], row["item"]): row["code"] for row in quarantine}
    rows = [{**row, "outcome": f"refused: {refused[key]}" if (key := (row["subject"], row["session"], row["item"])) in refused else row["outcome"]}
            for row in plan.decisions]
    table = frame(rows, DECISION_COLUMNS).sort_values(["subject", "session", "item"])
    write_text(folder / "decisions.tsv", table.to_csv(sep="\t", index=False))


def _write_dataset(folder: Path, rows: Sequence[dict[str, object]], files: Sequence[SourceFile], params: Params) -> None:
    description = {"Name": params.cohort.name, "BIDSVersion": BIDS_VERSION, "DatasetType": "raw", "GeneratedBy": [{"Name": "semiflow ingest"}]}
    write_json(folder / "dataset_description.json", description)
    if any(row["kind"] == "label" for row in rows):
        write_json(folder / "derivatives" / "labels" / "dataset_description.json", {**description, "DatasetType": "derivative"})
    import pandas as pd

    table = pd.DataFrame(rows)[["subject", "site"]].drop_duplicates("subject")
    # Where two sites use one name, the name in the outputs starts with the site, and the source's own table cannot be looked up by it.
    subjects = pd.DataFrame({"participant_id": "sub-" + table.subject, "site": table.site, "source_id": table.subject})
    write_participants(folder / "participants.tsv", subjects, source_tables(files))


def _write_sessions(folder: Path, rows: Sequence[dict[str, object]], dates: Mapping[Case, str]) -> None:
    """BIDS sessions tables, with the studies' moved dates, for the cases that came through."""
    import pandas as pd

    written = {(row["subject"], row["session"]) for row in rows}
    by_subject: dict[str, list[dict[str, str]]] = {}
    for case, date in dates.items():
        if (case.subject, case.session) in written:
            by_subject.setdefault(case.subject, []).append({"session_id": f"ses-{case.session}", "acq_time": f"{date}T00:00:00"})
    for subject, sessions in by_subject.items():
        table = pd.DataFrame(sessions).sort_values("session_id")
        write_text(folder / f"sub-{subject}" / f"sub-{subject}_sessions.tsv", table.to_csv(sep="\t", index=False))


def _say(text: str) -> None:
    print(f"ingest: {text}", file=sys.stderr, flush=True)
