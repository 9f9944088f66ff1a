"""Contours become the voxels whose centres they enclose, on the slices they were drawn on, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from label_objects import contour, contours_of, expected, found, home, save, source, structure_set, to_patient
from scipy.spatial.transform import Rotation

from pipelines.errors import Refused
from pipelines.ingest.labels import frame_of_reference, place, referenced_series

SHAPE = (12, 40, 36)
SQUARE = np.array([(9.5, 9.5), (9.5, 20.5), (20.5, 20.5), (20.5, 9.5)])  # rows and columns 10 to 20


@pytest.fixture(params=[(0, 0, 0), (12, 20, -7), (85, 4, 100)], ids=["axial", "oblique", "steep"])
def image(request, make_series):
    return make_series(np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3000, axes=Rotation.from_euler("xyz", request.param, degrees=True).as_matrix())


@pytest.fixture
def read(image, tmp_path):
    def call(regions, edit=lambda dataset: dataset, **more):
        dataset = edit(structure_set(image, regions))
        return place(source(save(dataset, tmp_path / "rt.dcm"), "rtstruct", **more), [home(image, tmp_path)], tmp_path)[0]

    return call


def ring(image, depth, points=SQUARE, kind="CLOSED_PLANAR"):
    points = np.asarray(points, float)
    return contour(to_patient(image, depth, points[:, 0], points[:, 1]), kind)


def box(depths, rows=slice(10, 21), columns=slice(10, 21)) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[depths, rows, columns] = True
    return mask


def distance() -> np.ndarray:
    """From the middle of the volume, in units of an ellipsoid's half axes."""
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in SHAPE], indexing="ij"), axis=-1)
    return np.linalg.norm((grid - [5.3, 19.7, 17.9]) / [4.6, 11, 14], axis=-1)


def test_a_solid_comes_back_voxel_for_voxel(read, image):
    solid = distance() < 1
    segments = read({"Edema": contours_of(image, solid)})
    truth = expected(image, solid, segments)
    assert 2 * (found(segments, "Edema") & truth).sum() / (found(segments, "Edema").sum() + truth.sum()) >= 0.99
    assert segments.names == {1: ("Edema",)} and not segments.note


def test_rectangles_are_exact(read, image):
    segments = read({"Necrosis": [ring(image, depth) for depth in (2, 3, 4)], "Edema": [ring(image, 4, SQUARE + 6)]})
    assert np.array_equal(found(segments, "Necrosis"), expected(image, box(slice(2, 5)), segments))
    assert np.array_equal(found(segments, "Edema"), expected(image, box(4, slice(16, 27), slice(16, 27)), segments))
    assert segments.names[3] == ("Necrosis", "Edema") and (segments.array == 3).sum() == 25


@settings(max_examples=25, deadline=None)
@given(edges=st.tuples(*[st.floats(1, 30)] * 4), angles=st.tuples(*[st.floats(-180, 180)] * 3))
def test_a_voxel_belongs_when_its_centre_is_inside(edges, angles, make_series, tmp_path_factory):
    (top, bottom), (left, right) = sorted(edges[:2]), sorted(edges[2:])
    assume(min(abs(edge - round(edge)) for edge in edges) > 1e-4 and min(bottom - top, right - left) > 1e-3)  # a centre on the line: either side
    image = make_series(np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3000, axes=Rotation.from_euler("xyz", angles, degrees=True).as_matrix())
    folder = tmp_path_factory.mktemp("rt")
    path = save(structure_set(image, {"Edema": [ring(image, 5, [(top, left), (top, right), (bottom, right), (bottom, left)])]}), folder / "rt.dcm")
    segments, _ = place(source(path, "rtstruct"), [home(image, folder)], folder)
    inside = np.zeros(SHAPE, bool)
    inside[5, int(np.ceil(top)):int(np.floor(bottom)) + 1, int(np.ceil(left)):int(np.floor(right)) + 1] = True
    assert np.array_equal(segments.array > 0, expected(image, inside, segments))


HOLE = np.array([(11.5, 11.5), (11.5, 16.5), (16.5, 16.5), (16.5, 11.5)])  # rows and columns 12 to 16


def keyhole() -> np.ndarray:
    return np.concatenate([SQUARE, SQUARE[:1], HOLE[[0, 3, 2, 1]], HOLE[:1]])


@pytest.mark.parametrize(("rings", "note"), [
    (lambda image: [ring(image, 5, keyhole())], ""),
    (lambda image: [ring(image, 5), ring(image, 5, HOLE)], "Edema: 1 contour(s) inside another taken as holes"),
    (lambda image: [ring(image, 5, HOLE), ring(image, 5)], "Edema: 1 contour(s) inside another taken as holes"),
    (lambda image: [ring(image, 5, points, "CLOSEDPLANAR_XOR") for points in (SQUARE, HOLE)], ""),
], ids=["keyhole", "nested", "nested, hole first", "xor"])
def test_holes(read, image, rings, note):
    segments = read({"Edema": rings(image)})
    truth = box(5) & ~box(5, slice(12, 17), slice(12, 17))
    assert np.array_equal(segments.array > 0, expected(image, truth, segments))
    assert segments.note == note


