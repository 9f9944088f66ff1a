"""Segmentation objects and mask series become one integer label on the grid of their image, or are refused, never resampled."""

from __future__ import annotations

import highdicom as hd
import nibabel
import numpy as np
import pytest
from pydicom.sr.codedict import codes
from scipy.spatial.transform import Rotation

from pipelines.cohort import read_manifest, read_quarantine

NAMES = ["Necrosis", "Enhancing lesion"]


@pytest.fixture
def image(make_series, voxels):
    return make_series(voxels, axes=Rotation.from_euler("xyz", [12, 20, -7], degrees=True).as_matrix())


def masks(shape=(6, 7, 8)) -> np.ndarray:
    """Two segments on two of six slices."""
    array = np.zeros((*shape, 2), np.uint8)
    array[2, 1:4, 2:5, 0] = 1
    array[3, 2:6, 3:7, 1] = 1
    return array


def write_segmentation(datasets, array: np.ndarray, path, names=NAMES) -> None:
    described = [hd.seg.SegmentDescription(
        segment_number=number, segment_label=name, segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion, algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL) for number, name in enumerate(names, 1)]
    segmentation = hd.seg.Segmentation(
        datasets, array, hd.seg.SegmentationTypeValues.BINARY, described, series_instance_uid=hd.UID(), series_number=9, sop_instance_uid=hd.UID(),
        instance_number=1, manufacturer="x", manufacturer_model_name="x", software_versions="1", device_serial_number="1")
    path.parent.mkdir(parents=True, exist_ok=True)
    segmentation.save_as(path)


def read_label(folder):
    rows = read_manifest(folder)
    row = rows[rows.kind == "label"].iloc[0]
    path = folder / row.path
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine, path.with_name(path.name.replace(".nii.gz", ".tsv")).read_text(), row


@pytest.mark.parametrize("slices", [[2, 3], [2], [0, 3, 5]], ids=["two slices", "one slice", "far apart"])
def test_segments_lie_where_they_were_drawn(image, convert, tmp_path, slices):
    image.write(tmp_path / "in" / "image")
    drawn = np.zeros((6, 7, 8, 2), np.uint8)
    for index in slices:
        drawn[index, 1:4, 2:5, 0] = 1
        drawn[index, 4:6, 3:7, 1] = 1
    write_segmentation(image.datasets(), drawn, tmp_path / "in" / "seg" / "0.dcm")
    convert(tmp_path / "in", tmp_path / "out")
    array, affine, lookup, row = read_label(tmp_path / "out")
    assert lookup == "index\tname\n1\tNecrosis\n2\tEnhancing lesion\n"
    assert row.note == "on the grid of T1w"
    scan = nibabel.load(next((tmp_path / "out").glob("sub-*/ses-01/anat/*_T1w.nii.gz")))
    np.testing.assert_allclose(affine, scan.affine, atol=1e-6)
    values = np.asarray(scan.dataobj)
    for number in (1, 2):  # every voxel value occurs once, so values name places
        assert set(values[array == number]) == set(image.array[drawn[..., number - 1] > 0])


def test_segmentation_drawn_on_shuffled_files_in_another_order(image, convert, tmp_path):
    image.write(tmp_path / "in" / "image")
    order = [5, 2, 0, 1, 4, 3]
    datasets = image.datasets()
    write_segmentation([datasets[index] for index in order], masks()[order], tmp_path / "in" / "seg" / "0.dcm")
    convert(tmp_path / "in", tmp_path / "out")
    array, *_ = read_label(tmp_path / "out")
    scan = np.asarray(nibabel.load(next((tmp_path / "out").glob("sub-*/ses-01/anat/*_T1w.nii.gz"))).dataobj)
    assert set(scan[array == 2]) == set(image.array[masks()[..., 1] > 0])


def test_overlapping_segments_share_a_value_that_names_both(image, convert, tmp_path):
    image.write(tmp_path / "in" / "image")
    both = masks()
    both[2, 2, 2, :] = 1
    write_segmentation(image.datasets(), both, tmp_path / "in" / "seg" / "0.dcm")
    convert(tmp_path / "in", tmp_path / "out")
    array, _, lookup, _ = read_label(tmp_path / "out")
    assert lookup == "index\tname\n1\tNecrosis\n2\tEnhancing lesion\n3\tNecrosis & Enhancing lesion\n"
    scan = np.asarray(nibabel.load(next((tmp_path / "out").glob("sub-*/ses-01/anat/*_T1w.nii.gz"))).dataobj)
    assert scan[array == 3].tolist() == [image.array[2, 2, 2]]


def test_segmentation_of_an_image_on_another_grid_is_refused(image, make_series, voxels, convert, tmp_path):
    image.write(tmp_path / "in" / "image")
    other = make_series(voxels, description="other", axes=image.axes, spacing=(5.0, 1.0, 1.0))
    write_segmentation(other.datasets(), masks(), tmp_path / "in" / "seg" / "0.dcm")
    summary = convert(tmp_path / "in", tmp_path / "out")
    assert (summary.images, summary.labels) == (1, 0)
    refused = read_quarantine(tmp_path / "out").iloc[0]
    assert refused.code == "label-grid"
    assert "none of the 1 image(s)" in refused.reason


def test_mask_series_is_binary_with_the_name_of_its_rule(image, make_series, convert, tmp_path):
    image.write(tmp_path / "in" / "image")
    drawn = masks()[..., 0] * 7
    secondary_capture = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "RescaleSlope": 1.5, "RescaleIntercept": 0}
    make_series(drawn[2:4], description="Mask_Tumor", axes=image.axes, tags=secondary_capture,
                origin=tuple(np.array(image.origin) + 2 * 5.0 * image.axes[:, 2])).write(tmp_path / "in" / "mask")
    convert(tmp_path / "in", tmp_path / "out")
    array, _, lookup, row = read_label(tmp_path / "out")
    assert lookup == "index\tname\n1\ttumour\n"
    assert array.sum() == 9
    assert row["shape"] == "8x7x6"


def test_label_without_any_image_of_its_session(image, make_series, voxels, convert, tmp_path):
    make_series(voxels, patient="patient-2").write(tmp_path / "in" / "image")
    write_segmentation(image.datasets(), masks(), tmp_path / "in" / "seg" / "0.dcm")
    convert(tmp_path / "in", tmp_path / "out")
    assert read_quarantine(tmp_path / "out").code.tolist() == ["label-without-image"]
