from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_heads import grid_of

from pipelines.resample.grid import Grid, working_grid
from pipelines.resample.sampling import sample, split_factors
from pipelines.resample.volumes import Volume

angles = st.tuples(*[st.floats(-40, 40)] * 3)
spacings = st.tuples(*[st.floats(0.7, 6)] * 3)


@settings(max_examples=40, deadline=None)
@given(angles=angles, spacing=spacings, in_plane=st.floats(0.8, 4))
def test_working_grid_keeps_axes_field_of_view_and_slices(angles, spacing, in_plane):
    source = grid_of((31, 28, 17), spacing, angles, center=(3, -4, 5))
    grid, axis = working_grid(source, in_plane)
    assert np.allclose(grid.directions, source.directions)
    assert grid.shape[axis] == source.shape[axis] and np.isclose(grid.spacing[axis], source.spacing[axis])
    assert all(np.isclose(grid.spacing[i], in_plane, rtol=2e-3) for i in range(3) if i != axis)
    assert np.allclose(grid.center(), source.center())
    extent, needed = np.array(grid.shape) * grid.spacing, np.array(source.shape) * source.spacing
    assert (extent > needed - 2e-3 * grid.spacing).all() and (extent < needed + 1.01 * grid.spacing).all()


def test_same_spacing_gives_exactly_the_same_grid():
    source = grid_of((40, 38, 9), (1.5, 1.5, 5), (7, -11, 23))
    grid, axis = working_grid(source, 1.5)
    assert grid.shape == source.shape and np.array_equal(grid.affine, source.affine) and axis == 2


def test_slice_axis_is_the_widest_and_the_last_of_equals():
    assert grid_of((5, 5, 5), (6, 1, 1)).slice_axis == 0
    assert grid_of((5, 5, 5), (1, 5, 1)).slice_axis == 1
    assert grid_of((5, 5, 5), (1, 1, 1.0001), (3, 2, 1)).slice_axis == 2
    assert grid_of((5, 5, 5), (1.0001, 1, 1)).slice_axis == 2


def test_slice_spacing_can_be_chosen():
    grid, axis = working_grid(grid_of((64, 64, 20), (1, 1, 6)), 2, slice_mm=3)
    assert grid.shape == (32, 32, 40) and axis == 2 and np.allclose(grid.spacing, (2, 2, 3))


def test_split_keeps_the_outer_edges():
    grid = grid_of((4, 5, 6), (3, 2, 5), (10, 20, 30))
    fine = grid.split(np.array([3, 2, 1]))
    corner = np.array([-0.5, -0.5, -0.5])
    assert fine.shape == (12, 10, 6)
    assert np.allclose(fine.world(corner), grid.world(corner))
    assert np.allclose(fine.world(np.array(fine.shape) - 0.5), grid.world(np.array(grid.shape) - 0.5))


@settings(max_examples=15, deadline=None)
@given(angles=angles, spacing=st.tuples(*[st.floats(1, 4)] * 3), offset=st.tuples(*[st.floats(-12, 12)] * 3))
def test_a_blob_stays_at_its_world_coordinates(angles, spacing, offset):
    source = grid_of((60, 60, 40), (1.2, 1.2, 1.8), (5, -8, 12))
    target = grid_of((40, 40, 40), spacing, angles)
    distance = np.linalg.norm(source.world(np.stack(np.meshgrid(*map(np.arange, source.shape), indexing="ij"), axis=-1)) - np.array(offset), axis=-1)
    blob = Volume(np.exp(-((distance / 5) ** 2)).astype(np.float32), source)
    values = sample(blob, target).astype(float)
    world = target.world(np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), axis=-1))
    center = (values[..., None] * world).sum((0, 1, 2)) / values.sum()
    assert np.linalg.norm(center - np.array(offset)) < 0.5 * min(spacing)


def test_identical_grids_give_identical_values():
    grid = grid_of((12, 13, 7), (1, 1, 5), (4, 5, 6))
    values = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    assert np.array_equal(sample(Volume(values, grid), Grid(grid.shape, grid.affine + 1e-6)), values)


def test_fine_detail_is_averaged_not_aliased():
    fine = grid_of((64, 64, 4), (1, 1, 5))
    checks = (np.indices(fine.shape).sum(0) % 2).astype(np.float32)
    coarse, _ = working_grid(fine, 4.0)
    assert list(split_factors(fine, coarse)) == [4, 4, 1]
    assert np.allclose(sample(Volume(checks, fine), coarse), 0.5, atol=1e-5)


def test_outside_the_field_of_view_is_zero():
    small, large = grid_of((10, 10, 10), (1, 1, 1)), grid_of((20, 20, 20), (1, 1, 1))
    values = sample(Volume(np.full(small.shape, 7, np.float32), small), large)
    assert values[:5].max() == 0 and np.allclose(values[5:15, 5:15, 5:15], 7) and np.isclose(values.sum(), 7000)
