"""What a worker does with one fit: train, calibrate, predict and measure, in one process and without writing the model unless it is kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pipelines.evaluate.cases import Job as Measuring
from pipelines.evaluate.cases import measure_fit
from pipelines.evaluate.missing import evaluate_subsets
from pipelines.outputs import write_json
from pipelines.params import Evaluate
from pipelines.sweep.matrix import Fit
from pipelines.sweep.meter import Meter
from pipelines.sweep.shuffled import shuffled
from pipelines.systems.protocol import Task
from pipelines.threads import one_thread
from pipelines.train.fitted import RECORD, Fitted
from pipelines.train.one import save_system, train_one

MEASURED = "measured"
MODEL = "model"
SUBSETS = "missing.csv"


@dataclass(frozen=True)
class Order:
    """A fit to make and the folder that it becomes."""

    fit: Fit
    folder: Path


def run_orders(orders: Sequence[Order], task: Task, settings: Evaluate, cohort: str) -> list[Mapping[str, object]]:
    """Make fits one after another, in a process where what a system learnt of the source sites for one may serve the next. Returns their records."""
    with one_thread():  # all of it: a forked process that asks torch for the threads of its parent waits for them for ever
        return [run_order(order, task, settings, cohort) for order in orders]


def run_order(order: Order, task: Task, settings: Evaluate, cohort: str) -> Mapping[str, object]:
    """Make one fit; its folder appears whole. Returns what its `fit.json` holds."""
    fit, final = order.fit, order.folder
    if fit.shuffled:
        fit = replace(fit, job=replace(fit.job, split=shuffled(fit.job.split, fit.shuffled)))
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / MEASURED).mkdir(parents=True)
    meter = Meter()
    fitted = train_one(fit.job, task)
    measuring = Measuring(partial, facts_of(fit, cohort), fit.job.split.query, overlays=fit.overlays)
    if not fit.job.split.calibration:  # else it has predicted already: what a library loads at its first use is no case's cost
        fitted.raw(fit.job.split.query[0])
    measure_fit(fitted, measuring, task.labels, settings, partial / MEASURED)
    if fit.subsets:
        _subset_rows(fit, fitted, task, settings).to_csv(partial / SUBSETS, index=False)
    record = {**fitted.record, **meter.read(), "arm": fit.cell.arm, **_sizes(fitted, partial / MODEL if fit.keep else None)}
    write_json(partial / RECORD, record)
    partial.rename(final)
    return record


def facts_of(fit: Fit, cohort: str) -> dict[str, object]:
    """The columns that all rows of a fit share."""
    job = fit.job
    return {"cohort": cohort, "experiment": job.experiment, "system": job.system, "shots": job.shots, "seed": job.seed, "site": job.site,
            "arm": fit.cell.arm, "protocol": job.protocol}


def _subset_rows(fit: Fit, fitted: Fitted, task: Task, settings: Evaluate) -> pd.DataFrame:
    """Rows of `missing.csv`: each query case from each subset of its modalities."""
    job = fit.job
    facts = {"arm": fit.cell.arm, "system": job.system, "protocol": job.protocol, "shots": job.shots, "site": job.site, "seed": job.seed}
    return pd.DataFrame([{**facts, "case": case.id, **row} for case in job.split.query
                         for row in evaluate_subsets(fitted, case, task.labels, settings)])


def _sizes(fitted: Fitted, folder: Path | None) -> dict[str, int | None]:
    """What the model weighs; it stays in `folder`, if there is one."""
    if folder is not None:
        folder.mkdir()
        return save_system(fitted.system, folder)
    with tempfile.TemporaryDirectory() as temporary:
        return save_system(fitted.system, Path(temporary))
