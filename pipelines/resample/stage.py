"""The stage over a cohort: cases side by side, each resumable, one manifest at the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipelines.cohort import MANIFEST, case_id, read_manifest, write_manifest, write_quarantine
from pipelines.errors import DataError, UsageError
from pipelines.outputs import staged_folder, write_json
from pipelines.parallel import spread
from pipelines.params import Params
from pipelines.resample.case import CaseResult, resample_case
from pipelines.resample.labels import lookup_path

#: Where finished cases note their rows until all are done.
DONE = ".done"
CODE = Path(__file__).parent


def resample_cohort(source: Path, out: Path, params: Params, jobs: int | None = None) -> None:
    """Bring every case of the ingested cohort in `source` to one grid per case, and write the cohort to `out`.

    `jobs` cases at a time, one per core by default. A killed run continues with the cases it had not finished, as long as manifest,
    parameters and code are the same. Raises DataError where no case can be used.
    """
    if not source.is_dir():
        raise UsageError(f"--source {source} does not exist; give the folder that the ingest stage wrote")
    table = read_manifest(source).astype(object)
    table = table.where(table.notna(), None)
    cases = {case_id(*key): rows.to_dict("records") for key, rows in table.groupby(["subject", "session"], sort=True)}
    if not cases:
        raise DataError(f"{source / MANIFEST} has no rows; see quarantine.tsv beside it for why")
    with staged_folder(out, inputs=fingerprint(source, cases, params)) as folder:
        (folder / DONE).mkdir(exist_ok=True)
        todo = [name for name in cases if not (folder / DONE / f"{name}.json").is_file()]
        if len(todo) < len(cases):
            print(f"resample: {len(cases) - len(todo)} of {len(cases)} cases were finished by an earlier run", flush=True)
        work = partial(finish_case, source, folder, params)
        for count, line in enumerate(spread(work, [(name, cases[name]) for name in todo], jobs or os.cpu_count() or 1), start=1):
            print(f"resample: {count}/{len(todo)} {line}", flush=True)
        results = [read_done(folder / DONE / f"{name}.json") for name in cases]
        write_cohort(source, folder, results)


def fingerprint(source: Path, cases: dict[str, list[dict]], params: Params) -> str:
    """What unfinished work depends on: manifest, label lookups, parameters, code."""
    lookups = [lookup_path(source / row["path"]) for rows in cases.values() for row in rows if row["kind"] == "label"]
    settings = params.resample.model_dump_json() + json.dumps([label.model_dump() for label in params.cohort.labels])
    digest = hashlib.sha256(settings.encode())
    for path in [source / MANIFEST, *lookups, *sorted(CODE.glob("*.py"))]:
        digest.update(path.read_bytes() if path.is_file() else b"-")
    return digest.hexdigest()


def finish_case(source: Path, folder: Path, params: Params, case: tuple[str, list[dict]]) -> str:
    """Do one case (its name, its rows of the manifest), note that it is done, and say so in a line."""
    name, rows = case
    result = resample_case(source, folder, rows, params.resample, labels=params.cohort.labels)
    write_json(folder / DONE / f"{name}.json", {"rows": result.rows, "quarantine": result.quarantine})
    images = [row for row in result.rows if row["kind"] == "image"]
    grid = f"{images[0]['shape']} of {images[0]['spacing_mm']} mm" if images else "not used"
    return f"{name}: {len(images)} images, {grid}" + (f", {len(result.quarantine)} to quarantine" if result.quarantine else "")


def read_done(path: Path) -> CaseResult:
    """The rows that a finished case noted."""
    content = json.loads(path.read_text())
    return CaseResult(path.parents[1], content["rows"], content["quarantine"])


def write_cohort(source: Path, folder: Path, results: Sequence[CaseResult]) -> None:
    """Manifest, quarantine and the files that make the folder a BIDS derivative."""
    rows = [row for result in results for row in result.rows]
    quarantine = [row for result in results for row in result.quarantine]
    if not any(row["kind"] == "image" for row in rows):
        first = quarantine[0]
        raise DataError(f"no case of {source} can be used; the first of {len(quarantine)} reasons is that of {first['item']}: "
                        f"{first['reason']}; {first['remedy']}")
    write_manifest(folder, rows)
    write_quarantine(folder, quarantine)
    write_json(folder / "dataset_description.json", {
        "Name": "Cohort on one grid per case, intensities standardised", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "semiflow resample"}],
    })
    if (source / "participants.tsv").is_file():
        shutil.copyfile(source / "participants.tsv", folder / "participants.tsv")
    shutil.rmtree(folder / DONE)
    print(f"resample: {sum(row['kind'] == 'image' for row in rows)} images, {sum(row['kind'] == 'label' for row in rows)} labels, "
          f"{len(quarantine)} to quarantine", flush=True)
