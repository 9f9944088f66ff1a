"""Intervals that cover, pairs that pair, corrections that correct."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipelines.params import Evaluate
from pipelines.report import statistics

SETTINGS = Evaluate(band_mm=8, bootstrap=300, headline="semi")


def table(values, seeds=(0,), site="a", metric="dice") -> pd.DataFrame:
    return pd.DataFrame([{"site": site, "seed": seed, "case": f"sub-{index}", "label": "tumour", metric: value + 0.01 * seed}
                         for seed in seeds for index, value in enumerate(values)])


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(120):
        low, high = statistics.interval(np.mean, (rng.normal(0.7, 0.1, 25),), SETTINGS)
        inside += low <= 0.7 <= high
    assert 0.87 <= inside / 120 <= 0.99


def test_interval_of_little():
    assert statistics.interval(np.mean, (np.array([0.5]),), SETTINGS) == (None, None)
    assert statistics.interval(np.mean, (np.full(5, 0.5),), SETTINGS) == (0.5, 0.5)


def test_seeds_of_a_patient_do_not_count_as_patients():
    once, often = table([0.4, 0.6, 0.8]), table([0.4, 0.6, 0.8], seeds=(0, 0, 0, 0))
    first, second = (statistics.estimate(rows, "dice", statistics.units(rows, "subject"), SETTINGS) for rows in (once, often))
    assert first["n"] == second["n"] == 3
    assert (first["low"], first["high"]) == (second["low"], second["high"])
    assert first["mean"] == pytest.approx(0.6)


def test_two_studies_of_a_patient_are_one_unit_unless_split_by_session():
    rows = pd.DataFrame({"case": ["sub-a_ses-1", "sub-a_ses-2", "sub-b_ses-1"]})
    assert statistics.units(rows, "subject").nunique() == 2
    assert statistics.units(rows, "session").nunique() == 3


def test_a_case_without_the_value_is_left_out_and_counted():
    rows = table([0.4, np.nan, 0.8])
    assert statistics.estimate(rows, "dice", statistics.units(rows, "subject"), SETTINGS)["n"] == 2
    assert statistics.estimate(table([np.nan]), "dice", table([1])["case"], SETTINGS)["mean"] is None


def test_pairs_are_the_same_site_draw_and_case():
    first, second = table([0.9, 0.8, 0.7], seeds=(0, 1)), table([0.5, 0.6, 0.7], seeds=(0, 1))
    second = second[~((second.seed == 1) & (second.case == "sub-0"))].sample(frac=1, random_state=0)
    elsewhere = second.assign(site="b", dice=0.0)
    pairs = statistics.pair(first, pd.concat([second, elsewhere]), "dice", "subject")
    assert pairs["rows"].tolist() == [1, 2, 2]
    np.testing.assert_allclose(pairs["first"] - pairs["second"], [0.4, 0.2, 0.0], atol=1e-12)


def test_comparison_by_hand():
    pairs = statistics.pair(table([0.9, 0.8, 0.7, 0.8, 0.6]), table([0.6, 0.5, 0.5, 0.7, 0.5]), "dice", "subject")
    result = statistics.compare(pairs, SETTINGS)
    assert result["difference"] == pytest.approx(0.2)
    assert result["ratio"] == pytest.approx(3.8 / 2.8)
    assert result["p"] == pytest.approx(2 / 2 ** 5)  # all five differ in one direction: two of 32 sign patterns are as extreme
    assert result["low"] < 0.2 < result["high"]
    assert result["ratio_low"] < result["ratio"] < result["ratio_high"]


def test_equal_systems_and_none_in_common():
    same = statistics.pair(table([0.9, 0.8]), table([0.9, 0.8]), "dice", "subject")
    assert statistics.compare(same, SETTINGS)["p"] is None
    none = statistics.pair(table([0.9]), table([0.9], site="b"), "dice", "subject")
    assert statistics.compare(none, SETTINGS)["n"] == 0


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []
