"""Segmentation objects of every kind lie in the world where they were drawn, or are refused."""

from __future__ import annotations

import io
from dataclasses import replace

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_objects import ITEM, described, expected, found, home, reorder_frames, save, segmentation, source
from pydicom.sr.codedict import codes
from pydicom.uid import ImplicitVRLittleEndian
from scipy.spatial.transform import Rotation

from pipelines.errors import Refused
from pipelines.ingest.labels import frame_of_reference, place, referenced_series

NAMES = ["Necrosis", "Enhancing lesion"]


def drawn(shape=(6, 7, 9)) -> np.ndarray:
    """Two segments, apart; 63 pixels a frame, so that packed frames do not end with a byte."""
    array = np.zeros((*shape, 2), np.uint8)
    array[1, 1:4, 2:5, 0] = 1
    array[4, 0, 0, 0] = 1
    array[3, 2:6, 3:9, 1] = 1
    return array


@pytest.fixture
def image(make_series):
    values = np.random.default_rng(1).permutation(6 * 7 * 9).reshape(6, 7, 9)
    return make_series(values, axes=Rotation.from_euler("xyz", [12, 20, -7], degrees=True).as_matrix())


@pytest.fixture
def read(image, tmp_path):
    """Write a label object, place it on the image."""

    def call(dataset, **more):
        return place(source(save(dataset, tmp_path / "label.dcm"), **more), [home(image, tmp_path)], tmp_path)[0]

    return call


def check(segments, image, array, names=NAMES) -> None:
    for index, name in enumerate(names):
        assert np.array_equal(found(segments, name), expected(image, array[..., index], segments)), name


def test_binary_agrees_with_the_truth_and_with_highdicom(read, image):
    dataset = segmentation(image, drawn(), NAMES)
    segments = read(dataset)
    check(segments, image, drawn())
    assert segments.names == {1: ("Necrosis",), 2: ("Enhancing lesion",)} and not segments.note
    volume = hd.seg.Segmentation.from_dataset(dataset).get_volume(segment_numbers=[1])
    world = np.argwhere(volume.array[..., 0]) @ volume.get_affine("RAS")[:3, :3].T + volume.get_affine("RAS")[:3, 3]
    ours = np.argwhere(segments.array == 1) @ segments.affine[:3, :3].T + segments.affine[:3, 3]
    np.testing.assert_allclose(np.sort(world, axis=0), np.sort(ours, axis=0), atol=1e-3)


def test_overlap_becomes_a_value_that_names_both(read, image):
    array = drawn()
    array[3, 2:4, 3:5, 0] = 1
    segments = read(segmentation(image, array, NAMES))
    check(segments, image, array)
    assert segments.names == {1: ("Necrosis",), 2: ("Enhancing lesion",), 3: ("Necrosis", "Enhancing lesion")}
    assert (segments.array == 3).sum() == 4
    assert segments.lookup() == "index\tname\n1\tNecrosis\n2\tEnhancing lesion\n3\tNecrosis & Enhancing lesion\n"


def test_three_overlapping_segments_name_only_combinations_that_occur(read, image):
    array = np.zeros((6, 7, 9, 3), np.uint8)
    array[2, 2, :6, 0] = array[2, 2, 2:8, 1] = array[2, 2, 3:5, 2] = 1
    segments = read(segmentation(image, array, ["Necrosis", "Edema", "cyst"]))
    check(segments, image, array, ["Necrosis", "Edema", "cyst"])
    assert sorted(segments.names.values()) == sorted([("Necrosis",), ("Edema",), ("cyst",), ("Necrosis", "Edema"), ("Necrosis", "Edema", "cyst")])


@pytest.mark.parametrize(("fractional", "threshold"), [("PROBABILITY", 0.5), ("OCCUPANCY", 0.25)])
def test_fractional_is_cut_and_says_so(read, image, fractional, threshold):
    array = drawn() * np.random.default_rng(0).choice([0.2, 0.5, 0.75, 1.0], (6, 7, 9, 1))
    segments = read(segmentation(image, array, NAMES, "FRACTIONAL", fractional_type=fractional, max_fractional_value=200), threshold=threshold)
    check(segments, image, array >= threshold - 1e-9)
    assert segments.note == f"fractional {fractional.lower()}, cut at {threshold:g}"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"])
