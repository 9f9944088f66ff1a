"""Metrics against cases worked out by hand, brute force, and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import binary_erosion
from sklearn.metrics import brier_score_loss, log_loss

from pipelines.evaluate import metrics

SPACING = (5.0, 1.5, 0.8)
masks = hnp.arrays(bool, (3, 6, 5), elements=st.booleans())
probabilities = hnp.arrays(np.float32, 40, elements=st.floats(0, 1, width=32))
truths = hnp.arrays(bool, 40, elements=st.booleans())


def box(*edges: tuple[int, int], shape=(8, 24, 24)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*edge) for edge in edges)] = True
    return mask


def test_dice_by_hand():
    truth, predicted = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert metrics.dice(truth, predicted) == pytest.approx(2 * 2 / 6)
    assert metrics.dice(truth, ~truth) == 0
    assert math.isnan(metrics.dice(np.zeros(4, bool), predicted))


@settings(max_examples=20, deadline=None)
@given(masks, masks)
def test_hd95_is_the_larger_directed_percentile_of_boundary_distances(truth, predicted):
    hd95, _ = metrics.surface(truth, predicted, SPACING, 2.0)
    if not truth.any() or not predicted.any():
        assert math.isnan(hd95)
        return
    edges = [np.argwhere(mask ^ binary_erosion(mask)) * SPACING for mask in (truth, predicted)]
    apart = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=-1)
    expected = max(np.percentile(apart.min(axis=axis), 95) for axis in (0, 1))
    assert hd95 == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_surface_distance_counts_area_within_tolerance():
    truth = box((2, 6), (4, 16), (4, 16))
    assert metrics.surface(truth, truth, SPACING, 2.0) == (0.0, 1.0)
    along_rows = box((2, 6), (5, 17), (4, 16))  # 1.5 mm: inside the tolerance
    assert metrics.surface(truth, along_rows, SPACING, 2.0)[1] == pytest.approx(1)
    along_slices = box((3, 7), (4, 16), (4, 16))  # 5 mm: both ends are off, the sides overlap but for a slice each
    hd95, nsd = metrics.surface(truth, along_slices, SPACING, 2.0)
    assert hd95 == pytest.approx(5)
    assert metrics.surface(truth, along_slices, SPACING, 5.1)[1] == pytest.approx(1)
    ends, side_of_a_slice = 12 * 1.5 * 12 * 0.8, 2 * 5 * (12 * 1.5 + 12 * 0.8)
    voxels_alike = 3 * side_of_a_slice / (2 * ends + 4 * side_of_a_slice)  # three of four slices' sides coincide, both ends do not
    assert voxels_alike < nsd < 0.8  # and the rims of the ends lie on the other's sides


def test_empty_truth_and_empty_prediction():
    some, none = box((2, 5), (4, 9), (4, 9)), box((0, 0), (0, 0), (0, 0))
    assert all(math.isnan(value) for value in metrics.surface(none, some, SPACING, 2.0))
    hd95, nsd = metrics.surface(some, none, SPACING, 2.0)
    assert math.isnan(hd95)
    assert nsd == 0
    brain, probability = np.ones(some.shape, bool), np.where(some, 0.9, 0.1).astype(np.float32)
    values, sums, _ = metrics.measure(none, some, probability, brain, SPACING, band_mm=4, tolerance_mm=2, bins=15)
    assert math.isnan(values["dice"])
    assert values["false_positive_ml"] == pytest.approx(some.sum() * 6 / 1000)
    assert sums["brain"][:, 0].sum() == some.size
    nothing, _, band = metrics.measure(none, none, probability, brain, SPACING, band_mm=4, tolerance_mm=2, bins=15)
    assert not band.any()
    assert all(math.isnan(nothing[name]) for name in ("dice", "ece", "ace", "brier", "nll", "lesion_f1"))
    assert nothing["lesions"] == nothing["lesions_predicted"] == 0


def test_the_brain_has_the_same_scores_as_the_band_over_more_voxels():
    truth = box((2, 6), (4, 16), (4, 16))
    brain = box((1, 7), (1, 20), (1, 20)) | truth
    probability = np.random.default_rng(0).uniform(0.01, 0.99, truth.shape)
    values, sums, band = metrics.measure(truth, truth, probability, brain, SPACING, band_mm=2, tolerance_mm=2, bins=15)
    for region, suffix in ((band, ""), (brain, "_brain")):
        assert values[f"brier{suffix}"] == pytest.approx(brier_score_loss(truth[region], probability[region]))
        assert values[f"nll{suffix}"] == pytest.approx(log_loss(truth[region], probability[region]))
        assert values[f"ace{suffix}"] == metrics.adaptive_calibration_error(probability[region], truth[region], 15)
    assert values["ece_brain"] == metrics.expected_calibration_error(sums["brain"])
    assert values["lesion_f1"] == 1


@settings(max_examples=30, deadline=None)
@given(probabilities, truths, st.integers(2, 15))
def test_ece_is_the_loop_of_its_definition(probability, truth, bins):
    expected = 0.0
    for index in range(bins):
        inside = [i for i, p in enumerate(probability) if min(int(np.float64(p) * bins), bins - 1) == index]
        if inside:
            gap = np.mean([float(probability[i]) for i in inside]) - np.mean([truth[i] for i in inside])
            expected += len(inside) / len(probability) * abs(gap)
    assert metrics.expected_calibration_error(metrics.reliability_bins(probability, truth, bins)) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(probabilities, truths)
def test_bins_of_parts_add_up(probability, truth):
    whole = metrics.reliability_bins(probability, truth, 15)
    parts = metrics.reliability_bins(probability[:13], truth[:13], 15) + metrics.reliability_bins(probability[13:], truth[13:], 15)
    np.testing.assert_allclose(whole, parts, atol=1e-12)


def test_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    probability = rng.uniform(0.01, 0.99, 500)
    truth = rng.uniform(size=500) < probability
    assert metrics.brier(probability, truth) == pytest.approx(brier_score_loss(truth, probability))
    assert metrics.negative_log_likelihood(probability, truth) == pytest.approx(log_loss(truth, probability))
    assert math.isfinite(metrics.negative_log_likelihood(np.array([0.0, 1.0], np.float32), np.array([True, False])))


def test_ace_sees_what_one_crowded_bin_hides():
    probability, truth = np.repeat([0.0, 0.9], [900, 100]).astype(np.float32), np.zeros(1000, bool)
    assert metrics.adaptive_calibration_error(probability, truth, 10) == pytest.approx(0.09)
    assert metrics.adaptive_calibration_error(np.full(100, 0.5), np.arange(100) % 2 == 0, 10) == 0


@settings(max_examples=15, deadline=None)
@given(masks, masks, st.floats(0.5, 9))
def test_band_is_every_voxel_within_reach(truth, predicted, band_mm):
    union = np.argwhere(truth | predicted) * SPACING
    everywhere = np.argwhere(np.ones(truth.shape)) * SPACING
    nearest = np.linalg.norm(everywhere[:, None] - union[None], axis=-1).min(axis=1) if len(union) else np.full(truth.size, np.inf)
    np.testing.assert_array_equal(metrics.foreground_band(truth, predicted, SPACING, band_mm).ravel(), nearest <= band_mm)
