"""Stage 6a: every fit of one experiment predicts its query cases; what came out is measured case by case.

Writes `cases.csv` (a row per fit x case x label), `reliability.csv` (bins over all cases of a site), `summary.json` and `overlays/`.
Fits are measured side by side in processes; a killed run keeps those already measured and goes on with the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.cohort import MANIFEST, Case
from pipelines.errors import DataError
from pipelines.evaluate.cases import RELIABILITY_KEYS, Job, evaluate_fit, sum_bins
from pipelines.evaluate.outcomes import evaluate_outcomes
from pipelines.evaluate.overlay import INDEX
from pipelines.outputs import sha256, staged_folder, write_json
from pipelines.parallel import spread
from pipelines.params import Evaluate, Experiment, Params
from pipelines.systems import answers_of, params_model
from pipelines.systems.lean import load_monai
from pipelines.systems.protocol import Task

PARTS = "parts"
RELIABILITY = "reliability.csv"
TEXT = {"site": str, "case": str, "case_site": str, "label": str, "outcome": str, "class": str}


def evaluate(experiment: str, models: Path, out: Path, *, task: Task, cases: Sequence[Case], params: Params, cohort: str) -> None:
    """Evaluate every fit in `models` into `out`. `cohort` identifies the resampled cohort (its manifest's hash), for resuming."""
    records = read_fits(models)
    jobs = [_job(experiment, folder, record, cases, params, overlays=record["seed"] == _first_seed(records, record["site"]))
            for folder, record in records]
    with staged_folder(out, inputs=_fingerprint(experiment, records, params, cohort)) as folder:
        waiting = [job for job in jobs if not (folder / PARTS / job.name).exists()]
        if len(waiting) < len(jobs):
            print(f"{experiment}: {len(jobs) - len(waiting)} of {len(jobs)} fits were measured by an earlier run", flush=True)
        _run(waiting, task, params.evaluate, folder / PARTS)
        merge(folder, [folder / PARTS / job.name for job in jobs])
        write_json(folder / "summary.json", summarise(experiment, params.experiments[experiment], [record for _, record in records],
                                                      task=task, cases=cases, params=params))
        shutil.rmtree(folder / PARTS)


def read_fits(models: Path) -> list[tuple[Path, dict]]:
    """The fit folders of an experiment and their records, by site and seed."""
    from pipelines.train.fitted import RECORD, fits_of

    folders = fits_of(models)
    if not folders:
        raise DataError(f"{models} holds no <site>/seed-<s>/{RECORD}; run `python -m pipelines.train` with --out {models} first")
    return [(folder, json.loads((folder / RECORD).read_text())) for folder in folders]


def manifest_hash(source: Path) -> str:
    """Identifies a resampled cohort: its manifest names every volume with its hash."""
    return sha256(Path(source) / MANIFEST)


def _first_seed(records: Sequence[tuple[Path, Mapping]], site: str) -> int:
    return min(record["seed"] for _, record in records if record["site"] == site)


def _job(experiment: str, folder: Path, record: Mapping, cases: Sequence[Case], params: Params, *, overlays: bool) -> Job:
    known = {case.id: case for case in cases}
    gone = [name for name in record["split"]["query"] if name not in known]
    if gone or not record["split"]["query"]:
        raise DataError(f"{folder / 'fit.json'} asks for {len(record['split']['query'])} query case(s), of which the resampled cohort lacks "
                        f"{len(gone)}; train experiment {experiment} again")
    settings = params.experiments[experiment]
    facts = {"cohort": params.cohort.name, "experiment": experiment, "system": settings.system, "shots": settings.shots,
             "seed": record["seed"], "site": record["site"]}
    return Job(folder, facts, [known[name] for name in record["split"]["query"]], overlays=overlays)


def _fingerprint(experiment: str, records: Sequence[tuple[Path, Mapping]], params: Params, cohort: str) -> str:
    """What the measurements depend on: a killed run is resumed only when none of it has changed, code included."""
    package = Path(__file__).parents[1]
    code = sorted(path for part in ("evaluate", "train", "systems") for path in (package / part).rglob("*.py"))
    content = {"params": [params.cohort.model_dump(), params.evaluate.model_dump(), params.experiments[experiment].model_dump()],
               "cohort": cohort, "fits": [record for _, record in records], "code": [sha256(path) for path in code]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _run(waiting: Sequence[Job], task: Task, settings: Evaluate, parts: Path) -> None:
    """Evaluate the fits, one process per core."""
    if any(answers_of(job.facts["system"]) == "voxels" for job in waiting):
        load_monai()  # once, before the processes part
    done = spread(partial(_run_one, task=task, settings=settings, parts=parts), waiting, os.cpu_count() or 1)
    for count, facts in enumerate(done, start=1):
        print(f"{facts['experiment']}: measured fit {count} of {len(waiting)}, site {facts['site']} seed {facts['seed']}", flush=True)


def _run_one(job: Job, task: Task, settings: Evaluate, parts: Path) -> Mapping[str, object]:
    with staged_folder(parts / job.name) as part:
        if answers_of(job.facts["system"]) == "case":
            evaluate_outcomes(job, task, part)
        else:
            evaluate_fit(job, task, settings, part)
    return job.facts


def merge(folder: Path, parts: Sequence[Path]) -> None:
    """One table of all fits' tables; reliability as means with their counts; overlays side by side. Answers of whole cases have tables alone."""
    for name in sorted({path.name for part in parts for path in part.glob("*.csv")} - {RELIABILITY}):
        pd.concat([pd.read_csv(part / name, dtype=TEXT) for part in parts if (part / name).is_file()]).to_csv(folder / name, index=False)
    if not all((part / RELIABILITY).is_file() for part in parts):
        return
    bins = sum_bins(pd.concat([pd.read_csv(part / RELIABILITY, dtype=TEXT) for part in parts]))
    filled = bins["count"].where(bins["count"] > 0)
    bins["confidence"], bins["accuracy"] = bins.confidence_sum / filled, bins.accuracy_sum / filled
    bins[[*RELIABILITY_KEYS, "confidence", "accuracy", "count"]].to_csv(folder / RELIABILITY, index=False)
    (folder / "overlays").mkdir(exist_ok=True)
    index = []
    for part in parts:
        index += json.loads((part / "overlays" / INDEX).read_text())
        for path in sorted((part / "overlays").glob("*.npz")):
            shutil.copyfile(path, folder / "overlays" / path.name)
    write_json(folder / "overlays" / INDEX, index)


def summarise(name: str, settings: Experiment, records: Sequence[Mapping], *, task: Task, cases: Sequence[Case],
              params: Params) -> dict[str, object]:
    """What a reader has to know beside the numbers. `records`: the `fit.json` of each fit."""
    found = {
        "cohort": params.cohort.name, "caveat": params.cohort.caveat, "disease": params.cohort.disease, "split_by": params.cohort.split_by,
        "labels": [{"name": label.name, "text": label.text} for label in params.cohort.labels],
        "experiment": name, "system": settings.system, "title": params_model(settings.system).model_config.get("title") or settings.system,
        "shots": settings.shots, "params": settings.params, "protocol": settings.protocol or params.protocol.kind,
        "modalities": list(task.modalities),
        "sites": sorted({record["site"] for record in records}), "seeds": sorted({record["seed"] for record in records}),
        "fits": len(records), "cases": len(cases), "labelled_cases": sum(case.dseg is not None for case in cases),
        "backbone": {"name": params.embed.backbone, "fingerprint": task.backbone.fingerprint},
        "calibration_from": sorted({str(record["calibration_from"]) for record in records}),
        "cost": {key: _mean([record.get(key) for record in records]) for key in ("train_seconds", "model_bytes", "parameters")},
        "evaluate": params.evaluate.model_dump(),
    }
    if answers_of(settings.system) == "case":
        found |= {"answers": "case", "outcomes": list(task.outcomes), "outcome": params.cohort.outcome.model_dump(),
                  "labelled_cases": sum(case.known("case") for case in cases)}
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(known)) if known else None
