"""From params to fits: which there are, on which draws, and what is refused or left out before anything is trained."""

from __future__ import annotations

import copy

import pytest
import yaml
from tiny_stages import cases_at

from pipelines.errors import DataError, UsageError
from pipelines.params import DEFAULT, Params
from pipelines.sweep.matrix import Cell, expand, title
from pipelines.sweep.progress import Costs, told
from pipelines.sweep.stage import in_turn
from pipelines.sweep.work import Order

ARMS = {"semi": {"system": "semi"}, "forest": {"system": "random-forest", "role": "baseline"},
        "semi-blind": {"system": "semi", "params": {"text": "one-hot"}, "role": "control", "title": "SEMI without words"}}
CASES = cases_at(north=6, south=3)


def params_with(*grids: dict, missing: dict | None = None) -> Params:
    content = yaml.safe_load(DEFAULT.read_text())
    content["cohort"]["targets"] = "all"
    content["protocol"]["seeds"] = [3, 4]
    content["sweep"] = {"arms": copy.deepcopy(ARMS), "grids": list(grids), "missing_modalities": missing}
    return Params(**content)


def test_every_arm_meets_the_same_draws():
    fits, left_out = expand(params_with({"arms": "all", "shots": [1, 2]}, {"arms": ["semi", "baseline"], "protocol": "transfer", "shots": [0, 1]},
                                        {"arms": ["headline"], "protocol": "pooled", "shots": [4], "seeds": [0]}), CASES)
    assert not left_out
    assert len(fits) == 3 * 2 * 2 * 2 + 2 * 2 * 2 * 2 + 1
    names = {fit.cell.name for fit in fits}
    assert {"semi-1", "forest-2", "semi-blind-1", "semi-0-transfer", "forest-1-transfer", "semi-4-pooled"} <= names
    splits = {}
    for fit in fits:
        splits.setdefault((fit.job.protocol, fit.job.shots, fit.job.site, fit.job.seed), []).append(fit.job.split.ids())
    assert all(ids == same[0] for same in splits.values() for ids in same)
    for site in ("north", "south"):
        within, transfer = splits["within", 1, site, 3][0], splits["transfer", 1, site, 3][0]
        assert within["query"] == transfer["query"]
        assert transfer["source"]
    assert {fit.cell.arm for fit in fits if fit.keep} == {"semi"}
    assert {fit.job.seed for fit in fits if fit.overlays and fit.job.protocol == "within"} == {3}


def test_a_fit_that_two_grids_name_is_made_once():
    once, twice = ({"arms": ["semi"], "shots": [1], "sites": ["north"]}, {"arms": "all", "shots": [1, 2], "sites": ["north"]})
    assert len(expand(params_with(once, twice), CASES)[0]) == 3 * 2 * 2


def test_subsets_are_of_the_cells_that_ask_for_them():
    fits, _ = expand(params_with({"arms": "all", "shots": [1, 2]}, missing={"arms": ["headline", "baseline"], "shots": [2]}), CASES)
    assert {fit.cell for fit in fits if fit.subsets} == {Cell("semi", "within", 2), Cell("forest", "within", 2)}


def test_sites_too_small_are_left_out_and_said_so():
    fits, left_out = expand(params_with({"arms": "all", "shots": [1, 4]}), CASES)
    assert {(fit.job.shots, fit.job.site) for fit in fits} == {(1, "north"), (1, "south"), (4, "north")}
    (site,) = left_out
    assert (site.protocol, site.shots, site.site) == ("within", 4, "south")
    assert "3 labelled case(s)" in site.reason


def test_shots_that_no_site_has_yet_are_left_out_and_the_others_done():
    fits, left_out = expand(params_with({"arms": "all", "shots": [1, 9]}), CASES)
    assert {fit.job.shots for fit in fits} == {1}
    assert {(site.shots, site.site) for site in left_out} == {(9, "north"), (9, "south")}


@pytest.mark.parametrize(("grid", "error", "hint"), [
    ({"arms": "all", "shots": [9]}, DataError, r"9 shot\(s\) under protocol 'within' are more than any site has .*lower the shots"),
    ({"arms": "all", "shots": [9], "protocol": "pooled"}, DataError, r"9 shot\(s\) under protocol 'pooled'.*site 'all' has 9"),
    ({"arms": "all", "shots": [1], "sites": ["east"]}, DataError, r"sweep\.grids\.sites names 'east'.*north, south"),
])
def test_what_no_site_can_give_stops_the_sweep(grid, error, hint):
    with pytest.raises(error, match=hint):
        expand(params_with(grid), CASES)


def test_params_without_a_sweep():
    with pytest.raises(UsageError, match="no section 'sweep'"):
        expand(params_with({"arms": "all", "shots": [1]}).model_copy(update={"sweep": None}), CASES)


def test_titles_tell_arms_of_one_system_apart():
    arms = params_with({"arms": "all", "shots": [1]}).sweep.arms
    assert [title(name, arm) for name, arm in arms.items()] == ["SEMI", "random forest", "SEMI without words"]
    assert title("semi-blind", arms["semi-blind"].model_copy(update={"title": ""})) == "SEMI, semi-blind"


def test_each_arm_is_tried_once_before_any_is_finished(tmp_path):
    fits, _ = expand(params_with({"arms": "all", "shots": [1, 2]}), CASES)
    groups = in_turn([Order(fit, tmp_path / str(index)) for index, fit in enumerate(fits)], Costs())
    assert sorted(order.fit.cell.arm for order, *_ in groups[:3]) == ["forest", "semi", "semi-blind"]
    assert sum(map(len, groups)) == len(fits)
    for group in groups:
        assert len({(order.fit.cell.arm, order.fit.job.site, order.fit.job.seed) for order in group}) == 1


def test_estimates_come_from_the_same_cell_before_anything_else():
    costs, cell = Costs(), Cell("semi", "within", 1)
    assert told(*costs.left([cell], 2)) == "no estimate yet"
    costs.add({"arm": "forest", "protocol": "within", "shots": 4, "seconds": 400.0})
    assert told(*costs.left([cell], 2)) == "about 3 min left (1 arm(s) not timed yet)"
    costs.add({"arm": "semi", "protocol": "within", "shots": 4, "seconds": 30.0})
    costs.add({"arm": "semi", "protocol": "within", "shots": 1, "seconds": 10.0})
    assert costs.left([cell, cell, Cell("semi", "within", 2)], 2) == (20.0, 0)
