"""A source of DICOM in, de-identified DICOM out, every file accounted for.

One file is in memory at a time in each process. A file's number in the outputs is its place among the source's files by name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.cohort import frame, write_quarantine
from pipelines.errors import DataError, Refused
from pipelines.ingest.deidentify import VERSION, Deidentifier, deidentifier
from pipelines.ingest.headers import quiet
from pipelines.ingest.pseudonyms import Pseudonyms, load_key
from pipelines.ingest.source import Files, SourceFile, fingerprint, kind_of, open_source
from pipelines.outputs import sha256, staged_file, staged_folder, write_json, write_text
from pipelines.params import Params

WORK = ".work"
AUDIT_COLUMNS = dict.fromkeys(["subject", "series", "action", "element", "count"], "str")
FEW_FILES = 16  # fewer are done before worker processes have started
LABEL_WORDS = r"[A-Za-z0-9]+"


@dataclass(frozen=True)
class Summary:
    """What came of a source."""

    subjects: int
    series: int
    files: int
    refused: int

    def __str__(self) -> str:
        return (f"{self.subjects} subject(s), {self.series} series, {self.files} file(s) de-identified; "
                f"{self.refused} refused (quarantine.tsv says why)")


def deidentify(source: Path, out: Path, params: Params, *, key_file: Path | None = None, jobs: int = 2) -> Summary:
    """Write de-identified copies of the DICOM files of `source` below `out` as `sub-<pseudonym>/ses-<hash>/series-<hash>/<number>.dcm`.

    `audit.tsv` says what was done to each series, `deidentification.json` with which options, `quarantine.tsv` which files were left out and why.
    Raises `UsageError` for a source that does not exist and `DataError` when no file of it can be used.
    """
    with open_source(source, limits=params.ingest.limits) as files:
        key = load_key(key_file, Path(params.cohort.pseudonym_key) if params.cohort.pseudonym_key else None, data=[source, out])
        tool = deidentifier(Pseudonyms(key), params.ingest.deidentify, _words(params))
        with staged_folder(out, inputs=_state(source, files, params, key)) as folder:
            return _write(folder, source, files, tool, jobs)


def _words(params: Params) -> frozenset[str]:
    """The words of the project's own segment names, which may stay in labels."""
    names = (segment for label in params.cohort.labels for segment in label.segments)
    return frozenset(word.casefold() for name in names for word in re.findall(LABEL_WORDS, name))


def _state(source: Path, files: Sequence[SourceFile], params: Params, key: bytes) -> str:
    """What the work depends on, so that a killed run is resumed only by an equal one (also of this code)."""
    code = [sha256(path) for path in sorted(Path(__file__).parent.iterdir()) if path.is_file()]
    parts = [fingerprint(source, files), hashlib.sha256(key).hexdigest(), params.ingest.deidentify.model_dump_json(), *sorted(_words(params)), *code]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write(folder: Path, source: Path, files: Files, tool: Deidentifier, jobs: int) -> Summary:
    from joblib import Parallel, delayed
    from rich.console import Console
    from rich.progress import track

    parallel = Parallel(n_jobs=jobs if len(files) > FEW_FILES else 1, return_as="generator")
    work = parallel(delayed(_one)(file, number, len(files), folder, tool) for number, file in enumerate(files, 1))
    done = Done.of(track(work, "files", len(files), console=Console(stderr=True)))
    done.quarantine += [refused.row("", "", item) for item, refused in files.refused]
    if not done.files:
        raise DataError(f"no file of {source} can be de-identified: {_why(done.quarantine)}")
    write_quarantine(folder, done.quarantine)
    rows = [{"subject": subject, "series": series, "action": action, "element": element, "count": str(count)}
            for (subject, series, action, element), count in sorted(done.actions.items())]
    write_text(folder / "audit.tsv", frame(rows, AUDIT_COLUMNS).to_csv(sep="\t", index=False))
    write_json(folder / "deidentification.json", {"tool": f"semiflow deidentify {VERSION}", "key": tool.pseudonyms.key_id, "files": done.files,
                                                  "refused": len(done.quarantine), **tool.options.model_dump()})
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return Summary(len({key[0] for key in done.series}), len(done.series), done.files, len(done.quarantine))


@dataclass
class Done:
    """The outcomes of all files, summed up series by series."""

    files: int
    series: set[tuple[str, str]]
    actions: Counter
    quarantine: list[dict[str, str]]

    @classmethod
    def of(cls, outcomes: Iterable[dict]) -> Done:
        done = cls(0, set(), Counter(), [])
        for outcome in outcomes:
            if "refused" in outcome:
                done.quarantine.append(outcome["refused"])
                continue
            done.files += 1
            done.series.add((outcome["subject"], outcome["series"]))
            for action, element, count in outcome["actions"]:
                done.actions[outcome["subject"], outcome["series"], action, element] += count
        return done


def _one(file: SourceFile, number: int, total: int, folder: Path, tool: Deidentifier) -> dict:
    """De-identify one file, unless a run that was killed had done so; what came of it."""
    record = folder / WORK / f"{number:06d}.json"
    if record.exists():
        return json.loads(record.read_text())
    try:
        outcome = _convert(file, number, folder, tool)
    except Refused as refused:
        outcome = {"refused": refused.row("", "", f"file {number} of {total}")}
    write_json(record, outcome)
    return outcome


def _convert(file: SourceFile, number: int, folder: Path, tool: Deidentifier) -> dict:
    dataset = _read(file)
    cleaned, actions = tool.audited(dataset)
    name = tool.pseudonyms
    study, series = (str(dataset.get(tag) or "") for tag in ("StudyInstanceUID", "SeriesInstanceUID"))
    subject, item = str(cleaned.PatientID), f"series-{name('series', series)}"
    with staged_file(folder / f"sub-{subject}" / f"ses-{name('study', study)}" / item / f"{number:06d}.dcm") as path, quiet():
        cleaned.save_as(path, enforce_file_format=True)
    return {"subject": subject, "series": item, "actions": [[action, element, count] for (action, element), count in sorted(actions.items())]}


def _read(file: SourceFile):
    import pydicom

    unreadable = Refused("unreadable-file", "it has no readable DICOM header (truncated or damaged)", "copy or export that file again")
    try:
        if kind_of(file) != "dicom":
            raise Refused("not-dicom", f"it is not DICOM (it has {file.path.stat().st_size} bytes)", "nothing to do, or export it again")
        with quiet():
            dataset = _with_meta(pydicom.dcmread(file.path, force=True))
        if not dataset.get("SOPInstanceUID"):
            raise unreadable
        return dataset
    except Refused:
        raise
    except Exception:  # pydicom raises what a broken file makes it raise
        raise unreadable from None


def _with_meta(dataset):
    """A file without file meta information, as before 1993, still says by its bytes how it is encoded."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not getattr(dataset.file_meta, "TransferSyntaxUID", None):
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return dataset


def _why(quarantine: Sequence[dict[str, str]]) -> str:
    if not quarantine:
        return "it is empty; give a folder or archive with DICOM"
    code, count = Counter(row["code"] for row in quarantine).most_common(1)[0]
    row = next(row for row in quarantine if row["code"] == code)
    return f"{code}, {row['reason']} (so {count} of {len(quarantine)}); {row['remedy']}"

