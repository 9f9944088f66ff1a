"""The protocol in small, as a command: what every method is given, what it writes, and what a later run finds done."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
import yaml
from tiny_cohort import tiny_case
from tiny_stages import arguments, cases_at, stage_inputs, write_stages

from pipelines.continual.__main__ import app
from pipelines.continual.plan import expand, orders_of, shown
from pipelines.continual.stage import CASE_COLUMNS, COLUMNS, continual
from pipelines.errors import DataError, UsageError
from pipelines.train.inputs import load_task

QUICK = {"steps": 2, "batch": 2, "refinement": 0}
ARMS = {"itl": {"system": "itl", "params": QUICK}, "sequential": {"system": "itl", "params": QUICK | {"method": "sequential"}},
        "replay-2": {"system": "itl", "params": QUICK | {"method": "replay"}}, "joint": {"system": "itl", "params": QUICK, "learns": "joint"},
        "per-site": {"system": "itl", "params": QUICK, "learns": "per-site"},
        "rehearsal": {"system": "random-forest", "params": {"trees": 3, "voxels_per_class": 60}, "learns": "rehearsal"},
        "untrained": {"system": "itl", "params": QUICK | {"steps": 1, "learning_rate": 1e-9}, "learns": "per-site"}}
SECTION = {"arms": ARMS, "orders": 2, "seeds": [0], "shots": 1, "query_cases": 1,
           "scenarios": {"few-sequences": {"north": {"FLAIR": "FLAIR"}, "south": {"FLAIR": "T1w"}}}}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = write_stages(tmp_path_factory.mktemp("cohort"), cases_at(north=3, south=2, west=2))
    content = yaml.safe_load((folder / "params.yaml").read_text()) | {"continual": SECTION}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def out(cohort):
    with pytest.raises(SystemExit) as ended:
        app([*arguments(cohort), f"--out={cohort / 'out'}", "--jobs=1"])
    assert ended.value.code in (0, None)
    return cohort / "out"


def changed(cohort, name: str, **section) -> dict:
    content = yaml.safe_load((cohort / "params.yaml").read_text())
    content["continual"] |= section
    (cohort / name).write_text(yaml.safe_dump(content))
    return stage_inputs(cohort, name)


def test_every_site_is_looked_at_after_every_site(out):
    rows = pd.read_csv(out / "continual.csv")
    assert list(rows.columns) == COLUMNS
    assert len(rows) == len(ARMS) * 2 * 9
    assert rows.dice.between(0, 1).all()
    assert not rows.duplicated(["scenario", "method", "order", "seed", "after_site", "on_site"]).any()
    assert set(rows.order) == {"north>south>west", "south>north>west"}


def test_every_case_is_kept_after_the_last_site(out):
    rows, cases = pd.read_csv(out / "continual.csv"), pd.read_csv(out / "cases.csv")
    assert list(cases.columns) == CASE_COLUMNS
    key = ["scenario", "method", "order", "seed"]
    last = rows[rows.after_site == rows.order.str.split(">").str[-1]].rename(columns={"on_site": "site"}).set_index([*key, "site"]).dice
    means = cases.groupby([*key, "site"]).dice.mean()
    assert set(means.index) == set(last.index)
    pd.testing.assert_series_equal(means.sort_index(), last.sort_index(), atol=1e-5)


def test_methods_share_the_first_site_and_models_a_site_forget_nothing(out):
    rows = pd.read_csv(out / "continual.csv")
    first = rows[(rows.order.str.split(">").str[0] == rows.after_site)].set_index(["scenario", "order", "seed", "on_site"])
    for method in ("sequential", "replay-2", "joint", "per-site"):
        pd.testing.assert_series_equal(first[first.method == method].dice.sort_index(), first[first.method == "itl"].dice.sort_index())
    own = rows[rows.method == "per-site"]
    order = {name: {site: number for number, site in enumerate(name.split(">"))} for name in set(own.order)}
    learned = own[[order[row.order][row.on_site] <= order[row.order][row.after_site] for row in own.itertuples()]]
    assert learned.groupby(["scenario", "seed", "on_site"]).dice.nunique().max() == 1


def test_the_summary_says_what_was_compared_and_what_it_costs(out):
    summary = json.loads((out / "continual.json").read_text())
    assert set(summary["scenarios"]) == set(SECTION["scenarios"])
    methods = summary["scenarios"]["few-sequences"]
    assert set(methods) == set(ARMS)
    assert set(methods["itl"]["minus"]) == {"sequential", "replay-2"}
    assert methods["per-site"]["measures"]["forgetting"]["mean"] <= 0.5
    assert methods["itl"]["chains"] == 2
    assert "fwt" in methods["itl"]["measures"]
    sizes = {name: [step["model_bytes"] for step in values["cost"]] for name, values in methods.items()}
    assert sizes["itl"][1] == pytest.approx(sizes["itl"][2], abs=10)
    assert sizes["replay-2"][2] > sizes["replay-2"][1] > sizes["replay-2"][0]


def test_a_later_run_makes_only_what_is_new(cohort, out, tmp_path, capsys):
    before = (out / "continual.csv").read_bytes()
    continual(out=tmp_path / "again", work=cohort / "continual", jobs=1, **stage_inputs(cohort))
    assert "7 units, 7 finished by an earlier run" in capsys.readouterr().out
    assert (tmp_path / "again" / "continual.csv").read_bytes() == before
    more = {**ARMS, "lwf": {"system": "itl", "params": QUICK | {"method": "lwf"}}}
    continual(out=tmp_path / "more", work=cohort / "continual", jobs=1, **changed(cohort, "more.yaml", arms=more))
    assert "8 units, 7 finished by an earlier run" in capsys.readouterr().out


def test_nobody_who_teaches_is_looked_at_and_all_methods_get_the_same(cohort):
    inputs = stage_inputs(cohort)
    _, cases = load_task(inputs["source"], inputs["prompts"], inputs["embeddings"], inputs["params"])
    units = expand(inputs["params"], cases)
    draws = {(unit.scenario, unit.seed): {site: split.ids() for site, split in unit.draws.items()} for unit in units}
    for unit in units:
        assert {site: split.ids() for site, split in unit.draws.items()} == draws[unit.scenario, unit.seed]
        for split in unit.draws.values():
            assert len(split.support) == len(split.query) == 1
            assert not {case.subject for case in split.support} & {case.subject for case in split.query}


def test_orders_begin_and_end_with_different_sites():
    orders = orders_of(list("abcd"), 4)
    assert [order[0] for order in orders] == list("abcd")
    assert len({order[-1] for order in orders}) == 4
    assert orders_of(["a", "b"], [["b", "a"]]) == (("b", "a"),)
    with pytest.raises(UsageError, match="b, b is no order of the sites a, b"):
        orders_of(["a", "b"], [["b", "b"]])


def test_a_scenario_renames_and_leaves_out_images():
    case = tiny_case(1)
    seen = shown(case, {"FLAIR": "T1w"})
    assert set(seen.images) == set(seen.tokens) == {"FLAIR"}
    assert seen.images["FLAIR"] is case.images["T1w"]
    with pytest.raises(DataError, match="has none of T2w"):
        shown(replace(case, images=dict(case.images)), {"FLAIR": "T2w"})


def test_what_cannot_be_asked_is_refused_before_anything_is_trained(cohort, tmp_path):
    for section, error in (({"arms": {**ARMS, "forest": {"system": "random-forest"}}}, "cannot go on from site to site"),
                           ({"shots": 2}, "2 shot\\(s\\) leave 0")):
        with pytest.raises((UsageError, DataError), match=error):
            continual(out=tmp_path / "out", work=tmp_path / "work", **changed(cohort, "bad.yaml", **section))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="'gem' is no arm"):
        changed(cohort, "bad.yaml", against=["gem"])
