"""The patch ceiling: by hand, against a plain loop, and of a cohort by level, label and site."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipelines.cohort import write_manifest
from pipelines.embed.ceiling import cohort_ceilings, patch_ceiling
from pipelines.errors import DataError

LEVELS = {"fine": (8, 2), "coarse": (8, 4)}


def plainly(truth: np.ndarray, stride: int) -> float:
    kept = np.zeros_like(truth)
    for index in np.ndindex(len(truth), *(-(-length // stride) for length in truth.shape[1:])):
        token = (index[0], *(slice(stride * start, stride * (start + 1)) for start in index[1:]))
        kept[token] = truth[token].mean() >= 0.5
    return 2 * (kept & truth).sum() / (kept.sum() + truth.sum())


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(bool, arrays.array_shapes(min_dims=3, max_dims=3, max_side=9)), st.integers(1, 5))
def test_it_is_what_a_plain_loop_finds(truth, stride):
    if truth.any():
        assert patch_ceiling(truth, stride) == pytest.approx(plainly(truth, stride))
    else:
        assert np.isnan(patch_ceiling(truth, stride))


def test_by_hand():
    truth = np.zeros((2, 8, 8), bool)
    truth[1, :4, :4] = True
    assert patch_ceiling(truth, 1) == patch_ceiling(truth, 4) == 1
    assert patch_ceiling(truth, 8) == 0  # a quarter of the one token
    truth[1, :8, :4] = True
    assert patch_ceiling(truth, 8) == pytest.approx(2 / 3)  # half of it: 32 voxels become 64


def test_of_a_cohort(tmp_path):
    rows = []
    for number, (site, cube) in enumerate([("A", 4), ("A", 2), ("B", 0)]):
        label = np.zeros((8, 8, 3), np.uint8)
        label[:cube, :cube, 1] = 1
        label[4:, 4:, 1] = 3 - 2 * bool(cube)  # value 1 again where there is a cube; where there is none, 3, which no name stands for
        path = f"sub-{number}_dseg.nii.gz"
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), tmp_path / path)
        rows.append({"subject": str(number), "site": site, "kind": "label", "modality": "dseg", "path": path, "sha256": "0" * 64, "shape": "8x8x3",
                     "spacing_mm": "1x1x5", "slice_axis": 2})
    write_manifest(tmp_path, rows)
    found = cohort_ceilings(tmp_path, ["tumour", "oedema"], LEVELS)
    second = round(2 * 16 / (16 + 20), 4)  # a quarter of a coarse token is lost, the other is whole
    mean = round((1 + 2 * 16 / 36) / 2, 4)
    assert found["coarse"]["tumour"] == {"mean": pytest.approx(mean, abs=1e-3), "cases": 2,
                                         "sites": {"A": {"mean": pytest.approx((1 + second) / 2, abs=1e-3), "cases": 2}}}
    assert found["fine"]["tumour"]["mean"] == 1
    assert found["fine"]["oedema"] == {"mean": None, "cases": 0, "sites": {}}


def test_a_label_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "dseg.nii.gz").write_bytes(b"none")
    write_manifest(tmp_path, [{"subject": "1", "site": "A", "kind": "label", "modality": "dseg", "path": "dseg.nii.gz", "sha256": "0" * 64,
                               "shape": "8x8x3", "spacing_mm": "1x1x5", "slice_axis": 2}])
    with pytest.raises(DataError, match=r"dseg\.nii\.gz cannot be read .*; run the resample stage again"):
        cohort_ceilings(tmp_path, ["tumour"], LEVELS)
