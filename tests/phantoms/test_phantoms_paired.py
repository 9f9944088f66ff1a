"""The paired cohort: the answer is a relation of both images, and neither of them tells it."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from pipelines.ingest.participants import DENIED
from pipelines.params import Simulate
from pipelines.phantoms import anatomy, physics
from pipelines.phantoms.anatomy import Tissue
from pipelines.phantoms.paired import OUTCOME, RIM, SOLID, SPACING_MM, draw_lesions, painted, simulate_pair, uptake

PARAMS = Simulate(kind="paired", seed=5, subjects_per_site=2, missing_fraction=0)


@pytest.fixture(scope="module")
def head():
    return anatomy.head(np.random.default_rng(0), SPACING_MM)


@pytest.mark.parametrize(("left_rim", "right_rim", "left_active"),
                         [(True, False, True), (True, True, False), (False, True, True), (False, False, False)])
def test_each_of_its_kind_one_active_and_tracer_blind_to_what_a_lesion_is_made_of(head, left_rim, right_rim, left_active):
    rng = np.random.default_rng(3)
    lesions = draw_lesions(head, left_rim, right_rim, left_active, rng)
    assert [lesion.rim for lesion in lesions] == [left_rim, right_rim]
    assert lesions[0].centre_mm[0] < 0 < lesions[1].centre_mm[0]
    labels, depths = painted(head, lesions, rng)
    for lesion, depth in zip(lesions, depths, strict=True):
        assert (labels[depth > 0] == Tissue.NECROSIS).any() == lesion.rim
        assert (labels[depth > 0] == Tissue.ENHANCING).any()
    suv = uptake(head, lesions, depths, physics.draw_biology(rng), rng)
    levels = [suv[depth > 0] for depth in depths]
    assert all(np.ptp(level) == 0 for level in levels)  # rim and core alike
    assert (levels[0][0] > levels[1][0]) == left_active


def test_a_subject_is_written_once_and_named_by_what_its_images_relate(tmp_path):
    rows = [simulate_pair(PARAMS, "site-b", index, tmp_path / "one") for index in range(2)]
    assert all(int(row.split("\t")[2]) in (SOLID, RIM) for row in rows)
    again = simulate_pair(PARAMS, "site-b", 0, tmp_path / "two")
    assert again == rows[0]
    files = sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.nii.gz"))
    assert [path.name for path in files] == ["sub-b0000_ce-gadolinium_T1w.nii.gz", "sub-b0000_pet.nii.gz"]
    for path in files:
        one, two = (nibabel.load(tmp_path / name / path) for name in ("one", "two"))
        np.testing.assert_array_equal(one.get_fdata(), two.get_fdata())
    assert not DENIED.search(OUTCOME)  # the answer survives de-identification
