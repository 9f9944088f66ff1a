"""The signal equations at the limits where their value is known, and the order of tissues that every radiologist expects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.phantoms import physics
from pipelines.phantoms.anatomy import Head, Tissue
from pipelines.phantoms.physics import Maps, Timing


def maps(t1_ms=1000.0, t2_ms=80.0, density=0.8, agent_mm=0.0, field_t=1.5) -> Maps:
    return Maps(np.array([t1_ms]), np.array([t2_ms]), np.array([density]), np.array([agent_mm]), field_t)


def tissue(kind: Tissue, field_t: float) -> Maps:
    row = physics.RELAXATION[kind]
    return maps(row[field_t > 2], row[2 + (field_t > 2)], row[4], physics.AGENT_MM.get(kind, 0.0), field_t)


def test_spin_echo_approaches_density_for_long_tr_and_no_te():
    assert physics.spin_echo(maps(), 1e6, 0.0) == pytest.approx(0.8)
    assert physics.spin_echo(maps(), 1e6, 80.0) == pytest.approx(0.8 / np.e)


@given(t1_ms=st.floats(200, 5000), tr_ms=st.floats(500, 20000))
@settings(max_examples=25, deadline=None)
def test_inversion_recovery_is_zero_at_the_null(t1_ms, tr_ms):
    ti_ms = physics.null_ti_ms(t1_ms, tr_ms)
    assert physics.inversion_recovery(maps(t1_ms), tr_ms, 0.0, ti_ms) == pytest.approx(0, abs=1e-9)


def test_gradient_echo_is_largest_at_the_ernst_angle():
    ernst = np.rad2deg(np.arccos(np.exp(-20 / 1000)))
    around = [physics.gradient_echo(maps(), 20, 0, ernst + step)[0] for step in (-2, 0, 2)]
    assert max(around) == around[1]


def test_gradient_echo_at_90_degrees_is_saturation_recovery():
    assert physics.gradient_echo(maps(), 300, 0, 90) == pytest.approx(physics.spin_echo(maps(), 300, 0))


def test_contrast_agent_adds_relaxivity_times_concentration_to_the_rate():
    after = maps(agent_mm=0.5).with_agent()
    assert 1000 / after.t1_ms[0] == pytest.approx(1000 / 1000 + 4.1 * 0.5)
    assert maps(agent_mm=0.0).with_agent().t1_ms == pytest.approx(1000)


@pytest.mark.parametrize("field_t", [1.5, 3.0])
@pytest.mark.parametrize(("timing", "darker", "brighter"), [
    (Timing("se", 500, 12), Tissue.GREY, Tissue.WHITE), (Timing("se", 500, 12), Tissue.CSF, Tissue.GREY),
    (Timing("se", 5000, 100), Tissue.WHITE, Tissue.GREY), (Timing("se", 5000, 100), Tissue.GREY, Tissue.CSF),
    (Timing("ir", 9000, 110, 2400), Tissue.CSF, Tissue.WHITE), (Timing("ir", 9000, 110, 2400), Tissue.GREY, Tissue.OEDEMA)])
def test_contrast_between_tissues_is_that_of_the_sequence(field_t, timing, darker, brighter):
    assert physics.signal(tissue(darker, field_t), timing)[0] < physics.signal(tissue(brighter, field_t), timing)[0]


def test_oedema_lies_between_what_it_grew_over_and_full_oedema():
    healthy = Head(np.full((24, 24, 24), Tissue.WHITE, np.uint8), np.diag([2.0, 2, 2, 1]))
    labels = healthy.labels.copy()
    labels[6:18, 6:18, 6:18], labels[10:14, 10:14, 10:14] = Tissue.OEDEMA, Tissue.ENHANCING
    biology = physics.Biology(0.5, 0.7, 20.0, 3.0, np.ones((len(Tissue), 3)))
    t2 = physics.tissue_maps(healthy, labels, biology, 1.5, np.random.default_rng(0)).t2_ms
    white, oedema = np.median(t2[labels == Tissue.WHITE]), np.median(t2[labels == Tissue.OEDEMA])
    assert white == pytest.approx(72, rel=0.05)
    assert white < oedema < 185


def test_pet_keeps_the_activity_and_blurs_the_edge():
    suv = np.zeros((30, 30, 30))
    suv[10:20, 10:20, 10:20] = 2.0
    image = physics.pet_image(suv, (2.0, 2.0, 2.0), 6.0, 1e5, np.random.default_rng(0))
    assert image.sum() == pytest.approx(suv.sum(), rel=0.01)
    assert 0.8 < image[10, 15, 15] < 1.4


def test_suv_of_the_whole_dose_spread_evenly_is_one():
    assert physics.suv_scale(70.0, 70_000.0, 0) == pytest.approx(1.0)
    assert physics.decay_factor(physics.HALF_LIFE_F18_S) == pytest.approx(0.5)
