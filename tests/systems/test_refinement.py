"""A case's own intensities correct what a model guessed: truth known, the guess shifted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from pipelines.cohort import Case
from pipelines.systems.refinement import refined

SHAPE = (6, 64, 64)


def disc(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SHAPE[1], :SHAPE[2]]
    return np.broadcast_to((rows - row) ** 2 + (columns - column) ** 2 < radius**2, SHAPE)


def case_with(lesion: np.ndarray, contrast: float, seed: int = 0) -> Case:
    random, head = np.random.default_rng(seed), disc(32, 32, 29)
    image = np.where(head, random.normal(0, 0.5, SHAPE) + contrast * lesion, 0).astype(np.float32)
    return Case("x", "", "s", (5.0, 1.5, 1.5), 2, {"FLAIR": image}, head, lesion.astype(np.uint8))


def guess(lesion: np.ndarray, moved: float = 3.0) -> np.ndarray:
    """A blurred and moved idea of where the lesion is."""
    soft = shift(gaussian_filter(lesion.astype(np.float32), (0, 2, 2)), (0, moved, 0), order=1)
    return np.stack([1 - soft, soft]).clip(0.01, 0.99).astype(np.float32)


def dice(found: np.ndarray, true: np.ndarray) -> float:
    return 2 * (found & true).sum() / (found.sum() + true.sum())


@pytest.mark.parametrize("contrast", [3.0, -3.0])  # a lesion may be darker too: nothing is assumed of its contrast
def test_a_border_that_the_image_shows_is_found(contrast):
    lesion = disc(26, 36, 9)
    before = guess(lesion)
    after = refined(before, case_with(lesion, contrast), rounds=3)
    assert dice(before[1] > 0.5, lesion) < 0.88
    assert dice(after[1] > 0.5, lesion) > 0.94
    np.testing.assert_allclose(after.sum(0), 1, atol=1e-5)


def test_an_image_that_shows_nothing_moves_little():
    lesion = disc(26, 36, 9)
    before = guess(lesion)
    after = refined(before, case_with(lesion, 0.0), rounds=3)
    assert dice(after[1] > 0.5, before[1] > 0.5) > 0.8


def test_nothing_happens_far_from_a_lesion_and_outside_the_head():
    lesion = disc(26, 36, 6)
    before, case = guess(lesion), case_with(lesion, 3.0)
    after = refined(before, case, rounds=3)
    far = disc(26, 36, 26)
    np.testing.assert_allclose(after[:, ~far & case.brain], before[:, ~far & case.brain], atol=2e-3)
    np.testing.assert_array_equal(after[:, ~case.brain], before[:, ~case.brain])


def test_a_class_without_examples_keeps_its_say():
    lesion = disc(26, 36, 9)
    two = guess(lesion)
    rare = np.full(SHAPE, 0.05, np.float32)
    before = np.stack([two[0] - 0.05 * two[0], two[1] - 0.05 * two[1], rare])
    before /= before.sum(0)
    after = refined(before, case_with(lesion, 3.0), rounds=1)
    assert np.isfinite(after).all()
    assert after[2].max() < 0.5
    assert dice(after[1] > 0.5, lesion) > dice(before[1] > 0.5, lesion)


def test_no_rounds_and_no_lesion_change_nothing():
    lesion = disc(26, 36, 9)
    case, before = case_with(lesion, 3.0), guess(lesion)
    assert refined(before, case, rounds=0) is before
    empty = np.stack([np.full(SHAPE, 0.999, np.float32), np.full(SHAPE, 0.001, np.float32)])
    np.testing.assert_allclose(refined(empty, case, rounds=3), empty, atol=1e-6)
