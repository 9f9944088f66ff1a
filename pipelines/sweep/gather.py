"""Finished fits put together: a folder per cell in the format of the evaluate stage, and the tables over all cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd

from pipelines.cohort import Case
from pipelines.evaluate.stage import TEXT, merge, summarise
from pipelines.outputs import write_json
from pipelines.params import Experiment, Params
from pipelines.sweep.matrix import Cell, LeftOut, cells_of, title
from pipelines.sweep.work import MEASURED, SUBSETS, Order
from pipelines.systems.protocol import Task
from pipelines.train.fitted import RECORD

COST_COLUMNS = ["arm", "shots", "protocol", "site", "seed", "train_seconds", "predict_seconds", "peak_mb", "parameters", "model_bytes"]


def gather(out: Path, orders: Sequence[Order], left_out: Sequence[LeftOut], *, task: Task, cases: Sequence[Case], params: Params) -> None:
    """Write the sweep's output (see `pipelines.sweep`) from finished fits into the folder `out`."""
    folders = {id(order.fit): order.folder for order in orders}
    costs, subsets = [], []
    for cell, fits in cells_of([order.fit for order in orders]).items():
        own = [folders[id(fit)] for fit in fits]
        records = [json.loads((folder / RECORD).read_text()) for folder in own]
        (out / cell.name).mkdir()
        merge(out / cell.name, [folder / MEASURED for folder in own])
        write_json(out / cell.name / "summary.json", summary(cell, records, task=task, cases=cases, params=params))
        costs += [cost(folder, record) for folder, record in zip(own, records, strict=True)]
        subsets += [pd.read_csv(folder / SUBSETS, dtype=TEXT) for folder, fit in zip(own, fits, strict=True) if fit.subsets]
    pd.DataFrame(costs, columns=COST_COLUMNS).astype({"parameters": "Int64"}).to_csv(out / "cost.csv", index=False)
    pd.DataFrame([asdict(site) for site in left_out], columns=[field.name for field in fields(LeftOut)]).to_csv(out / "left_out.csv", index=False)
    if subsets:
        pd.concat(subsets).to_csv(out / SUBSETS, index=False)


def summary(cell: Cell, records: Sequence[Mapping], *, task: Task, cases: Sequence[Case], params: Params) -> dict[str, object]:
    """The evaluate stage's summary of an experiment, with what the sweep adds."""
    arm = params.sweep.arms[cell.arm]
    settings = Experiment(system=arm.system, params=arm.params, protocol=cell.protocol, shots=cell.shots)
    return {**summarise(cell.name, settings, records, task=task, cases=cases, params=params),
            "arm": cell.arm, "role": arm.role, "title": title(cell.arm, arm), "sweep": True}


def cost(folder: Path, record: Mapping[str, object]) -> dict[str, object]:
    """A row of `cost.csv`."""
    seconds = pd.read_csv(folder / MEASURED / "cases.csv", dtype=TEXT).drop_duplicates("case").predict_seconds
    return {**{name: record[name] for name in COST_COLUMNS if name in record}, "predict_seconds": round(float(seconds.mean()), 4)}
