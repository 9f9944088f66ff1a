"""Sites one after another in the report: one table of all cohorts, a figure a scenario, and aims that are judged by their figures."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from pipelines.continual.measures import described
from pipelines.continual.measures import table as measured
from pipelines.outputs import write_json
from pipelines.params import load_params
from pipelines.report import continual
from pipelines.report.stage import draw_continual, report

ORDERS = (("a", "b", "c"), ("b", "c", "a"))
#: Method -> what each earlier site loses with every further site, and what the newest reaches.
METHODS = {"itl": (0.01, 0.8), "sequential": (0.1, 0.8), "replay-2": (0.05, 0.75)}


def rows(lost: float, newest: float, method: str) -> pd.DataFrame:
    found = []
    for order in ORDERS:
        for seed in (0, 1):
            for i, after in enumerate(order):
                for j, on in enumerate(order):
                    dice = newest - lost * (i - j) - 0.01 * seed if j <= i else 0.3
                    found.append({"method": method, "order": ">".join(order), "seed": seed, "after_site": after, "on_site": on, "dice": dice,
                                  "scenario": "as-acquired"})
    return pd.DataFrame(found)


@pytest.fixture
def source(tmp_path):
    """reports/cohorts with one finished protocol."""
    folder = tmp_path / "cohorts" / "tiny" / "continual"
    folder.mkdir(parents=True)
    tables = {name: rows(*values, name) for name, values in METHODS.items()}
    pd.concat(tables.values()).to_csv(folder / "continual.csv", index=False)
    pd.DataFrame([{"scenario": "as-acquired", "method": name, "order": "a>b>c", "seed": 0, "site": "b", "case": "007", "label": "lesion",
                   "dice": dice} for name, (_, dice) in METHODS.items()]).to_csv(folder / "cases.csv", index=False)
    cost = [{"position": place, "seconds": 2.0, "cpu_seconds": 2.0, "model_bytes": 3e5} for place in (1.0, 2.0, 3.0)]
    found = described({name: measured(own) for name, own in tables.items()}, ["sequential", "replay-2"], load_params().evaluate)
    write_json(folder / "continual.json", {
        "cohort": "tiny", "caveat": "invented", "confidence": 0.95, "shots": 3, "seeds": [0, 1], "orders": ORDERS, "headline": "itl",
        "methods": list(METHODS),
        "query_cases": {"a": [2]}, "arms": {name: {"system": "itl"} for name in METHODS},
        "scenarios": {"as-acquired": {name: {**values, "title": f"Method {name}", "cost": cost} for name, values in found.items()}}})
    return tmp_path / "cohorts"


def test_the_table_has_the_columns_that_were_promised_and_says_whose_rows_they_are(source):
    table = continual.table(continual.read(source))
    assert list(table.columns)[:6] == ["method", "order", "seed", "after_site", "on_site", "dice"]
    assert set(table.cohort) == {"tiny"}
    assert len(table) == 3 * 2 * 2 * 9
    assert list(continual.table([]).columns) == continual.COLUMNS


def test_every_case_after_the_last_site_is_a_row_of_the_results(source):
    (one,) = continual.read(source)
    found = continual.results(one)
    assert list(found.experiment) == [f"continual/as-acquired/{name}" for name in METHODS]
    assert found.iloc[1].to_dict() == {"cohort": "tiny", "experiment": "continual/as-acquired/sequential", "system": "itl", "arm": "sequential",
                                       "protocol": "continual", "shots": 3, "seed": 0, "order": "a>b>c", "site": "b", "case": "007",
                                       "label": "lesion", "dice": 0.8}
    (source / "tiny" / "continual" / "cases.csv").unlink()
    assert continual.results(continual.read(source)[0]).empty


def test_the_mean_matrix_is_by_position_whatever_the_order(source):
    (one,) = continual.read(source)
    matrix = continual.mean_matrix(one.rows[one.rows.method == "sequential"])
    np.testing.assert_allclose(matrix, [[0.795, 0.3, 0.3], [0.695, 0.795, 0.3], [0.595, 0.695, 0.795]])


def test_aims_are_reached_or_not_by_the_figures(source):
    (one,) = continual.read(source)
    assert [row["reached"] for row in continual.aims(one.summary, "as-acquired")] == ["yes", "yes", "yes", "yes"]
    methods = one.summary["scenarios"]["as-acquired"]
    methods["itl"]["measures"]["forgetting"]["mean"] = 0.08
    methods["itl"]["cost"][-1]["model_bytes"] = 9e5
    assert [row["reached"] for row in continual.aims(one.summary, "as-acquired")] == ["no", "yes", "yes", "no"]
    methods["sequential"]["measures"]["forgetting"]["low"] = -0.01
    assert continual.aims(one.summary, "as-acquired")[0]["reached"].startswith("nothing to reach")


def test_the_evidence_has_a_row_a_method_and_the_aims(source):
    (one,) = continual.read(source)
    text = "\n".join(continual.markdown(one.summary))
    assert all(f"| Method {name} | 0." in text for name in METHODS)
    assert text.count("| yes |") == 4


def test_a_figure_and_a_section_for_every_scenario(source, tmp_path):
    (section,) = draw_continual(continual.read(source), tmp_path / "figures")
    assert (tmp_path / "figures" / "tiny_continual_as-acquired.png").read_bytes()[:4] == b"\x89PNG"
    assert [row["title"] for row in section["rows"] if row["headline"]] == ["Method itl"]
    assert re.fullmatch(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", section["rows"][1]["forgetting"].replace("\u00a0", " "))
    assert "a > b > c; b > c > a" in section["figure"].caption


def test_a_cohort_of_which_nothing_else_is_there_is_reported(source, tmp_path, capsys):
    report(source, tmp_path / "reports")
    assert "tiny: 3 ways to learn sites one after another reported" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "reports" / "results.csv")) == len(METHODS)
    assert "Method sequential" in (tmp_path / "reports" / "index.html").read_text()
