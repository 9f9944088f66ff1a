"""Labels as arrays: overlaps that lose nothing, names that may leave, masks, and the grid they must lie on."""

from __future__ import annotations

from types import SimpleNamespace

import highdicom as hd
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_objects import expected, home, save, source
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from pipelines.errors import Refused
from pipelines.ingest.headers import Header, scan
from pipelines.ingest.labels import Segments, merge, place, place_on_grid, safe_name
from pipelines.ingest.labels.naming import object_name
from pipelines.ingest.labels.segments import Overlay, check_values
from pipelines.ingest.series import Series, group
from pipelines.ingest.source import SourceFile
from pipelines.params import Limits


def of(segments: Segments, name: str) -> np.ndarray:
    return np.isin(segments.array, [value for value, names in segments.names.items() if name in names])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.floats(0, 1), counts=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_laying_over_and_merging_lose_no_segment(seed, share, counts):
    random = np.random.default_rng(seed)
    masks = random.random((sum(counts), 4, 5, 3)) < share
    parts, start = [], 0
    for count in counts:
        overlay = Overlay((4, 5, 3))
        for number in range(1, count + 1):
            overlay.add(np.nonzero(masks[start + number - 1]), number)
        parts.append(overlay.finish(np.eye(4), {number: f"s{start + number}" for number in range(1, count + 1)}))
        start += count
    merged = merge(merge(None, parts[0]), parts[1])
    for index, mask in enumerate(masks, 1):
        assert np.array_equal(of(merged, f"s{index}"), mask)
    assert len(set(merged.names.values())) == len(merged.names)
    assert merged.array.dtype == np.uint16 and set(np.unique(merged.array)) - {0} <= set(merged.names)


def test_values_of_the_second_follow_those_of_the_first():
    first, second = np.zeros((2, 2, 2), int), np.zeros((2, 2, 2), int)
    first[0], second[1] = 1, 2
    merged = merge(Segments(first, np.eye(4), {1: ("a",)}, "one"), Segments(second, np.eye(4), {1: ("b",), 2: ("c",)}, "two"))
    assert merged.names == {1: ("a",), 2: ("b",), 3: ("c",)} and merged.note == "one; two"
    assert sorted(np.unique(merged.array)) == [1, 3]
    both = merge(Segments(first, np.eye(4), {1: ("a",)}), Segments(first, np.eye(4), {1: ("b",)}))
    assert both.names[3] == ("a", "b") and (both.array == 3).sum() == 4
    with pytest.raises(Refused, match="has the segment a too") as refused:
        merge(Segments(first, np.eye(4), {1: ("a",)}), Segments(second, np.eye(4), {1: ("b", "a")}))
    assert refused.value.code == "duplicate-label"


def test_more_values_than_fit_are_refused():
    with pytest.raises(Refused, match="reach 65536, and 65535 is the most"):
        check_values(65536)


def test_names_that_nobody_asked_for_are_kept_only_when_ordinary():
    assert safe_name("Enhancing  lesion", 1, frozenset()) == "Enhancing lesion"
    assert safe_name("GTV 1", 1, frozenset()) == "GTV 1"
    assert safe_name("edema drawn by Smith", 2, frozenset()) == "segment 2"
    assert safe_name("Astrozytom", 3, frozenset(["Astrozytom"])) == "Astrozytom"
    assert safe_name("Edema & Smith & Astrozytom", 3, frozenset(["Astrozytom"])) == "Edema & segment 3 & Astrozytom"
    assert safe_name('"core"\ttumour', 3, frozenset()) == "core tumour"


def test_the_name_of_one_segment_never_looks_like_a_combination():
    assert object_name(["Edema & necrosis"], 1, frozenset()) == "Edema and necrosis"
    assert object_name(["label 3", "Neoplasm of Smith"], 3, frozenset()) == "label 3"
    assert object_name(["", "Smith"], 3, frozenset()) == "segment 3"


def test_lookup_survives_being_read_again(tmp_path):
    array = np.zeros((4, 5, 3), np.uint8)
    array[1], array[2], array[3] = 1, 2, 3
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "label.nii.gz")
    names = {1: "Edema", 2: "Necrosis", 3: "Edema & Necrosis"}
    segments, _ = place(source(tmp_path / "label.nii.gz", "nifti", names=names), [SimpleNamespace(item="", path="label.nii.gz", frame="frame-A")],
                        tmp_path)
    assert segments.names == {1: ("Edema",), 2: ("Necrosis",), 3: ("Edema", "Necrosis")}
    assert segments.lookup().splitlines()[1:] == [f"{value}\t{name}" for value, name in names.items()]


@pytest.mark.parametrize(("values", "reason"), [([0, 0.5], "run from 0 to 0.5 and are not whole"), ([-1, 1], "run from -1"), ([0, 70000], "70000")])
def test_nifti_values_that_are_no_segments(tmp_path, values, reason):
    array = np.zeros((4, 5, 3), np.float32)
    array[0], array[1] = values
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "label.nii.gz")
    with pytest.raises(Refused, match=reason) as refused:
        place(source(tmp_path / "label.nii.gz", "nifti"), [SimpleNamespace(item="", path="label.nii.gz", frame="frame-A")], tmp_path)
    assert refused.value.code == "label-values"


def part_of(folder) -> tuple[Series, object]:
    headers = [header for header in scan([SourceFile(path, (path.name,)) for path in sorted(folder.iterdir())]) if isinstance(header, Header)]
    series = group(headers)[0]
    return series, series.parts(Limits())[0]


