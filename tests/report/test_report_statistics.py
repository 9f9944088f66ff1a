"""Intervals that cover, pairs that pair, corrections that correct."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, permutation_test

from pipelines.params import Evaluate
from pipelines.report import resampling, statistics

SETTINGS = Evaluate(band_mm=8, bootstrap=300, headline="semi")


def table(values, seeds=(0,), site="a", metric="dice") -> pd.DataFrame:
    return pd.DataFrame([{"site": site, "case_site": site, "seed": seed, "case": f"sub-{site}{index}", "label": "tumour", metric: value + 0.01 * seed}
                         for seed in seeds for index, value in enumerate(values)])


def mean_interval(values) -> np.ndarray:
    return resampling.intervals(lambda means: means, [np.asarray(values, float)[:, None]], SETTINGS)[0]


def compared(first, second, *, over_sites=False, metric="dice") -> dict:
    return statistics.compare(statistics.pair(first, second, [metric]), metric, "subject", SETTINGS, over_sites=over_sites)


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(120):
        low, high = mean_interval(rng.normal(0.7, 0.1, 25))
        inside += low <= 0.7 <= high
    assert 0.87 <= inside / 120 <= 0.99


def test_intervals_are_those_of_scipy():
    rng, many = np.random.default_rng(1), Evaluate(band_mm=8, bootstrap=20000, headline="semi")
    first, second = rng.gamma(2, size=18), rng.gamma(3, size=18)

    def ratio(one, other, axis=-1):
        return one.mean(axis=axis) / other.mean(axis=axis)

    expected = bootstrap((first, second), ratio, paired=True, n_resamples=20000, method="BCa", rng=rng).confidence_interval
    got = resampling.intervals(lambda means: means[..., :1] / means[..., 1:], [np.stack([first, second], axis=1)], many)[0]
    np.testing.assert_allclose(got, expected, rtol=0.02)
    groups = (rng.gamma(2, size=9), rng.gamma(2, size=14))

    def middle(*parts, axis=-1):
        return sum(part.mean(axis=axis) for part in parts) / len(parts)

    expected = bootstrap(groups, middle, n_resamples=20000, method="BCa", rng=rng).confidence_interval
    got = resampling.intervals(lambda means: means, [group[:, None] for group in groups], many)[0]
    np.testing.assert_allclose(got, expected, rtol=0.02)


@pytest.mark.parametrize("count", [6, 30])
def test_sign_flips_are_those_of_scipy(count):
    differences = np.random.default_rng(2).normal(0.4, 1, count)
    expected = permutation_test((differences, np.zeros(count)), lambda one, two, axis=-1: np.mean(one - two, axis=axis), permutation_type="samples",
                                vectorized=True, n_resamples=4000, rng=np.random.default_rng(0)).pvalue
    assert resampling.sign_flip_p(differences) == pytest.approx(expected, abs=0.02 if count > 12 else 1e-12)


def test_interval_of_little():
    assert np.isnan(mean_interval([0.5])).all()
    np.testing.assert_array_equal(mean_interval([0.5] * 5), [0.5, 0.5])


def test_seeds_of_a_patient_do_not_count_as_patients():
    once, often = table([0.4, 0.6, 0.8]), table([0.4, 0.6, 0.8], seeds=(0, 0, 0, 0))
    first, second = (statistics.estimate(rows, "dice", "subject", SETTINGS) for rows in (once, often))
    assert first["n"] == second["n"] == 3
    assert (first["low"], first["high"]) == (second["low"], second["high"])
    assert first["mean"] == pytest.approx(0.6)


def test_two_studies_of_a_patient_are_one_unit_unless_split_by_session():
    rows = pd.DataFrame({"case": ["sub-a_ses-1", "sub-a_ses-2", "sub-b_ses-1"]})
    assert statistics.units(rows, "subject").nunique() == 2
    assert statistics.units(rows, "session").nunique() == 3


def test_a_case_without_the_value_is_left_out_and_counted():
    rows = table([0.4, np.nan, 0.8]).assign(ece=[0.1, 0.2, 0.3])
    found = statistics.estimates(rows, ["dice", "ece"], "subject", SETTINGS)
    assert (found["dice"]["n"], found["ece"]["n"]) == (2, 3)
    assert found["dice"]["mean"] == pytest.approx(0.6)
    assert statistics.estimate(table([np.nan]), "dice", "subject", SETTINGS)["mean"] is None


def test_every_site_counts_once():
    rows = pd.concat([table([0.9] * 9 + [0.8]), table([0.5, 0.3], site="b")])
    found = statistics.estimates(rows, ["dice"], "subject", SETTINGS, over_sites=True)["dice"]
    assert found["mean"] == pytest.approx((0.89 + 0.4) / 2)
    assert (found["n"], found["sites"]) == (12, 2)
    assert found["low"] < found["mean"] < found["high"]
    assert statistics.estimate(rows, "dice", "subject", SETTINGS)["mean"] == pytest.approx((8.9 + 0.8) / 12)


def test_a_site_of_one_patient_stays_as_it_is():
    rows = pd.concat([table([0.9, 0.7, 0.8]), table([0.2], site="b")])
    found = statistics.estimates(rows, ["dice"], "subject", SETTINGS, over_sites=True)["dice"]
    assert found["low"] > (0.7 + 0.2) / 2 - 1e-9
    assert found["high"] < (0.9 + 0.2) / 2 + 1e-9
    alone = statistics.estimates(table([0.2]), ["dice"], "subject", SETTINGS, over_sites=True)["dice"]
    assert alone["low"] is None


def test_pairs_are_the_same_site_draw_and_case():
    first, second = table([0.9, 0.8, 0.7], seeds=(0, 1)), table([0.5, 0.6, 0.7], seeds=(0, 1))
    second = second[~((second.seed == 1) & (second.case == "sub-a0"))].sample(frac=1, random_state=0)
    elsewhere = second.assign(site="b", dice=0.0)
    pairs = statistics.pair(first, pd.concat([second, elsewhere]), ["dice"])
    assert len(pairs) == 5
    assert sorted((pairs.dice_first - pairs.dice_second).round(9)) == [0.0, 0.0, 0.2, 0.2, 0.4]


def test_comparison_by_hand():
    result = compared(table([0.9, 0.8, 0.7, 0.8, 0.6]), table([0.6, 0.5, 0.5, 0.7, 0.5]))
    assert result["difference"] == pytest.approx(0.2)
    assert result["ratio"] == pytest.approx(3.8 / 2.8)
    assert result["p"] == pytest.approx(2 / 2 ** 5)  # all five differ in one direction: two of 32 sign patterns are as extreme
    assert result["low"] < 0.2 < result["high"]
    assert result["ratio_low"] < result["ratio"] < result["ratio_high"]


def test_comparison_over_sites_weighs_sites_equally():
    first = pd.concat([table([0.9] * 8), table([0.5, 0.5], site="b")])
    second = pd.concat([table([0.7] * 8), table([0.7, 0.7], site="b")])
    assert compared(first, second)["difference"] > 0.1
    found = compared(first, second, over_sites=True)
    assert found["difference"] == pytest.approx(0, abs=1e-12)
    assert found["first"] == pytest.approx(0.7)
    assert found["sites"] == 2
    assert found["p"] > 0.5


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.1, 1), min_size=3, max_size=8), st.lists(st.floats(0.1, 1), min_size=3, max_size=8))
def test_swapping_the_systems_turns_the_sign(one, other):
    values = pd.concat([table(one), table(other, site="b")])
    changed = values.assign(dice=values.dice.to_numpy()[::-1])
    forth, back = (compared(*pair, over_sites=True) for pair in ((values, changed), (changed, values)))
    assert forth["difference"] == pytest.approx(-back["difference"], abs=1e-9)
    assert forth["p"] == back["p"]
    if forth["ratio"] and back["ratio"]:
        assert forth["ratio"] * back["ratio"] == pytest.approx(1)


def test_equal_systems_and_none_in_common():
    assert compared(table([0.9, 0.8]), table([0.9, 0.8]))["p"] is None
    assert compared(table([0.9]), table([0.9], site="b"))["n"] == 0


def test_holm():
    assert resampling.holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert resampling.holm([0.9, 0.8]) == [1.0, 1.0]
    assert resampling.holm([]) == []
