"""The forest's filters against scipy's, its cache, and its prediction against scikit-learn's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage
from tiny_cohort import tiny_case, tiny_task

from pipelines.systems import create
from pipelines.systems.baselines import voxelwise
from pipelines.systems.baselines.random_forest.features import PER_SCALE, FeatureCache, voxel_features
from pipelines.systems.baselines.random_forest.params import Params
from pipelines.systems.filters import eigenvalues, gaussian, head_box, inside


def test_gaussian_is_scipys_away_from_the_border():
    volume = np.random.default_rng(0).normal(size=(2, 60, 50)).astype(np.float32)
    for sigma in (0.7, 2.0, 4.0):
        expected = ndimage.gaussian_filter(volume, (0, sigma, sigma), truncate=8)
        margin = int(4 * sigma) + 1
        np.testing.assert_allclose(gaussian(volume, sigma)[:, margin:-margin, margin:-margin], expected[:, margin:-margin, margin:-margin], atol=1e-3)


def test_gaussian_keeps_a_constant_up_to_the_border():
    np.testing.assert_allclose(gaussian(np.full((1, 20, 30), 3, np.float32), 10.0), 3, rtol=1e-5)


def test_eigenvalues_are_numpys():
    a, b, c = np.random.default_rng(1).normal(size=(3, 50))
    expected = np.linalg.eigvalsh(np.stack([np.stack([a, b], -1), np.stack([b, c], -1)], -2))
    np.testing.assert_allclose(np.stack(eigenvalues(a, b, c), -1), expected[:, ::-1], atol=1e-12)


def test_a_missing_modality_is_zero_and_says_so():
    case, sigmas = tiny_case(0, modalities=("T1w",)), (1.0, 2.0)
    features = voxel_features(case, ("FLAIR", "T1w"), sigmas)
    width = 2 + PER_SCALE * len(sigmas)
    assert features.shape == (case.foreground().sum(), 2 * width)
    assert (features[:, :width] == 0).all()
    assert (features[:, width + 1] == 1).all()


def test_the_cache_is_bounded_and_knows_another_cohorts_case_of_the_same_name():
    cache, case = FeatureCache(), tiny_case(0)
    first = cache.get(case, ("FLAIR",), (1.0,), 100)
    assert cache.get(case, ("FLAIR",), (1.0,), 100) is first
    other = replace(case, images={"FLAIR": case.image("FLAIR") + 1})
    assert not np.array_equal(cache.get(other, ("FLAIR",), (1.0,), 100), first)
    cache.get(tiny_case(1), ("FLAIR",), (1.0,), 0)
    assert len(cache._held) == 1


def test_outside_the_head_is_background():
    mask = np.zeros((2, 6, 5), bool)
    mask[1, 2:4, 1:3] = True
    volume = inside(mask, np.tile([[0.2, 0.8]], (4, 1)))
    np.testing.assert_allclose(volume[1], np.where(mask, 0.8, 0))
    np.testing.assert_allclose(volume.sum(0), 1)
    assert head_box(mask) == (slice(None), slice(2, 4), slice(1, 3))


def test_voxels_a_few_at_a_time_give_scikit_learns_probabilities_to_the_bit(monkeypatch):
    case, task = tiny_case(0), tiny_task()
    system = create("random-forest", Params(trees=7, voxels_per_class=200))
    system.fit(task, [case], seed=0)
    features = voxel_features(case, task.modalities, system.params.sigmas)
    values = features.astype(np.float32, order="C")
    np.testing.assert_array_equal(system._balanced(values, system.forest), system.forest.predict_proba(values))
    together = system.predict(task, case)
    monkeypatch.setattr(voxelwise, "VOXELS_AT_ONCE", 1000)
    assert len(features) % 1000
    np.testing.assert_array_equal(system.predict(task, case), together)