def test_label_map(read, image, syntax):
    array = drawn()
    segments = read(segmentation(image, (array * [1, 2]).sum(-1).astype(np.uint8), NAMES, "LABELMAP", transfer_syntax_uid=syntax))
    check(segments, image, array)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"], ids=["RLE", "JPEG 2000", "JPEG-LS"])
def test_compressed_fractional(make_series, tmp_path, syntax):
    image = make_series(np.arange(6 * 40 * 36).reshape(6, 40, 36))  # JPEG 2000 wants 32 pixels
    array = np.pad(drawn(), ((0, 0), (20, 13), (3, 24), (0, 0)))
    path = save(segmentation(image, array.astype(float), NAMES, "FRACTIONAL", transfer_syntax_uid=syntax), tmp_path / "label.dcm")
    check(place(source(path), [home(image, tmp_path)], tmp_path)[0], image, array)


def test_implicit_vr(read, image):
    dataset = segmentation(image, drawn(), NAMES)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    check(read(pydicom.dcmread(_implicit(dataset))), image, drawn())


def _implicit(dataset):
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=True, little_endian=True)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("omit", [True, False])
@pytest.mark.parametrize("spacing", ["shared", "per frame", "no slice spacing", "top level"])
def test_pixel_measures_wherever_they_are(read, image, omit, spacing):
    dataset = segmentation(image, drawn(), NAMES, omit_empty_frames=omit)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence
    if spacing == "no slice spacing":  # two frames, three slices apart: nothing says so but their positions
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            delattr(measures[0], name)
    elif spacing != "shared":
        del shared.PixelMeasuresSequence
        if spacing == "top level":
            dataset.PixelSpacing = measures[0].PixelSpacing
        else:
            for frame in dataset.PerFrameFunctionalGroupsSequence:
                frame.PixelMeasuresSequence = measures
    check(read(dataset), image, drawn())


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(3)), turn=st.tuples(*[st.floats(-180, 180)] * 3), seed=st.integers(0, 2**16))
def test_any_order_of_frames_and_any_rotation(make_series, tmp_path_factory, order, turn, seed):
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * [1, 1, -1 if seed % 2 else 1]
    image = make_series(np.arange(6 * 7 * 9).reshape(6, 7, 9), axes=axes)
    random = np.random.default_rng(seed)
    array = np.zeros((6, 7, 9, 2), np.uint8)
    for depth, number in ((1, 0), (4, 0), (1, 1)):
        array[depth, ..., number] = random.random((7, 9)) < 0.4
    folder = tmp_path_factory.mktemp("seg")
    dataset = reorder_frames(segmentation(image, array, NAMES), order)
    segments, _ = place(source(save(dataset, folder / "label.dcm")), [home(image, folder)], folder)
    check(segments, image, array)


def test_all_segments_as_one_by_the_name_of_the_rule(read, image):
    segments = read(segmentation(image, drawn(), NAMES), name="tumour")
    assert segments.names == {1: ("tumour",)}
    check(segments, image, drawn().any(axis=-1, keepdims=True), ["tumour"])


def test_names_prefer_the_label_then_the_code(read, image):
    names = ["Enhancing lesion", "Segment 2", "drawn by Smith", "Astrozytom"]
    array = np.zeros((6, 7, 9, 4), np.uint8)
    array[2, 2, range(4), range(4)] = 1
    dataset = segmentation(image, array, names, segment_descriptions=described(names, codes.SCT.Edema))
    assert list(read(dataset, known=frozenset(["Astrozytom"])).names.values()) == [("Enhancing lesion",), ("Edema",), ("Edema",), ("Astrozytom",)]


def test_a_label_without_a_voxel_is_kept_and_says_so(read, image):
    segments = read(segmentation(image, np.zeros_like(drawn()), NAMES, omit_empty_frames=False))
    assert not segments.array.any() and segments.note == "no voxel is labelled"
    assert segments.names == {1: ("Necrosis",), 2: ("Enhancing lesion",)}


def test_the_image_it_refers_to_comes_first(image, make_series, tmp_path):
    other = make_series(image.array[::-1], description="other", axes=image.axes)
    path = save(segmentation(image, drawn(), NAMES), tmp_path / "label.dcm")
    homes = [home(other, tmp_path, "series-B"), home(image, tmp_path), home(image, tmp_path, "series-C", "frame-C")]
    assert place(source(path), homes, tmp_path)[1].item == ITEM and not place(source(path), homes, tmp_path)[0].note
    segments, found_on = place(source(path, refers_to="series-X"), homes, tmp_path)
    assert found_on.item == "series-B" and segments.note == "drawn on another series of its frame of reference"
    volume = home(image, tmp_path, f"{ITEM}_echo-2")
    assert place(source(path), [homes[0], volume], tmp_path)[1] is volume
    assert place(source(path, frame="frame-C"), homes, tmp_path)[1].item == "series-C"


