"""From params' section `continual` to units of work with their draws. Nothing is trained before all of it is known to be possible."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.cohort import Case
from pipelines.errors import DataError, UsageError
from pipelines.experiments import ContinualArm
from pipelines.params import Params
from pipelines.sweep.keys import Keys, code_hash
from pipelines.systems import create, params_model
from pipelines.systems.incremental import Incremental
from pipelines.train.split import Split, draw, sites_of

#: Between the sites of an order, in files.
THEN = ">"
CODE = ("pipelines.continual.work",)


@dataclass(frozen=True)
class Unit:
    """One method in one scenario with one seed, in all orders. `draws`: site -> its shots (support) and query cases."""

    scenario: str
    method: str
    arm: ContinualArm
    seed: int
    orders: tuple[tuple[str, ...], ...]
    draws: Mapping[str, Split]

    @property
    def name(self) -> str:
        return f"{self.scenario}_{self.method}_seed-{self.seed}"


def expand(params: Params, cases: Sequence[Case]) -> list[Unit]:
    """The units in the order of params, a seed of all methods before the next seed.

    Raises `UsageError` where params have no such section or a method cannot go on from site to site, `DataError` where a site is too small.
    """
    settings = params.continual
    if settings is None:
        raise UsageError("params.yaml has no section 'continual'; add one with arms (the project's own params.yaml has an example)")
    for name, arm in settings.arms.items():
        if arm.learns == "incremental" and not isinstance(create(arm.system, params_model(arm.system)(**arm.params)), Incremental):
            raise UsageError(f"continual.arms.{name}: system {arm.system!r} cannot go on from site to site; give it learns: rehearsal, joint or "
                             "per-site")
    sites = sites_of(cases, settings.sites, key="continual.sites")
    if len(sites) < 2:
        raise DataError(f"continual: one site after another needs two, and cohort {params.cohort.name!r} has {', '.join(sites) or 'none'}")
    orders = orders_of(sites, settings.orders)
    protocol = params.protocol.model_copy(update={"kind": "within", "calibration_cases": 0})
    units = []
    for seed in settings.seeds:
        for scenario, names in settings.scenarios.items():
            seen = [shown(case, names[case.site]) if case.site in names else case for case in cases]
            drawn = {site: draw(seen, site, settings.shots, seed, protocol, split_by=params.cohort.split_by, experiment="continual")
                     for site in sites}
            draws = {site: replace(split, query=split.query[:settings.query_cases]) for site, split in drawn.items()}
            units += [Unit(scenario, name, arm, seed, orders, draws) for name, arm in settings.arms.items()]
    return units


def orders_of(sites: Sequence[str], wanted: int | Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The orders of params; a number asks for that many turns of the sorted sites, every other one backwards: number k begins with site k."""
    if isinstance(wanted, int):
        return tuple(tuple(sites[(k + (-place if k % 2 else place)) % len(sites)] for place in range(len(sites))) for k in range(wanted))
    for order in wanted:
        if sorted(order) != sorted(sites):
            raise UsageError(f"continual.orders: {', '.join(order)} is no order of the sites {', '.join(sites)}; name each of them once")
    return tuple(tuple(order) for order in wanted)


def shown(case: Case, names: Mapping[str, str]) -> Case:
    """The case as a site would send it that acquires only the modalities in `names`, and calls the image `names[m]` by the name m."""
    if not set(names.values()) & set(case.images):
        raise DataError(f"continual.scenarios: {case.id} has none of {', '.join(sorted(set(names.values())))}; it would have no image left")
    return replace(case, **{part: {name: getattr(case, part)[own] for name, own in names.items() if own in getattr(case, part)}
                            for part in ("images", "tokens")})


def keys_of(units: Sequence[Unit], keys: Keys, params: Params) -> dict[str, str]:
    """Unit name -> hash of everything its numbers depend on (see `pipelines.sweep.keys`)."""
    found = {}
    for unit in units:
        package = params_model(unit.arm.system).__module__.rpartition(".")[0]
        settings = params_model(unit.arm.system)(**unit.arm.params).model_dump(mode="json")
        draws = {site: {group: [(case, keys.images[case]) for case in ids] for group, ids in split.ids().items()}
                 for site, split in unit.draws.items()}
        shared = {name: value for name, value in keys.shared.items() if name != "evaluate"}
        content = {**shared, "params": settings, "learns": unit.arm.learns, "orders": unit.orders, "seed": unit.seed, "draws": draws,
                   "shown": params.continual.scenarios[unit.scenario], "code": code_hash(package, CODE)}
        found[unit.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return found


def file_of(work: Path, unit: Unit, key: str) -> Path:
    return work / f"{unit.name}_{key}.json"
