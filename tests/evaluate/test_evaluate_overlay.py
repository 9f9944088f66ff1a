"""Overlays: the right slice, the right way up, the cases they claim to be."""

from __future__ import annotations

import numpy as np

from pipelines.cohort import Case
from pipelines.evaluate.overlay import Overlay, choose, display, grey, make_overlay, write_overlays


def test_patient_right_is_on_the_left_and_anterior_on_top():
    plane = np.zeros((5, 7))  # a RAS axial slice: x grows to the right, y to anterior
    plane[4, 6] = 1  # right and anterior
    shown = display(plane)
    assert shown.shape == (7, 5)
    assert shown[0, 0] == 1


def test_grey_is_black_outside_the_head():
    plane, head = np.array([[0.0, -1.0, 2.0, 0.5]]), np.array([[False, True, True, True]])
    assert grey(plane, head)[0, 0] == 0
    assert grey(plane, head)[0, 2] == 255


def test_the_slice_with_most_truth_is_shown():
    truth = np.zeros((4, 20, 16), np.uint8)
    truth[2, 5:9, 5:9], truth[1, 5:7, 5:7] = 1, 1
    image, head = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32), np.ones(truth.shape, np.uint8)
    case = Case("a", "1", "s", (5.0, 1.5, 1.0), 2, {"T1w": image}, head, truth)
    probability = np.stack([1 - truth, truth]).astype(np.float32)
    overlay = make_overlay(case, truth, truth, probability, {"site": "s"})
    assert overlay.facts["slice"] == 2
    assert overlay.facts["pixel_mm"] == [1.0, 1.5]
    assert overlay.arrays["truth"].sum() == 16
    np.testing.assert_array_equal(overlay.arrays["truth"], display(truth[2]))
    assert overlay.arrays["probability"].shape == (1, 16, 20)
    assert not overlay.arrays["uncertainty"].any()
    doubt = make_overlay(case, truth, truth, np.where(truth == 1, 0.5, probability).astype(np.float32), {"site": "s"})
    np.testing.assert_array_equal(doubt.arrays["uncertainty"], display(truth[2]))
    nothing = make_overlay(case, np.zeros_like(truth), np.roll(truth, 1, axis=0), probability, {"site": "s"})
    assert nothing.facts["slice"] == 3


def _overlay(case: str, dice: float | None, truth_ml: float) -> Overlay:
    return Overlay({"truth": np.zeros((2, 2), np.uint8)}, {"site": "s", "case": case, "mean_dice": dice, "truth_ml": truth_ml})


def test_roles_and_files(tmp_path):
    overlays = [_overlay("a", 0.5, 9), _overlay("b", 0.9, 5), _overlay("c", 0.1, 1), _overlay("d", None, 0), _overlay("e", 0.6, 7)]
    roles = {entry.facts["case"]: role for entry, role in choose(overlays)}
    assert roles == {"b": ["common", "best"], "e": ["median"], "c": ["worst"]}
    assert choose([]) == []
    write_overlays(tmp_path / "one", overlays)
    write_overlays(tmp_path / "two", overlays)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["index.json", "s_b.npz", "s_c.npz", "s_e.npz"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