def move(dataset, mm):
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0]
        position.ImagePositionPatient = list(np.array(position.ImagePositionPatient, float) + mm)
    return dataset


def _step(dataset) -> np.ndarray:
    """One slice, mm."""
    cosines = np.array(dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient, float)
    return 5.0 * np.cross(cosines[:3], cosines[3:])


def twice(dataset):
    dataset.PerFrameFunctionalGroupsSequence[1] = dataset.PerFrameFunctionalGroupsSequence[0]
    return dataset


def without(dataset, *names):
    for name in names:
        for frame in (*dataset.PerFrameFunctionalGroupsSequence, *dataset.SharedFunctionalGroupsSequence):
            frame.pop(name, None)
    return dataset


def changed(dataset, **values):
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


@pytest.mark.parametrize(("damage", "code", "reason"), [
    (lambda ds: move(ds, [0, 0, 0.5]), "label-grid", r"3 of its 3 frames lie off the image's grid, by up to 0\.\d+ of a voxel"),
    (lambda ds: move(ds, 20 * _step(ds)), "label-grid", "1 of its 1 labelled voxels lie outside the image"),
    (lambda ds: without(ds, "PlanePositionSequence"), "label-geometry", "frame 1 of 3 has no usable ImagePositionPatient"),
    (lambda ds: without(ds, "PixelMeasuresSequence"), "label-geometry", "frame 1 of 3 has no usable PixelSpacing"),
    (twice, "label-geometry", "1 of its 3 frames lie where another frame of the same segment does"),
    (lambda ds: without(ds, "SegmentIdentificationSequence"), "label-geometry", "frame 1 does not say which segment"),
    (lambda ds: changed(ds, SegmentSequence=ds.SegmentSequence[:1]), "label-values", "1 of its segment numbers are not described"),
    (lambda ds: changed(ds, SegmentationType="OTHER"), "label-values", "none of BINARY"),
    (lambda ds: changed(ds, SegmentationType="FRACTIONAL"), "label-values", "no MaximumFractionalValue"),
    (lambda ds: changed(ds, PixelData=ds.PixelData[:10]), "truncated-file", "10 of 24 bytes"),
])
def test_what_cannot_be_placed_is_refused_with_numbers(read, image, damage, code, reason):
    with pytest.raises(Refused, match=reason) as refused:
        read(damage(segmentation(image, drawn(), NAMES)))
    assert refused.value.code == code


@pytest.mark.parametrize(("changes", "reason"), [
    ({"spacing": (5.0, 2.4, 1.6)}, "another pixel size"), ({"spacing": (5.0, 1.2 * 1.02, 0.8)}, "off the image's grid"),
    ({"spacing": (5.3, 1.2, 0.8)}, r"2 of its 3 frames .* by up to 0\.23"),
    ({"axes": np.eye(3)}, "off the image's grid|turned")])
def test_an_image_on_another_grid_is_refused(image, make_series, tmp_path, changes, reason):
    other = replace(image, **changes)
    path = save(segmentation(image, drawn(), NAMES), tmp_path / "label.dcm")
    with pytest.raises(Refused, match=reason) as refused:
        place(source(path), [home(other, tmp_path)], tmp_path)
    assert refused.value.code == "label-grid" and "none of the 1 image(s) of its session, of which 1 share" in refused.value.reason


def test_without_an_image_of_its_frame(image, tmp_path):
    path = save(segmentation(image, drawn(), NAMES), tmp_path / "label.dcm")
    with pytest.raises(Refused, match="of which 0 share"):
        place(source(path), [home(image, tmp_path, frame="other")], tmp_path)
    with pytest.raises(Refused) as refused:
        place(source(path), [], tmp_path)
    assert refused.value.code == "label-without-image"
    with pytest.raises(Refused, match="holds 2 label objects"):
        place(source(path, paths=(path, path)), [home(image, tmp_path)], tmp_path)


def test_references(image):
    dataset = segmentation(image, drawn(), NAMES)
    assert referenced_series(dataset) == [image.datasets()[0].SeriesInstanceUID]
    assert frame_of_reference(dataset) == image.datasets()[0].FrameOfReferenceUID
