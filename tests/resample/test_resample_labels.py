from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from synthetic_heads import grid_of, lesion, points

from pipelines.errors import Refused
from pipelines.ingest.labels import SEPARATOR
from pipelines.params import Label
from pipelines.resample.grid import working_grid
from pipelines.resample.labels import SHARED, assign, read_lookup, resample_label, target_codes
from pipelines.resample.volumes import Volume

LABELS = [Label(name="core", segments=["Necrosis", "Enhancing lesion"], text="core"), Label(name="oedema", segments=["Edema"], text="oedema")]


def nested(grid, radius: float = 15.0) -> Volume:
    """Core (1, 2) inside oedema (3), spheres about a point off the axes."""
    distance = np.linalg.norm(points(grid) - np.array([4.3, -2.7, 1.1]), axis=-1)
    return Volume(np.select([distance < 0.3 * radius, distance < 0.6 * radius, distance < radius], [1, 2, 3], 0), grid)


@settings(max_examples=12, deadline=None)
@given(angles=st.tuples(*[st.floats(-30, 30)] * 3), radius=st.floats(10, 22), in_plane=st.floats(1, 2.5))
@example(angles=(0.0, 0.0, 2.453689218928889e-304), radius=10.0, in_plane=1.0)
def test_every_class_keeps_its_volume(angles, radius, in_plane):
    source = grid_of((60, 60, 22), (0.94, 0.94, 3), angles)
    label, (grid, _) = nested(source, radius), working_grid(source, in_plane)
    array, _ = resample_label(label, {1: 1, 2: 1, 3: 2}, ["core", "oedema"], grid)
    for code, values in ((1, (1, 2)), (2, (3,))):
        before, after = np.isin(label.array, values).sum() * source.voxel_ml, (array == code).sum() * grid.voxel_ml
        assert abs(after - before) < max(0.02 * before, 1.5 * grid.voxel_ml)


def test_volume_is_kept_on_a_grid_of_another_orientation():
    axial, sagittal = grid_of((80, 80, 26), (1, 1, 4), (6, -5, 4)), grid_of((30, 90, 90), (3.5, 0.9, 0.9), (-3, 8, 2))
    label = nested(sagittal)
    array, note = resample_label(label, {1: 1, 2: 1, 3: 2}, ["core", "oedema"], axial)
    assert abs((array > 0).sum() * axial.voxel_ml / ((label.array > 0).sum() * sagittal.voxel_ml) - 1) < 0.02
    assert note.startswith("core ") and "ml (" in note


def test_small_lesions_do_not_vanish():
    grid = grid_of((60, 60, 20), (1, 1, 3))
    array = np.zeros(grid.shape)
    corners = np.random.default_rng(0).integers(2, (56, 56, 18), (60, 3))
    for i, j, k in corners:
        array[i:i + 2, j, k] = 1  # two voxels each
    coarse, _ = working_grid(grid, 1.5)
    result, _ = resample_label(Volume(array, grid), {1: 1}, ["lesion"], coarse)
    assert abs(result.sum() * coarse.voxel_ml / (array.sum() * grid.voxel_ml) - 1) < 0.2


def test_the_same_grid_keeps_every_voxel():
    grid = grid_of((40, 40, 12), (1.5, 1.5, 5), (10, 5, 0))
    label = nested(grid)
    array, note = resample_label(label, {1: 1, 2: 1, 3: 2}, ["core", "oedema"], grid)
    assert np.array_equal(array, np.select([np.isin(label.array, (1, 2)), label.array == 3], [1, 2], 0))
    assert array.dtype == np.uint8 and note.count("(+0.0 %)") == 2


def test_a_label_beside_the_grid_is_refused():
    source = grid_of((40, 40, 20), (1.5, 1.5, 3))
    with pytest.raises(Refused, match=r"% of the label's .* ml lie outside"):
        resample_label(nested(source), {1: 1, 2: 1, 3: 2}, ["core", "oedema"], grid_of((40, 40, 20), (1.5, 1.5, 3), center=(30, 0, 0)))


def test_shares_without_a_label_give_none():
    assert not assign(np.zeros((2, 5, 5, 5), np.float32)).any()


def test_segments_become_target_codes_by_name():
    targets = target_codes(np.array([0, 1, 4, 9]), {1: "Necrosis", 2: "enhancing LESION ", 4: "Edema", 9: "Vessel"}, LABELS)
    assert targets.codes == {1: 1, 2: 1, 4: 2} and "no target uses: Vessel" in targets.note


@pytest.mark.parametrize(("name", "code"), [
    ("Necrosis & Edema", 1), ("Edema & Necrosis", 1), ("Vessel & edema", 2), ("Vessel & Enhancing lesion & Edema", 1),
    ("Vessel & Edema of skin", None), ("Necrosis and Edema", None)])
def test_a_value_of_several_segments_goes_to_the_first_target_in_order(name, code):
    assert target_codes(np.array([0, 1, 2]), {1: name, 2: "Edema"}, LABELS).codes.get(1) == code
    assert target_codes(np.array([0, 1, 2]), {1: name, 2: "Edema"}, LABELS[::-1]).codes.get(1) == (code and (1 if "dema" in name else 2))


def test_the_separator_is_the_one_that_ingest_writes():
    assert SHARED == SEPARATOR


def test_values_without_a_name_are_noted():
    assert "without a name, ignored: 7" in target_codes(np.array([0, 1, 7]), {1: "Edema"}, LABELS).note


def test_values_are_names_where_there_is_no_lookup():
    assert target_codes(np.array([0, 1]), None, [Label(name="l", segments=["1"], text="l")]).codes == {1: 1}


def test_an_empty_label_is_legal_where_it_names_what_is_wanted_or_nothing():
    for lookup in ({1: "Edema"}, {}, None):
        assert "empty label" in target_codes(np.zeros(3), lookup, LABELS).note


@pytest.mark.parametrize(("array", "lookup", "code", "message"), [
    ([0, 1], {1: "Vessel"}, "segments", "it has 'Vessel'"),
    ([0, 0], {1: "Vessel"}, "segments", "it has 'Vessel'"),  # nobody looked for a tumour
    ([0, 5], {}, "segments", "only values 5"),
    ([0, 0.5], {1: "Edema"}, "fractions", "holds fractions"),
])
def test_what_cannot_be_mapped_is_refused(array, lookup, code, message):
    with pytest.raises(Refused, match=message) as caught:
        target_codes(np.array(array), lookup, LABELS)
    assert caught.value.code == code


def test_a_broken_lookup_is_refused(tmp_path):
    (tmp_path / "a_dseg.tsv").write_text("value\tname\n1\tEdema\n")
    with pytest.raises(Refused, match=r"a_dseg\.tsv has no columns"):
        read_lookup(tmp_path / "a_dseg.nii.gz")
    assert read_lookup(tmp_path / "b_dseg.nii.gz") is None


def test_lesion_of_the_head_keeps_its_volume_through_thick_slices():
    source = grid_of((150, 180, 28), (0.94, 0.94, 6.5), (12, -9, 3))
    label, (grid, _) = lesion(source), working_grid(source, 1.5)
    array, _ = resample_label(label, {1: 1}, ["lesion"], grid)
    assert abs(array.sum() * grid.voxel_ml / (label.array.sum() * source.voxel_ml) - 1) < 0.01
