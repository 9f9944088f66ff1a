"""The comparison with reference NIfTI calls equal what is equal in world coordinates, and nothing else."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from benchmarks.conformance import Ours, clock, compare
from benchmarks.references import load, onto

FACTS = {"SeriesNumber": 3, "SeriesDescription": "t1 se", "AcquisitionTime": "11:48:15.000000"}


def affine(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix() * rng.uniform(0.5, 5, 3)
    matrix[:3, 3] = rng.uniform(-100, 100, 3)
    return matrix


def array(seed: int = 0, dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(seed).integers(-500, 500, (4, 5, 6)).astype(dtype)


def ours(seed: int = 0, **changes) -> Ours:
    return Ours(**{"item": "series-a", "number": 3, "description": "t1 SE", "times": frozenset(["114815"]), "array": array(seed), "affine": affine(0),
                   **changes})


def refused(**changes) -> Ours:
    return ours(array=None, affine=None, code="tilted-stack", reason="its slices slide", **changes)


def turned(values: np.ndarray, matrix: np.ndarray, seed: int) -> nibabel.Nifti1Image:
    """The same voxels at the same places in another axis order, which is how a converter may store them."""
    rng = np.random.default_rng(seed)
    orientation = np.c_[rng.permutation(3), rng.choice([-1, 1], 3)]
    image = nibabel.orientations.apply_orientation(values, orientation)
    return nibabel.Nifti1Image(image, (matrix @ nibabel.orientations.inv_ornt_aff(orientation, values.shape[:3])).astype(np.float32))


@pytest.fixture
def reference(tmp_path):
    def make(values=None, matrix=None, facts=FACTS, name="out.nii", slope=None):
        values = array() if values is None else values
        image = nibabel.Nifti1Image(values, affine(0) if matrix is None else matrix)
        if slope is not None:
            image.header.set_slope_inter(slope, 0)
        nibabel.save(image, tmp_path / name)
        if facts is not None:
            (tmp_path / name).with_name(name.split(".nii")[0] + ".json").write_text(json.dumps(facts))
        return load(tmp_path / name)

    return make


def outcome(reference, *all_ours: Ours) -> str:
    return compare([reference], list(all_ours)).verdicts[0].outcome


@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(["i2", "f4"]))
@settings(max_examples=40, deadline=None)
def test_axis_order_and_direction_do_not_matter(tmp_path_factory, seed, dtype):
    folder = tmp_path_factory.mktemp("ref")
    nibabel.save(turned(array(seed).astype(dtype), affine(seed), seed), folder / "out.nii.gz")
    one = ours(seed, affine=affine(seed))
    assert outcome(load(folder / "out.nii.gz"), one) == "exact"
    one.array = one.array.copy()
    one.array[1, 2, 3] += 1
    assert outcome(load(folder / "out.nii.gz"), one) == "wrong"


def shifted(mm: float) -> np.ndarray:
    matrix = affine(0)
    matrix[0, 3] += mm
    return matrix


NO_VOLUME = {"array": None, "affine": None, "code": "tilted-stack"}
CHANGES = [
    ({}, "exact"), ({"array": array().astype(float)}, "exact"), ({"array": array() + 1}, "wrong"), ({"array": array()[::-1]}, "wrong"),
    ({"affine": shifted(0.005)}, "exact"), ({"affine": shifted(0.05)}, "wrong"), ({"array": array()[:-1]}, "wrong"),
    ({"number": 4, "array": array()[:-1]}, "lost"), ({"number": 4}, "exact"), (NO_VOLUME, "refused"), ({"number": 4, **NO_VOLUME}, "lost"),
    ({"number": 4, "uid": "1.2", **NO_VOLUME}, "lost"), ({"description": "flair", **NO_VOLUME, "times": frozenset()}, "lost"),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_one_volume(reference, change, expected):
    assert outcome(reference(), ours(**change)) == expected


def test_scaled_integers_are_compared_by_value(reference):
    scaled = reference(slope=0.1)
    assert outcome(scaled, ours(array=(array() * 0.1).astype(np.float32))) == "exact"
    assert outcome(scaled, ours()) == "wrong"


def test_no_sidecar(reference):
    alone = reference(facts=None)
    assert outcome(alone, ours()) == "exact"
    assert outcome(alone, ours(1)) == "wrong"
    assert outcome(alone, ours(affine=affine(1))) == "lost"
    assert outcome(alone, ours(affine=affine(1)), refused()) == "refused"
    assert outcome(alone) == "lost"


def test_volumes_in_time_are_compared_in_order(reference):
    values = np.stack([array(seed) for seed in range(3)], axis=-1)
    parts = [ours(seed, name=f"time-{seed}") for seed in range(3)]
    assert outcome(reference(values), *parts) == "exact"
    assert outcome(reference(values), *parts[::-1]) != "exact"
    assert outcome(reference(values), *parts[:2]) != "exact"
    assert outcome(reference(values), *[ours(seed, name=f"b-{seed}") for seed in (2, 0, 1)]) == "exact"
    assert outcome(reference(values), *parts[:2], refused(name="time-2")) == "refused"
    assert outcome(reference(values), *parts[:2], ours(9, name="time-2"), refused(name="time-3")) == "wrong"


def test_resampled_reference_of_a_refused_series_is_refused(reference):
    assert outcome(reference(name="out_Tilt_1.nii"), refused()) == "refused"
    assert outcome(reference(name="out_Eq_1.nii"), ours(1), refused(name="b")) == "refused"


def test_volume_that_is_another_reference_is_not_a_wrong_one(reference):
    phase = reference(array(7), name="out_ph.nii")
    report = compare([phase, reference()], [ours(), refused(name="part-phase"), ours(5, number=9, item="series-b")])
    assert [verdict.outcome for verdict in report.verdicts] == ["refused", "exact"]
    assert report.extra == ["series-b"]
    assert report.counts == {"exact": 1, "refused": 1, "wrong": 0, "lost": 0}


def test_sidecar_that_is_no_json_counts_as_none(reference, tmp_path):
    reference()
    (tmp_path / "out.json").write_text("{not json")
    assert load(tmp_path / "out.nii").facts == {}


def test_sheared_reference_is_no_grid_of_ours(reference):
    sheared = affine(0)
    sheared[:3, 2] += 0.3 * sheared[:3, 1]
    assert onto(reference(matrix=sheared), array().shape, affine(0)) is None


@pytest.mark.parametrize(("value", "expected"), [("11:48:15.000000", "114815"), ("114815.25", "114815"), ("", ""), (None, ""), ("1148", "")])
def test_clock(value, expected):
    assert clock(value) == expected