@pytest.fixture
def image(make_series):
    return make_series(np.arange(6 * 7 * 8).reshape(6, 7, 8))


SLOPED = {"RescaleSlope": 0.01, "RescaleIntercept": 0}


@pytest.mark.parametrize("case", [
    ([0, 7, 9], {}, "tumour", {"tumour": [1, 2]}, ""),
    ([0, 0, 7], {"RescaleSlope": 1.5, "RescaleIntercept": 0}, "tumour", {"tumour": [2]}, ""),
    ([0, 7, 9], {}, "", {"7": [1], "9": [2]}, ""),
    ([0, 30, 80], SLOPED, "tumour", {"tumour": [2]}, "fractional, cut at 0.5"),
    ([0, 0, 30], SLOPED, "tumour", {"tumour": [2]}, ""),  # one value beside 0
    ([0, 0, 0], {}, "tumour", {"tumour": []}, "no voxel is labelled"),
])
def test_series_of_mask_images(image, make_series, tmp_path, case):
    values, tags, name, truth, note = case
    drawn = np.zeros((4, 7, 8), int)
    drawn[1, 2, 3:5], drawn[2, 2, 3:5] = values[1:]
    mask = make_series(drawn, description="mask", origin=tuple(np.add(image.origin, (0, 0, 5.0))), tags={**tags, "Modality": "SC"})
    mask.write(tmp_path / "mask")
    series, part = part_of(tmp_path / "mask")
    given_source = source(tmp_path, "mask", name=name, headers=tuple(series.headers), part=part)
    segments, _ = place(given_source, [home(image, tmp_path)], tmp_path)
    assert segments.note == note and list(segments.names.values()) == [(called,) for called in truth]
    for called, slices in truth.items():
        where = np.zeros((6, 7, 8), bool)
        where[[index + 1 for index in slices], 2, 3:5] = True
        assert np.array_equal(of(segments, called), expected(image, where, segments))


def test_a_measurement_is_no_mask(image, make_series, tmp_path):
    values = np.random.default_rng(0).integers(0, 900, (6, 7, 8))
    make_series(values, tags=SLOPED).write(tmp_path / "mask")
    series, part = part_of(tmp_path / "mask")
    with pytest.raises(Refused, match="neither whole numbers up to 65535 nor shares") as refused:
        place(source(tmp_path, "mask", name="tumour", headers=tuple(series.headers), part=part), [home(image, tmp_path)], tmp_path)
    assert refused.value.code == "label-values"


@pytest.mark.parametrize("case", [
    (np.float32([0, 0.4, 0.6, np.nan]), "tumour", {"tumour": [2]}, "fractional, cut at 0.5"),
    (np.float32([0, 1, 2, np.nan]), "", {"1": [1], "2": [2]}, ""),
    (np.float32([0, 1, 2, 0]), "tumour", {"tumour": [1, 2]}, ""),
])
def test_parametric_maps(image, tmp_path, case):
    pixels, name, truth, note = case
    array = np.zeros((6, 7, 8), np.float32)
    array[3, 4, 2:6] = pixels
    mapping = hd.pm.RealWorldValueMapping(lut_label="1", lut_explanation="share", unit=hd.sr.CodedConcept("1", "UCUM", "no units"),
                                          value_range=[0.0, 9.0], slope=1.0, intercept=0.0)
    dataset = hd.pm.ParametricMap(
        image.datasets(), array, generate_uid(), 1, generate_uid(), 1, "x", "x", "1", "1", contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping], window_center=0.5, window_width=1, transfer_syntax_uid=ExplicitVRLittleEndian)
    segments, _ = place(source(save(dataset, tmp_path / "map.dcm"), "mask", name=name), [home(image, tmp_path)], tmp_path)
    assert segments.note == note and list(segments.names.values()) == [(called,) for called in truth]
    for called, columns in truth.items():
        where = np.zeros((6, 7, 8), bool)
        where[3, 4, [2 + column for column in columns]] = True
        assert np.array_equal(of(segments, called), expected(image, where, segments))


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(3)), signs=st.tuples(*[st.sampled_from([-1, 1])] * 3), margin=st.integers(0, 2))
def test_volumes_are_placed_by_permuting_and_flipping(order, signs, margin):
    label = np.random.default_rng(3).integers(0, 3, (4, 5, 6))
    affine = np.array([[0.9, 0.1, 0, 5], [-0.1, 0.9, 0, -3], [0, 0, 3.0, 40], [0, 0, 0, 1]])
    turned = np.pad(np.transpose(label, order)[tuple(slice(None, None, sign) for sign in signs)], margin)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for axis, (source_axis, sign) in enumerate(zip(order, signs, strict=True)):  # voxel of `turned` to voxel of `label`
        turn[source_axis, axis] = sign
        turn[source_axis, 3] = -margin if sign > 0 else label.shape[source_axis] - 1 + margin
    assert np.array_equal(place_on_grid(label, affine, turned.shape, affine @ turn), turned)


def moved(steps: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = steps
    return affine


@pytest.mark.parametrize(("affine", "reason"), [
    (np.diag([1, 1, 0.5, 1]), "of another size than the image's"), (moved(0.5), "0.5 mm off"), (moved(2), "32 of its 64 labelled voxels")])
def test_volumes_off_the_grid_are_refused(affine, reason):
    with pytest.raises(Refused, match=reason) as refused:
        place_on_grid(np.ones((4, 4, 4), int), affine, (4, 4, 4), np.eye(4))
    assert refused.value.code == "label-grid"
