"""Uncertainty and error retention: bounds, order, and curves worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from pipelines.evaluate.uncertainty import RETAINED, auroc, entropy, rank_errors

voxels = st.tuples(hnp.arrays(np.float32, 60, elements=st.floats(0, 1, width=32)), hnp.arrays(bool, 60), hnp.arrays(bool, 60))


def dice(truth, predicted):
    return 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())


@settings(max_examples=40, deadline=None)
@given(voxels)
def test_retention_is_bounded_and_falls_from_one_to_the_dice(drawn):
    uncertainty, truth, predicted = drawn
    values, curve = rank_errors(uncertainty, truth, predicted)
    if not truth.any():
        assert np.isnan(curve).all()
        assert all(math.isnan(value) for value in values.values())
        return
    assert curve[0] == 1
    assert curve[-1] == pytest.approx(dice(truth, predicted))
    assert (np.diff(curve) <= 1e-12).all()
    assert dice(truth, predicted) - 1e-9 <= values["retention_auc"] <= values["retention_auc_ideal"] + 1e-9
    assert values["retention_auc_random"] <= values["retention_auc_ideal"] + 0.02  # a mean of counts between two voxels may lie above a step


def test_the_curve_by_replacing_voxels_one_by_one():
    generator = np.random.default_rng(0)
    truth, predicted, uncertainty = generator.random(200) < 0.4, generator.random(200) < 0.4, generator.random(200)
    _, curve = rank_errors(uncertainty, truth, predicted)
    for share, value in zip(RETAINED, curve, strict=True):
        handed = np.argsort(-uncertainty)[:round((1 - share) * 200)]
        corrected = predicted.copy()
        corrected[handed] = truth[handed]
        assert value == pytest.approx(dice(truth, corrected))


def test_a_perfect_order_reaches_the_ideal_and_a_useless_one_the_random():
    generator = np.random.default_rng(1)
    truth = generator.random(20000) < 0.3
    predicted = truth ^ (generator.random(20000) < 0.1)
    missed, wrong = truth & ~predicted, truth != predicted
    perfect, _ = rank_errors(wrong + missed.astype(float), truth, predicted)
    assert perfect["retention_auc"] == pytest.approx(perfect["retention_auc_ideal"])
    assert perfect["uncertainty_auroc"] == 1
    useless, _ = rank_errors(generator.random(20000), truth, predicted)
    assert useless["retention_auc"] == pytest.approx(useless["retention_auc_random"], abs=0.005)
    assert useless["uncertainty_auroc"] == pytest.approx(0.5, abs=0.03)
    inverted, _ = rank_errors(-1.0 * wrong, truth, predicted)
    assert inverted["retention_auc"] < useless["retention_auc"]


def test_auroc_agrees_with_scikit_learn_and_has_no_value_for_one_kind():
    generator = np.random.default_rng(2)
    score, positive = generator.integers(0, 9, 300), generator.random(300) < 0.2
    assert auroc(score, positive) == pytest.approx(roc_auc_score(positive, score))
    assert math.isnan(auroc(score, np.zeros(300, bool)))
    assert math.isnan(auroc(score, np.ones(300, bool)))


def test_entropy_runs_from_certain_to_ignorant():
    probabilities = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]], np.float32).T
    np.testing.assert_allclose(entropy(probabilities), [0, 1, np.log(2) / np.log(3)], rtol=1e-6)
