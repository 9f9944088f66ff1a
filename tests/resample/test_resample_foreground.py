from __future__ import annotations

import numpy as np
import pytest
from synthetic_heads import grid_of, head, inside, outline, points

from pipelines.errors import Refused
from pipelines.resample.foreground import foreground, standardise

GRID = grid_of((60, 70, 30), (3, 3, 5), (5, -4, 8))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("contrast", ["t1", "t2"])
@pytest.mark.parametrize("noise", [0.5, 8])
def test_head_is_found_in_noise(contrast, noise):
    found = foreground([head(GRID, contrast, noise=noise).array], 2)
    assert dice(found, outline(points(GRID))) > 0.97


def test_extracted_brain_is_found_with_its_dark_ventricles():
    brain = inside(points(GRID), "brain")
    found = foreground([np.where(brain, head(GRID, "t1").array, 0)], 2)
    assert dice(found, brain) > 0.97
    assert found[inside(points(GRID), "ventricle-left")].all()


def test_union_takes_what_agrees_and_leaves_what_does_not():
    world = points(GRID)
    scalp, brain = outline(world), inside(world, "brain")
    stripped = np.where(brain, head(GRID, "t2").array, 0)
    assert dice(foreground([stripped, head(GRID, "t1").array], 2), scalp) > 0.97  # one shows more of the same head
    other = np.where(world[..., 0] > 20, 100.0, 0)
    assert dice(foreground([stripped, other], 2), brain) > 0.97  # the other shows something else


def test_slices_may_lie_along_any_axis():
    array = head(GRID, "t2").array
    assert np.array_equal(foreground([np.moveaxis(array, 2, 0)], 0), np.moveaxis(foreground([array], 2), 2, 0))


def test_intensities_are_standardised_inside_and_zero_outside():
    image, mask = head(GRID, "t2", noise=4).array * 37 + 1000, outline(points(GRID))
    image[30, 35, 15] = 1e6  # one spike must not set the scale
    result = standardise(image, mask, 2)
    assert result.dtype == np.float32 and not result[~mask].any()
    assert abs(np.median(result[mask])) < 1e-3 and 0.3 < result[mask].std() < 3 and result.max() < 12
    assert np.allclose(result, standardise(image * 5 - 3, mask, 2), atol=1e-3)  # whatever the scanner's gain


def test_a_map_of_the_brain_is_standardised_inside_the_brain():
    brain, mask = inside(points(GRID), "brain"), outline(points(GRID))
    values = np.where(brain, head(GRID, "t2", noise=3).array, 0)
    result = standardise(values, mask, 2)
    assert not result[~brain].any() and abs(np.median(result[brain])) < 0.05


def test_no_contrast_is_refused():
    flat = np.full((20, 20, 5), 3.0)
    with pytest.raises(Refused, match="no contrast"):
        foreground([flat], 2)
    with pytest.raises(Refused, match="have the value 3"):
        standardise(flat, np.ones(flat.shape, bool), 2)
