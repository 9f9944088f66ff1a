"""The test behind a drift alarm: it must rarely cry without cause, and cry when there is one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import energy_distance, kstest

from pipelines.drift.distance import energy, pairwise, permutation_test


def patients(generator, count: int, shift: float = 0.0, size: int = 12, missing: float = 0.0) -> list[dict[str, np.ndarray]]:
    """Random patients with two modalities, of which one may be missing."""
    found = [{name: generator.normal(shift, 1, size) for name in ("FLAIR", "T1w")} for _ in range(count)]
    return [{name: vector for name, vector in one.items() if name == "FLAIR" or generator.random() >= missing} for one in found]


def p_value(seed: int, shift: float, known: int = 10, recent: int = 8) -> float:
    generator = np.random.default_rng(seed)
    everyone = [*patients(generator, known, missing=0.3), *patients(generator, recent, shift, missing=0.3)]
    return permutation_test(pairwise(everyone), np.arange(known + recent) >= known, permutations=199).p


def test_without_a_shift_the_p_value_is_uniform():
    values = [p_value(seed, 0.0) for seed in range(200)]
    assert kstest(values, "uniform").pvalue > 0.01
    assert np.mean(np.array(values) <= 0.05) < 0.1


def test_a_shifted_scanner_has_a_small_p_value():
    assert all(p_value(seed, 1.0) <= 0.01 for seed in range(20))


def test_the_distance_is_scipys_in_one_dimension():
    one, other = np.random.default_rng(0).normal(size=7), np.random.default_rng(1).normal(1, size=5)
    values = np.concatenate([one, other])
    distances = np.abs(values[:, None] - values[None])
    found = energy(distances, (np.arange(12) >= 7)[None])[0]
    assert found == pytest.approx(energy_distance(one, other) ** 2)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 5), st.integers(1, 5), st.integers(0, 2 ** 31))
def test_few_patients_are_tested_exactly_and_never_below_what_is_possible(known, recent, seed):
    everyone = patients(np.random.default_rng(seed), known + recent, missing=0.4)
    distances = pairwise(everyone)
    assert np.allclose(distances, distances.T)
    assert (np.diag(distances) == 0).all()
    found = permutation_test(distances, np.arange(known + recent) >= known, permutations=999)
    assert found.distance >= -1e-9
    assert found.smallest <= found.p <= 1


def test_patients_that_share_no_modality_stand_at_the_mean_distance():
    generator = np.random.default_rng(3)
    everyone = [{"FLAIR": generator.normal(size=4)}, {"T1w": generator.normal(size=4)}, *patients(generator, 4, size=4)]
    distances = pairwise(everyone)
    assert distances[0, 1] == 1.0
    assert np.isfinite(distances).all()


def test_identical_patients_are_no_drift():
    everyone = [{"FLAIR": np.ones(3)}] * 6
    assert permutation_test(pairwise(everyone), np.arange(6) >= 4, 999).p == 1
