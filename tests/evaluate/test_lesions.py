"""Lesion-wise F1 on volumes made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines.evaluate.lesions import Lesions, count_lesions

masks = hnp.arrays(bool, (3, 6, 6), elements=st.booleans())


def boxes(*corners: tuple[int, int, int], size: int = 4) -> np.ndarray:
    volume = np.zeros((10, 40, 40), bool)
    for z, y, x in corners:
        volume[z:z + size, y:y + size, x:x + size] = True
    return volume


def test_found_missed_and_invented():
    truth = boxes((0, 0, 0), (0, 10, 10), (5, 20, 20))
    predicted = boxes((0, 1, 0), (5, 21, 21), (0, 30, 30), (5, 5, 30))
    found = count_lesions(truth, predicted)
    assert found == Lesions(true=3, predicted=4, found=2, right=2)
    assert found.f1 == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_a_touch_is_no_match():
    assert count_lesions(boxes((0, 0, 0)), boxes((3, 3, 3))).f1 == 0  # 1 of 127 voxels
    assert count_lesions(boxes((0, 0, 0)), boxes((2, 1, 0))).f1 == 1  # 24 of 104


def test_a_lesion_in_two_pieces_is_one_found_and_both_pieces_are_right():
    truth, predicted = boxes((0, 0, 0), size=6), boxes((0, 0, 0), size=6)
    predicted[:, 3] = False
    assert count_lesions(truth, predicted) == Lesions(1, 2, 1, 2)


def test_a_prediction_of_everything_finds_nothing():
    truth = boxes((0, 0, 0), (0, 10, 10))
    assert count_lesions(truth, np.ones_like(truth)) == Lesions(2, 1, 0, 0)


def test_corners_connect():
    truth = boxes((0, 0, 0), (4, 4, 4))
    assert count_lesions(truth, truth) == Lesions(1, 1, 1, 1)


def test_nothing_to_find_and_nothing_predicted():
    some, none = boxes((0, 0, 0)), boxes()
    assert math.isnan(count_lesions(none, some).f1)
    assert count_lesions(none, some).predicted == 1
    assert count_lesions(some, none).f1 == 0


@settings(max_examples=30, deadline=None)
@given(masks, masks)
def test_exchanging_the_masks_exchanges_the_counts(truth, predicted):
    one, other = count_lesions(truth, predicted), count_lesions(predicted, truth)
    assert (one.true, one.predicted, one.found, one.right) == (other.predicted, other.true, other.right, other.found)
    assert one.found <= one.true
    if truth.any() and predicted.any():
        assert one.f1 == pytest.approx(other.f1)
