from __future__ import annotations

import numpy as np
import pytest
from synthetic_heads import grid_of, head, rigid

from pipelines.errors import Refused
from pipelines.resample.registration import register
from pipelines.resample.volumes import Volume

FIXED = head(grid_of((75, 90, 30), (2.4, 2.4, 5)), "t2")


def errors(found, move: np.ndarray) -> tuple[float, float]:
    """Mean distance in mm of points of the head from where they belong, and the angle left in degrees."""
    world = np.random.default_rng(1).uniform(-50, 50, (40, 3))
    there = np.array([found.transform.TransformPoint(point.tolist()) for point in world])
    left = move[:3, :3].T @ np.reshape(found.transform.GetMatrix(), (3, 3))
    return (float(np.linalg.norm(there - (world @ move[:3, :3].T + move[:3, 3]), axis=1).mean()),
            float(np.degrees(np.arccos(np.clip((np.trace(left) - 1) / 2, -1, 1)))))


@pytest.mark.parametrize(("contrast", "spacing", "shift", "tolerance"), [
    ("t1", (2, 2, 4), (9, -12, 7), 1.0),
    ("t1", (4, 2, 2), (240, -90, 400), 1.0),  # another table, another origin
    ("map", (4, 4, 4), (-10, 5, 30), 2.0),  # a smooth ellipsoid without skull says little about rotation
])
def test_a_known_offset_is_recovered(contrast, spacing, shift, tolerance):
    move = rigid((6, -4, 8), shift)
    shape = [int(190 / size) for size in spacing]
    moving = head(grid_of(shape, spacing, (3, 2, -4), center=shift), contrast, move=move, seed=1)
    found = register(FIXED, moving)
    distance, angle = errors(found, move)
    assert distance < tolerance and angle < tolerance
    assert "shift" in str(found) and "deg" in str(found)


def test_images_in_place_stay_in_place_and_twice_is_the_same():
    moving = head(grid_of((70, 80, 36), (2.5, 2.5, 4)), "t1", seed=2)
    first, second = register(FIXED, moving), register(FIXED, moving)
    assert first.shift_mm < 1 and first.rotation_deg < 1
    assert first.transform.GetParameters() == second.transform.GetParameters()


def test_noise_is_refused():
    noise = Volume(np.random.default_rng(0).normal(size=FIXED.grid.shape).astype(np.float32), FIXED.grid)
    with pytest.raises(Refused, match=r"did not rise|ended") as caught:
        register(FIXED, noise)
    assert caught.value.code == "registration"


def test_a_head_turned_too_far_is_refused():
    turned = head(FIXED.grid, "t2", move=rigid((0, 0, 38), (0, 0, 0)))
    with pytest.raises(Refused, match="beyond 40 mm or 30 deg"):
        register(FIXED, turned)
