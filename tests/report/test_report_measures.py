"""Measures of whole cases against scikit-learn's, ties and missing classes included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from pipelines.report.measures import calibration_error, measure_outcomes


@pytest.mark.parametrize("digits", [1, 8], ids=["ties", "no ties"])
def test_two_classes_as_scikit_learn_has_them(digits):
    generator = np.random.default_rng(digits)
    for _ in range(20):
        truth = generator.permutation(np.arange(40) % 3 == 0).astype(int)
        score = np.round((generator.random(40) + 0.4 * truth) / 1.4, digits)
        found = measure_outcomes(np.stack([1 - score, score], 1), truth, 10)
        assert found["map"] == pytest.approx(average_precision_score(truth, score))
        assert found["auroc"] == pytest.approx(roc_auc_score(truth, score))
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, score > 0.5))


def test_three_classes_are_the_mean_against_the_rest():
    generator = np.random.default_rng(0)
    truth = np.arange(30) % 3
    scores = generator.dirichlet(np.ones(3), 30)
    found = measure_outcomes(scores, truth, 10)
    assert found["map"] == pytest.approx(np.mean([average_precision_score(truth == one, scores[:, one]) for one in range(3)]))
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr"))


def test_one_class_alone_has_no_ranking():
    found = measure_outcomes(np.array([[0.2, 0.8], [0.4, 0.6]]), np.array([1, 1]), 10)
    assert all(math.isnan(found[name]) for name in ("map", "auroc", "balanced_accuracy"))
    assert found["ece"] == pytest.approx(0.3)


def test_calibration_error_by_hand():
    assert calibration_error(np.array([0.95, 0.95, 0.65]), np.array([True, False, True]), 10) == pytest.approx((2 * 0.45 + 0.35) / 3)
