"""Acquisition geometry: what is where in the world stays there on any plane."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.phantoms import scanner

AFFINE = np.array([[2.0, 0, 0, -96], [0, 2.0, 0, -130], [0, 0, 2.0, -72], [0, 0, 0, 1]])


def ball(centre_mm, radius_mm: float = 18.0) -> np.ndarray:
    index = np.indices((96, 117, 89)).astype(np.float32)
    world = [index[i] * 2 + AFFINE[i, 3] for i in range(3)]
    return sum((w - c) ** 2 for w, c in zip(world, centre_mm, strict=True)) < radius_mm**2


@given(tilt=st.tuples(st.floats(-25, 25), st.floats(-10, 10), st.floats(-10, 10)), step=st.floats(3.0, 6.5))
@settings(max_examples=6, deadline=None)
def test_a_ball_keeps_its_place_and_volume_on_any_plane(tilt, step):
    centre = np.array([20.0, -10.0, 15.0])
    plane = scanner.axial_stack(pixel_mm=1.8, matrix=128, step_mm=step, slices=round(150 / step), thickness_mm=step, tilt_deg=np.array(tilt))
    image = scanner.acquire(ball(centre), AFFINE, plane)
    indices = np.array([np.average(axis, weights=image) for axis in np.indices(image.shape)])
    np.testing.assert_allclose((plane.affine @ [*indices, 1])[:3], centre, atol=0.3)
    assert image.sum() * np.prod(plane.voxel_mm) == pytest.approx(ball(centre).sum() * 8, rel=0.03)


def test_a_rigid_move_keeps_spacing_and_orthogonality():
    plane = scanner.axial_stack(pixel_mm=1.5, matrix=64, step_mm=5, slices=20, thickness_mm=4, tilt_deg=np.array([10.0, 5, 0]))
    assert plane.voxel_mm == pytest.approx((5, 1.5, 1.5))
    gram = plane.affine[:3, :3].T @ plane.affine[:3, :3]
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)


def test_the_slice_profile_sums_to_one_and_leaves_the_gap_out():
    profile = scanner.slice_profile(3.0, 6.0)
    assert profile.sum() == pytest.approx(1)
    assert profile[0] < 0.05 * profile.max()


def test_noise_in_air_is_rayleigh():
    noise = scanner.rician(np.zeros((40, 40, 40), np.float32), 2.0, np.random.default_rng(0))
    assert noise.mean() == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.02)


def test_a_stack_outside_the_head_is_empty():
    plane = scanner.axial_stack(pixel_mm=1.5, matrix=32, step_mm=5, slices=4, thickness_mm=5, tilt_deg=np.zeros(3))
    assert not scanner.acquire(np.zeros((96, 117, 89)), AFFINE, plane).any()
