"""Ratios are paired by draw and case, and the table names the best of each camp."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from benchmarks.feature_table import COLUMNS, best, print_table, ratio
from pipelines.params import load_params

SETTINGS = load_params().evaluate


@pytest.fixture
def rows() -> pd.DataFrame:
    generator, found = np.random.default_rng(0), []
    for seed in range(3):
        for number in range(6):
            base = generator.uniform(0.3, 0.6)
            for features, factor in (("atlas", 1.2), ("filters", 1.0), ("random", 0.8)):
                for probe, shift in (("linear", 0.0), ("forest", 0.05)):
                    found.append([features, probe, "made-up", "AB"[number % 2], 4, seed, f"sub-{number}", factor * base + shift])
    return pd.DataFrame(found, columns=COLUMNS)


def test_ratio_has_a_paired_interval(rows):
    found = ratio(rows, ("atlas", "linear"), ("filters", "linear"), SETTINGS)
    assert found["n"] == 6 and found["rows"] == 18
    assert found["ratio"] == pytest.approx(1.2) and found["ratio_low"] == pytest.approx(1.2) and found["ratio_high"] == pytest.approx(1.2)


def test_ratio_is_over_shared_draws_only(rows):
    gone = rows[~((rows.features == "filters") & (rows.seed == 1))]
    assert ratio(gone, ("atlas", "linear"), ("filters", "linear"), SETTINGS)["rows"] == 12


def test_best_is_among_those_named(rows):
    assert best(rows, ["filters", "random"]) == ("filters", "forest")
    assert best(rows, ["efficientnet-lite0"]) is None


def test_table_says_how_many_times_as_good(rows):
    named = pd.DataFrame([["atlas", "zero-shot", "made-up", "A", 0, 0, "sub-0", 0.5]], columns=COLUMNS)
    console = Console(file=io.StringIO(), width=120)
    print_table(pd.concat([rows, named]), SETTINGS, console)
    said = console.file.getvalue()
    assert "made-up, 4 shot(s)" in said and "made-up, 0 shot(s)" in said and "1.20 [1.20, 1.20]" in said
    assert "best of atlas (forest) over the best of the others (filters, forest)" in said