def test_islands_and_copies(read, image):
    segments = read({"Edema": [ring(image, 5), ring(image, 5), ring(image, 5, SQUARE + 12)]})
    assert np.array_equal(segments.array > 0, expected(image, box(5) | box(5, slice(22, 33), slice(22, 33)), segments))


def test_gaps_are_never_filled(read, image):
    segments = read({"Edema": [ring(image, depth) for depth in (2, 3, 6)]})
    assert segments.note == "Edema: 2 slice(s) without contour between the first and the last"
    assert np.array_equal(segments.array > 0, expected(image, box([2, 3, 6]), segments))
    with pytest.raises(Refused, match="contours on 3 slices, no two of them neighbours, and none on the 3 slices between") as refused:
        read({"Edema": [ring(image, depth) for depth in (2, 4, 7)]})
    assert refused.value.code == "label-gaps"
    read({"Edema": [ring(image, 2), ring(image, 7, SQUARE + 12)]})  # two lesions of one slice each


def test_what_encloses_nothing_is_left_out_or_refused(read, image):
    points = [ring(image, 3, SQUARE, "OPEN_PLANAR"), ring(image, 3, SQUARE[:1], "POINT"), ring(image, 3, SQUARE[:2])]
    segments = read({"Edema": [ring(image, 3)], "target": points})
    assert np.array_equal(segments.array > 0, expected(image, box(3), segments))
    assert "1 contour(s) of type OPEN_PLANAR left out" in segments.note and segments.names == {1: ("Edema",), 2: ("target",)}
    with pytest.raises(Refused, match="only 1 OPEN_PLANAR, 1 POINT, 1 closed with fewer than 3 points") as refused:
        read({"target": points})
    assert refused.value.code == "label-points"


def test_a_structure_set_without_contours_is_an_empty_label(read):
    segments = read({"Edema": []})
    assert segments.names == {1: ("Edema",)} and segments.note == "no voxel is labelled"


def test_names_that_may_not_leave(read, image):
    segments = read({"lesion of Smith": [ring(image, 3)], "GTV 1": [ring(image, 5)], "a & b": [ring(image, 7)]})
    assert segments.names == {1: ("segment 1",), 2: ("GTV 1",), 3: ("segment 3",)}


def tilted(image):
    points = np.column_stack([np.array([5, 5, 5.5, 5.5]), SQUARE])
    return contour(np.concatenate([to_patient(image, *np.hsplit(point, 3)) for point in points]))


def unfinished(image):
    item = ring(image, 5)
    item.ContourData = list(item.ContourData)[:-1]
    return item


def offset(image):
    item = ring(image, 5)
    item.ContourOffsetVector = [0, 0, 1]
    return item


@pytest.mark.parametrize(("contours", "code", "reason"), [
    (lambda image: [ring(image, 5), ring(image, 6.2)], "label-grid", "1 of its 2 contours lie between the slices of the image, by up to 0.2 of"),
    (lambda image: [ring(image, 14)], "label-grid", "1 of its 1 contours lie above or below the image's 12 slices"),
    (lambda image: [ring(image, 5, SQUARE + 25)], "label-grid", "116 of the 121 voxels of a contour lie outside the image"),
    (lambda image: [tilted(image)], "label-grid", "one leaves its slice by 0.5 of a slice step"),
    (lambda image: [ring(image, 5), ring(image, 5, SQUARE + 4)], "label-contours", r"two contours of one region cross on one slice \(49 voxels"),
    (lambda image: [ring(image, 5), ring(image, 5, SQUARE + 0.1)], "label-contours", r"cover the same on one slice \(121 voxels"),
    (lambda image: [unfinished(image)], "label-contours", "has 11 coordinates, which are not its 4 points"),
    (lambda image: [offset(image)], "label-contours", "ContourOffsetVector"),
])
def test_contours_without_a_certain_meaning_are_refused(read, image, contours, code, reason):
    with pytest.raises(Refused, match=reason) as refused:
        read({"Edema": contours(image)})
    assert refused.value.code == code


def test_contours_a_hair_off_their_slice_are_taken(read, image):
    segments = read({"Edema": [ring(image, 5.05)]})
    assert np.array_equal(segments.array > 0, expected(image, box(5), segments))


def test_regions_of_two_frames_of_reference_are_refused(read, image):
    def edit(dataset):
        dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"
        return dataset

    with pytest.raises(Refused, match="2 frames of reference") as refused:
        read({"Edema": [ring(image, 3)], "Necrosis": [ring(image, 5)]}, edit)
    assert refused.value.code == "label-frames"


def test_references(image):
    dataset, first = structure_set(image, {"Edema": []}), image.datasets()[0]
    assert referenced_series(dataset) == [first.SeriesInstanceUID]
    assert frame_of_reference(dataset) == first.FrameOfReferenceUID  # not at the top level
    del dataset.ReferencedFrameOfReferenceSequence
    assert referenced_series(dataset) == [] and frame_of_reference(dataset) == ""
