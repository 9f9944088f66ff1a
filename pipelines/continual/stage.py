"""The continual protocol from end to end: which units there are, which are missing, making them in worker processes, putting all together."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import pandas as pd

from pipelines.continual.measures import described, table
from pipelines.continual.plan import Unit, expand, file_of, keys_of
from pipelines.continual.work import run_unit
from pipelines.outputs import locked, staged_folder, write_json
from pipelines.parallel import spread
from pipelines.params import Params
from pipelines.sweep.keys import Keys
from pipelines.sweep.progress import told
from pipelines.systems import params_model
from pipelines.train.inputs import load_task

COLUMNS = ["method", "order", "seed", "after_site", "on_site", "dice", "scenario"]
CASE_COLUMNS = ["scenario", "method", "order", "seed", "site", "case", "label", "dice"]
COST_COLUMNS = ["scenario", "method", "order", "seed", "position", "site", "seconds", "cpu_seconds", "model_bytes"]


def continual(*, source: Path, prompts: Path, embeddings: Path, out: Path, params: Params, work: Path | None = None, jobs: int | None = None) -> None:
    """Make every unit that is not in `work` yet (default: the folder `continual` beside `source`), then write `out` (see `pipelines.continual`).

    `jobs`: units at a time, by default one per core. Raises `UsageError` and `DataError` before any unit where params ask for the impossible.
    """
    task, cases = load_task(source, prompts, embeddings, params)
    units = expand(params, cases)
    keys = keys_of(units, Keys.read(source, prompts, task, params), params)
    work = Path(work or Path(source).parent / "continual")
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / ".lock"):
        waiting = [unit for unit in units if not file_of(work, unit, keys[unit.name]).is_file()]
        print(f"{params.cohort.name}: {len(units)} units, {len(units) - len(waiting)} finished by an earlier run", flush=True)
        _run(waiting, partial(run_unit, task=task, work=work, keys=keys), jobs or os.cpu_count() or 1)
        found = [json.loads(file_of(work, unit, keys[unit.name]).read_text()) for unit in units]
        with staged_folder(out) as folder:
            write(folder, found, units, params)
        _drop_superseded(work, units, keys)


def _run(waiting: Sequence[Unit], make, jobs: int) -> None:
    """Make the units, `jobs` at a time, telling how far it is and how long it will take."""
    took: list[float] = []
    for count, content in enumerate(spread(make, waiting, jobs), start=1):
        took.append(content["seconds"])
        left = fmean(took) * (len(waiting) - count) / min(jobs, len(waiting))
        print(f"continual: {count} of {len(waiting)} units, {told(left, 0)}; {content['scenario']} {content['method']} seed {content['seed']}, "
              f"{content['seconds']:.0f} s", flush=True)


def write(folder: Path, found: Sequence[Mapping], units: Sequence[Unit], params: Params) -> None:
    """The tables and the summary of finished units."""
    rows, costs, cases = (pd.DataFrame([row for content in found for row in content[part]])[columns]
                          for part, columns in (("rows", COLUMNS), ("costs", COST_COLUMNS), ("cases", CASE_COLUMNS)))
    for name, found_table in (("continual", rows), ("costs", costs), ("cases", cases)):
        found_table.to_csv(folder / f"{name}.csv", index=False)
    write_json(folder / "continual.json", summary(rows, costs, units, params))


def summary(rows: pd.DataFrame, costs: pd.DataFrame, units: Sequence[Unit], params: Params) -> dict[str, object]:
    """What `continual.json` holds: the setting, and per scenario and method the measures, their differences, and the cost by position."""
    settings = params.continual
    scenarios = {}
    for scenario, part in rows.groupby("scenario", sort=False):
        by_method = dict(list(part.groupby("method", sort=False)))
        untrained = by_method.get(settings.untrained)
        tables = {name: table(own, untrained) for name, own in by_method.items()}
        spent = costs[costs.scenario == scenario]
        scenarios[scenario] = {name: {**values, "title": title(name, params), "cost": _by_position(spent[spent.method == name])}
                               for name, values in described(tables, settings.against, params.evaluate).items()}
    first = units[0]
    return {"cohort": params.cohort.name, "caveat": params.cohort.caveat, "confidence": params.evaluate.confidence, "shots": settings.shots,
            "seeds": settings.seeds, "orders": [list(order) for order in first.orders], "shown": settings.scenarios,
            "headline": settings.headline, "methods": list(settings.arms),
            "query_cases": {site: sorted({len(unit.draws[site].query) for unit in units}) for site in first.draws}, "scenarios": scenarios,
            "arms": {name: arm.model_dump(mode="json") for name, arm in settings.arms.items()}}


def title(name: str, params: Params) -> str:
    """What the report calls a method."""
    arm = params.continual.arms[name]
    return arm.title or params_model(arm.system).model_config.get("title") or arm.system


def _by_position(costs: pd.DataFrame) -> list[dict[str, float]]:
    """Means over chains at the first, second, ... site."""
    means = costs.groupby("position")[["seconds", "cpu_seconds", "model_bytes"]].mean().reset_index()
    return [{name: float(value) for name, value in row.items()} for row in means.to_dict("records")]


def _drop_superseded(work: Path, units: Sequence[Unit], keys: Mapping[str, str]) -> None:
    """Remove units of an earlier state (other code, other images) that this run has made anew. Units that it did not ask for stay."""
    for unit in units:
        for other in work.glob(f"{unit.name}_*.json"):
            if other != file_of(work, unit, keys[unit.name]):
                other.unlink()
