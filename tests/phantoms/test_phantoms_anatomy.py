"""Heads and tumours: plausible volumes, where they may be, and the same for the same generator."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.phantoms import anatomy
from pipelines.phantoms.anatomy import TUMOUR, Tissue


@pytest.fixture(scope="module")
def healthy() -> anatomy.Head:
    return anatomy.head(np.random.default_rng(5), 2.0)


def millilitres(labels: np.ndarray, *tissues: Tissue, spacing_mm: float = 2.0) -> float:
    return float(np.isin(labels, tissues).sum() * spacing_mm**3 / 1000)


def test_a_head_has_the_volumes_of_an_adult(healthy):
    assert 700 < millilitres(healthy.labels, Tissue.GREY) < 1150
    assert 400 < millilitres(healthy.labels, Tissue.WHITE) < 750
    assert 150 < millilitres(healthy.labels, Tissue.CSF, Tissue.VENTRICLE) < 650
    assert not np.isin(healthy.labels, TUMOUR).any()


def test_two_heads_differ_and_the_same_generator_makes_the_same(healthy):
    np.testing.assert_array_equal(healthy.labels, anatomy.head(np.random.default_rng(5), 2.0).labels)
    assert (healthy.labels != anatomy.head(np.random.default_rng(6), 2.0).labels).mean() > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_a_tumour_has_the_volume_asked_for_and_stays_in_the_brain(healthy, seed):
    labels = anatomy.lesion(healthy, np.random.default_rng(seed), (20.0, 21.0))
    changed = labels != healthy.labels
    assert millilitres(labels, *TUMOUR) == pytest.approx(20.5, abs=2.5)
    assert np.isin(labels[changed], TUMOUR).all()
    assert np.isin(healthy.labels[changed], [Tissue.GREY, Tissue.WHITE, Tissue.GLIOSIS]).mean() > 0.9
    assert (labels == Tissue.ENHANCING).any()


def test_oedema_prefers_white_matter(healthy):
    grown_over = []
    for seed in range(4):
        labels = anatomy.lesion(healthy, np.random.default_rng(seed), (30.0, 40.0))
        grown_over.append((healthy.labels[labels == Tissue.OEDEMA] == Tissue.WHITE).mean())
    brain = np.isin(healthy.labels, [Tissue.GREY, Tissue.WHITE])
    assert np.mean(grown_over) > 1.4 * (healthy.labels[brain] == Tissue.WHITE).mean()


def test_noise_has_unit_variance_at_every_scale():
    for scale in (4.0, 12.0):
        field = anatomy.smooth_noise(np.random.default_rng(1), (60, 60, 60), 2.0, scale)
        assert field.std() == pytest.approx(1.0, abs=0.12)
