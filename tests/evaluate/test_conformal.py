"""Conformal risk control: the promise holds on average over exchangeable cases, is not given away, and is refused where it cannot be made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.evaluate.conformal import LEVELS, Curve, calibrate_fnr, curve, reachable_level, rotations, threshold_of


def case(generator: np.random.Generator, voxels: int = 400) -> Curve:
    """Probabilities of a lesion of its own difficulty in easy background."""
    truth = np.arange(voxels) < voxels // 4
    logits = generator.normal(np.where(truth, generator.normal(0, 2), -4), 1)
    return curve((1 / (1 + np.exp(-logits))).astype(np.float32), truth)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(9, 0.1), (9, 0.3), (4, 0.2), (19, 0.15)]))
def test_mean_risk_is_within_its_level(seed, setting):
    n, alpha = setting
    generator = np.random.default_rng(seed)
    risks = []
    for _ in range(300):
        *known, new = (case(generator) for _ in range(n + 1))
        risks.append(new.fnr[calibrate_fnr(known, alpha)])
    error = np.std(risks) / np.sqrt(len(risks))
    assert np.mean(risks) <= alpha + 3 * error
    assert np.mean(risks) >= alpha - 2 / (n + 1) - 3 * error  # not by taking everything: the paper's lower bound, risks being continuous here


def test_the_threshold_is_the_largest_that_keeps_the_corrected_risk():
    cases = [case(np.random.default_rng(seed)) for seed in range(9)]
    level = calibrate_fnr(cases, 0.3)
    corrected = [(9 * np.mean([one.fnr[k] for one in cases]) + 1) / 10 for k in (level, level + 1)]
    assert corrected[0] <= 0.3 < corrected[1]


def test_what_cannot_be_promised_is_refused():
    cases = [case(np.random.default_rng(seed)) for seed in range(4)]
    assert reachable_level(4) == pytest.approx(0.2)
    with pytest.raises(DataError, match=r"at most 0\.1 cannot be promised with 4 calibration case\(s\), which reach 0\.2 at best; label at least 9"):
        calibrate_fnr(cases, 0.1)
    assert np.mean([one.fnr[calibrate_fnr(cases, 0.2)] for one in cases]) == 0  # the level at which no voxel may be missed
    with pytest.raises(DataError):
        calibrate_fnr([], 0.5)


def test_a_curve_counts_voxels_at_or_above_a_threshold():
    probability = np.array([[0.0, 0.25, 0.25, 0.81, 1.0]], np.float32)
    truth = np.array([[True, True, False, True, False]])
    one = curve(probability, truth)
    assert len(one.truth) == len(one.predicted) == LEVELS + 1
    assert [one.predicted[k] for k in (0, 1, 500, 501, LEVELS)] == [5, 4, 4, 2, 1]
    assert threshold_of(500) == 0.25
    np.testing.assert_allclose([one.fnr[k] for k in (0, 1, 501, LEVELS)], [0, 1 / 3, 2 / 3, 1])
    assert (np.diff(one.fnr) >= 0).all()


def test_every_query_case_is_tested_once_on_thresholds_of_the_others():
    curves = {f"case-{seed}": case(np.random.default_rng(seed)) for seed in range(6)}
    curves["healthy"] = curve(np.full(10, 0.4, np.float32), np.zeros(10, bool))
    rows = rotations(curves, [0.1, 0.2])
    assert [row["case"] for row in rows if row["alpha"] == 0.2] == [f"case-{seed}" for seed in range(6)]
    assert all(row["n_calibration"] == 5 for row in rows)
    assert all(row["refused"] and np.isnan(row["fnr"]) and np.isnan(row["threshold"]) for row in rows if row["alpha"] == 0.1)
    kept = [row for row in rows if row["alpha"] == 0.2]
    assert not any(row["refused"] for row in kept)
    others = [curves[f"case-{seed}"] for seed in range(1, 6)]
    assert kept[0]["threshold"] == threshold_of(calibrate_fnr(others, 0.2))
    assert all(0 <= row["fnr"] <= 1 and row["size_ratio"] >= 1 - row["fnr"] for row in kept)
    # a hard case does not touch its own threshold, only those of the others
    worse = rotations({**curves, "case-0": curve(np.zeros(400, np.float32), np.arange(400) < 100)}, [0.2])
    assert worse[0]["threshold"] == kept[0]["threshold"]
    assert worse[0]["fnr"] == 1
