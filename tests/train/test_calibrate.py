"""Temperature: recovered where it is known, bounded, and not used where it does not help."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from pipelines.train.calibrate import BOUNDS, PRIOR_CASES, Sample, apply_temperature, band_sample, fit_temperature, foreground_band, nll


def voxels(temperature: float, seed: int, count: int = 20000) -> Sample:
    """Truth drawn from softmax(logits), probabilities given as softmax(logits * temperature): right at that temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=1.5, size=(count, 3))
    truth = (softmax(logits, axis=1).cumsum(1) < generator.random((count, 1))).sum(1)
    return Sample(np.log(softmax(logits * temperature, axis=1)), truth.clip(0, 2), np.arange(count) % 10)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.4, 3.0), st.integers(1, 3))
def test_a_known_temperature_is_recovered(temperature, cases):
    samples = [voxels(temperature, seed) for seed in range(cases)]
    found = fit_temperature(samples, prior_cases=0)
    if abs(temperature - 1) > 0.1:
        assert found.value == pytest.approx(temperature, rel=0.06)
        assert found.own == pytest.approx([temperature] * cases, rel=0.06)
        assert found.nll_after < found.nll_before
        believed = fit_temperature(samples).value
        assert np.log(believed) == pytest.approx(np.log(found.value) * cases / (cases + PRIOR_CASES))


def test_many_cases_overrule_the_prior():
    assert fit_temperature([voxels(2.5, seed, 4000) for seed in range(20)]).value == pytest.approx(2.5, rel=0.06)


def test_it_is_bounded():
    assert BOUNDS[0] <= fit_temperature([voxels(0.05, 0)]).value <= BOUNDS[1]
    assert fit_temperature([voxels(12.0, 0)], prior_cases=0).value == pytest.approx(BOUNDS[1])
    assert fit_temperature([voxels(12.0, 0)]).value < 0.7 * BOUNDS[1]


def test_a_large_case_counts_no_more_than_a_small_one():
    small, large = voxels(1.5, 0, 3000), voxels(3.0, 1, 60000)
    expected = np.exp((np.log(1.5) + np.log(3.0)) / (2 + PRIOR_CASES))
    assert fit_temperature([small, large]).value == pytest.approx(expected, rel=0.08)


def test_the_guard_keeps_one_where_cases_disagree():
    """One overconfident, one underconfident: each one's temperature makes the other worse."""
    found = fit_temperature([voxels(3.0, 0), voxels(0.3, 1)])
    assert found.value == 1.0
    assert found.nll_after == found.nll_before
    assert "held-out" in found.reason


def test_the_guard_works_over_slices_of_a_single_case():
    first, second = voxels(3.0, 0), voxels(0.3, 1)
    joined = Sample(np.concatenate([first.log_p, second.log_p]), np.concatenate([first.truth, second.truth]), np.repeat([0, 1], len(first.truth)))
    assert fit_temperature([joined]).value == 1.0


def test_without_voxels_nothing_is_scaled():
    empty = Sample(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, int))
    assert fit_temperature([empty]).value == 1.0
    assert fit_temperature([]).value == 1.0


def test_applying_is_softmax_of_log_p_over_t():
    probabilities = softmax(np.random.default_rng(0).normal(size=(3, 4, 5, 6)), axis=0).astype(np.float32)
    np.testing.assert_allclose(apply_temperature(probabilities, 2.0), softmax(np.log(probabilities) / 2, axis=0), atol=1e-6)
    assert apply_temperature(probabilities, 1.0) is probabilities
    np.testing.assert_array_equal(apply_temperature(probabilities, 3.0).argmax(0), probabilities.argmax(0))


def test_the_band_reaches_as_far_as_it_says_in_mm():
    truth, prediction = np.zeros((5, 21, 21), np.uint8), np.zeros((5, 21, 21), np.uint8)
    truth[2, 10, 5] = 1
    prediction[2, 10, 15] = 2
    band = foreground_band(truth > 0, prediction > 0, (5.0, 1.5, 1.5), 4.0)
    assert band[2, 10, [3, 5, 7, 15]].all()
    assert not band[2, 10, 10]
    assert not band[[0, 1, 3, 4]].any()
    assert not foreground_band(truth < 0, prediction < 0, (5.0, 1.5, 1.5), 4.0).any()


def test_a_sample_holds_the_bands_voxels():
    truth = np.zeros((2, 9, 9), np.uint8)
    truth[1, 4, 4] = 1
    probabilities = np.stack([np.full(truth.shape, 0.9), np.full(truth.shape, 0.1)]).astype(np.float32)
    sample = band_sample(probabilities, truth, (5.0, 1.0, 1.0), 2.0)
    assert len(sample.truth) == 13
    assert set(sample.slices) == {1}
    assert nll([sample], 1.0) == pytest.approx(-(12 * np.log(0.9) + np.log(0.1)) / 13, rel=1e-5)
