"""What a worker does with one unit: learn the sites one after another, in every order, and measure every site after each."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.continual.plan import THEN, Unit, file_of
from pipelines.evaluate.metrics import dice
from pipelines.outputs import write_json
from pipelines.systems import create, params_model
from pipelines.systems.protocol import FewShotSystem, Task
from pipelines.threads import one_thread
from pipelines.train.one import save_system


@dataclass(frozen=True)
class State:
    """A model after some sites: Dice on every site, of every case and label there (None where the case lacks it), and what the last of them cost."""

    system: FewShotSystem
    dice: Mapping[str, float]
    cases: Mapping[str, Sequence[Mapping]]
    costs: Mapping[str, float]


def run_unit(unit: Unit, task: Task, work: Path, keys: Mapping[str, str]) -> dict:
    """Make one unit; its file appears whole. Returns what it holds."""
    started = time.monotonic()
    with one_thread():
        rows, costs, cases = measured(unit, task)
    content = {"scenario": unit.scenario, "method": unit.method, "seed": unit.seed, "rows": rows, "costs": costs, "cases": cases,
               "seconds": round(time.monotonic() - started, 1)}
    write_json(file_of(work, unit, keys[unit.name]), content)
    return content


def measured(unit: Unit, task: Task) -> tuple[list[dict], list[dict], list[dict]]:
    """The rows of `continual.csv`, `costs.csv` and `cases.csv`. What orders have in common (the same sites, or the same ones in a row) is learned
    once."""
    states: dict[Hashable, State] = {}
    rows, costs, cases = [], [], []
    for order in unit.orders:
        facts = {"method": unit.method, "order": THEN.join(order), "seed": unit.seed, "scenario": unit.scenario}
        for position in range(1, len(order) + 1):
            learned = order[:position]
            state = _state(unit, task, learned, states)
            for site in order:
                own = _state(unit, task, order[:order.index(site) + 1], states) if _has_own(unit, site, learned) else state
                rows.append({**facts, "after_site": learned[-1], "on_site": site, "dice": own.dice[site]})
                if learned == order:
                    cases += [{**facts, "site": site, **row} for row in own.cases[site]]
            costs.append({**facts, "position": position, "site": learned[-1], **state.costs})
    return rows, costs, cases


def _has_own(unit: Unit, site: str, learned: Sequence[str]) -> bool:
    """Whether a model of the site's own answers there; elsewhere the newest model has to do."""
    return unit.arm.learns == "per-site" and site in learned


def _state(unit: Unit, task: Task, learned: tuple[str, ...], states: dict[Hashable, State]) -> State:
    key: Hashable = {"per-site": learned[-1], "joint": frozenset(learned)}.get(unit.arm.learns, learned)
    if key not in states:
        learn = {"incremental": _goes_on, "rehearsal": _rehearses, "joint": _anew, "per-site": _alone}[unit.arm.learns]
        states[key] = _made(unit, task, lambda: learn(unit, task, learned, states))
    return states[key]


def _goes_on(unit: Unit, task: Task, learned: tuple[str, ...], states: Mapping[Hashable, State]) -> FewShotSystem:
    """The model of the sites before, and the newest site's shots."""
    system = copy.deepcopy(states[learned[:-1]].system) if learned[:-1] else _new(unit)
    system.learn_site(task, unit.draws[learned[-1]].support, unit.seed)
    return system


def _rehearses(unit: Unit, task: Task, learned: tuple[str, ...], _: Mapping) -> FewShotSystem:
    """A new model of the newest site, with all earlier shots as source: what adaptation does with a system that cannot go on."""
    system = _new(unit)
    system.fit(task, unit.draws[learned[-1]].support, unit.seed, _shots(unit, learned[:-1]))
    return system


def _anew(unit: Unit, task: Task, learned: tuple[str, ...], _: Mapping) -> FewShotSystem:
    """A new model of all shots so far, in one pool."""
    system = _new(unit)
    system.fit(task, _shots(unit, sorted(learned)), unit.seed)
    return system


def _alone(unit: Unit, task: Task, learned: tuple[str, ...], _: Mapping) -> FewShotSystem:
    """A new model of the newest site alone."""
    system = _new(unit)
    system.fit(task, unit.draws[learned[-1]].support, unit.seed)
    return system


def _new(unit: Unit) -> FewShotSystem:
    return create(unit.arm.system, params_model(unit.arm.system)(**unit.arm.params))


def _shots(unit: Unit, sites: Sequence[str]) -> tuple[Case, ...]:
    return tuple(case for site in sites for case in unit.draws[site].support)


def _made(unit: Unit, task: Task, learn: Callable[[], FewShotSystem]) -> State:
    wall, processor = time.perf_counter(), time.process_time()
    system = learn()
    costs = {"seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(time.process_time() - processor, 2)}
    with tempfile.TemporaryDirectory() as folder:
        costs["model_bytes"] = save_system(system, Path(folder))["model_bytes"]
    means, cases = {}, {}
    for site, split in unit.draws.items():
        looked = [_looked_at(system, task, case) for case in split.query]
        means[site] = round(float(np.mean([mean for mean, _ in looked])), 6)
        cases[site] = [row for _, rows in looked for row in rows]
    return State(system, means, cases, costs)


def _looked_at(system: FewShotSystem, task: Task, case: Case) -> tuple[float, list[dict]]:
    """Mean Dice over the labels that the case has (of a case with none 1 where nothing is found, else 0), and a row a label."""
    predicted, truth = system.predict(task, case).argmax(0), case.label()
    found = [dice(truth == value, predicted == value) for value in range(1, len(task.labels) + 1)]
    mean = float(np.nanmean(found)) if truth.any() else float(not predicted.any())
    return mean, [{"case": case.id, "label": label, "dice": None if np.isnan(value) else round(value, 6)}
                  for label, value in zip(task.labels, found, strict=True)]
