"""Stacks that are no volume are refused with a code; labels move between grids only where no resampling is needed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipelines.errors import Refused
from pipelines.ingest.geometry import check_stack, place_on_grid


def stack(count: int = 6, step: float = 5.0, axes: np.ndarray | None = None) -> dict[str, np.ndarray]:
    axes = np.eye(3) if axes is None else axes
    return {"orientations": np.tile(np.r_[axes[:, 0], axes[:, 1]], (count, 1)), "positions": np.outer(np.arange(count) * step, axes[:, 2]),
            "pixel_spacings": np.ones((count, 2))}


def without(index: int) -> dict[str, np.ndarray]:
    return {name: np.delete(values, index, axis=0) for name, values in stack().items()}


def changed(name: str, index, value) -> dict[str, np.ndarray]:
    values = stack()
    values[name] = values[name].copy()
    values[name][index] = value
    return values


def tilted(degrees: float) -> dict[str, np.ndarray]:
    values = stack()
    values["positions"] = values["positions"] + np.outer(np.arange(6) * 5 * np.tan(np.radians(degrees)), [0, 1, 0])
    return values


DAMAGED = [
    ("missing-slices", without(2), "1 slice(s) are missing: 5 are there at a step of 5 mm, the first gap is 10 mm after slice 2"),
    ("uneven-spacing", changed("positions", (3, 2), 16.0), "from 4 to 6 mm"),
    ("duplicate-position", changed("positions", (3, 2), 10.0), "1 of its 6 slices lie where another one does, first at position 3 of 5"),
    ("several-volumes", {name: np.repeat(values, 2, axis=0) for name, values in stack().items()}, "2 images at each of 6 positions"),
    ("mixed-orientation", changed("orientations", 0, [1, 0, 0, 0, 0, 1]), "2 different orientations"),
    ("mixed-spacing", changed("pixel_spacings", 0, 2.0), "1 mm between slices"),
    ("tilted-stack", tilted(12), "12.0 degrees"),
    ("single-slice", stack(1), "one slice"),
    ("no-geometry", changed("orientations", slice(None), [1, 0, 0, 1, 0, 0]), "perpendicular"),
    ("no-geometry", changed("positions", (0, 0), np.nan), "no numbers"),
    ("no-geometry", changed("pixel_spacings", slice(None), 0.0), "0 mm"),
]


@pytest.mark.parametrize(("code", "values", "words"), DAMAGED, ids=[f"{code}-{number}" for number, (code, *_) in enumerate(DAMAGED)])
def test_damaged_stack_is_refused_with_code_and_numbers(code, values, words):
    with pytest.raises(Refused) as refused:
        check_stack(**values)
    assert refused.value.code == code
    assert words in refused.value.reason
    assert refused.value.remedy


@given(rotation=st.integers(0, 2**32 - 1), seed=st.integers(0, 99), count=st.integers(2, 40), step=st.floats(0.5, 10))
@settings(max_examples=30, deadline=None)
def test_regular_stack_is_accepted_in_any_orientation_and_order(rotation, seed, count, step):
    values = stack(count, step, Rotation.random(random_state=rotation).as_matrix())
    order = np.random.default_rng(seed).permutation(count)
    check_stack(**{name: np.round(array[order], 6) for name, array in values.items()})


@given(seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_label_keeps_its_world_places_under_permutation_flip_and_margin(seed):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * rng.uniform(0.5, 5, 3)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    label = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    order, signs, margin = rng.permutation(3), rng.choice([-1, 1], 3), rng.integers(0, 3, 3)
    index = np.eye(4)  # voxel of the target -> voxel of the label
    shape = np.array(label.shape)[order] + 2 * margin
    for axis in range(3):
        index[:3, axis] = 0
        index[order[axis], axis] = signs[axis]
    index[:3, 3] = 0
    for axis in range(3):
        index[order[axis], 3] = -margin[axis] if signs[axis] > 0 else label.shape[order[axis]] - 1 + margin[axis]
    target = affine @ index
    placed = place_on_grid(label, affine, tuple(shape), target)
    assert placed is not None
    back = (index @ np.c_[np.argwhere(placed), np.ones((placed > 0).sum())].T)[:3].round().astype(int)
    assert (label[tuple(back)] == placed[placed > 0]).all()
    assert (placed > 0).sum() == (label > 0).sum()


@pytest.mark.parametrize("change", ["half a voxel", "other spacing", "turned", "reaches outside"])
def test_label_of_another_grid_has_no_place(change):
    target, affine, label = np.diag([1.0, 1, 5, 1]), np.diag([1.0, 1, 5, 1]), np.ones((4, 4, 4))
    if change == "half a voxel":
        affine[0, 3] = 0.5
    elif change == "other spacing":
        affine[2, 2] = 2.5
    elif change == "turned":
        affine[:3, :3] = Rotation.from_euler("z", 5, degrees=True).as_matrix() @ affine[:3, :3]
    else:
        affine[0, 3] = 1.0
    assert place_on_grid(label, affine, (4, 4, 4), target) is None
