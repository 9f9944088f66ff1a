"""Label objects through the whole stage: from a folder of DICOM to the label of a session."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from label_objects import contours_of, save, segmentation, structure_set
from scipy.spatial.transform import Rotation

from pipelines.cohort import read_manifest, read_quarantine


@pytest.fixture
def image(make_series):
    values = np.random.default_rng(0).permutation(6 * 40 * 36).reshape(6, 40, 36)
    return make_series(values, axes=Rotation.from_euler("xyz", [12, 20, -7], degrees=True).as_matrix())


def box(*bounds) -> np.ndarray:
    mask = np.zeros((6, 40, 36), bool)
    mask[tuple(slice(*ends) for ends in bounds)] = True
    return mask


def named(folder) -> tuple[dict[str, set], str]:
    """The image's values under each name of the label's table, and the label's note."""
    rows = read_manifest(folder)
    row = rows[rows.kind == "label"].iloc[0]
    array = np.asarray(nibabel.load(folder / row.path).dataobj)
    scan = np.asarray(nibabel.load(folder / rows[rows.kind == "image"].iloc[0].path).dataobj)
    table = (folder / row.path.replace(".nii.gz", ".tsv")).read_text().splitlines()[1:]
    return {name: set(scan[array == int(value)].tolist()) for value, name in (line.split("\t") for line in table)}, row.note


def test_a_structure_set_and_a_segmentation_become_one_label(image, convert, tmp_path):
    image.write(tmp_path / "in" / "image")
    oedema, core = box((1, 5), (10, 21), (10, 21)), box((2, 4), (5, 15), (12, 30))
    save(structure_set(image, {"Edema": contours_of(image, oedema), "drawn by Smith": []}), tmp_path / "in" / "rt" / "0.dcm")
    save(segmentation(image, core[..., None].astype(np.uint8), ["Necrosis"]), tmp_path / "in" / "seg" / "0.dcm")
    convert(tmp_path / "in", tmp_path / "out")
    found, note = named(tmp_path / "out")
    assert set().union(*(values for name, values in found.items() if "Edema" in name)) == set(image.array[oedema].tolist())
    assert set().union(*(values for name, values in found.items() if "Necrosis" in name)) == set(image.array[core].tolist())
    assert set(found) in ({"Edema", "segment 2", "Necrosis", both} for both in ("Edema & Necrosis", "Necrosis & Edema"))
    assert note.startswith("on the grid of T1w") and not len(read_quarantine(tmp_path / "out"))


def test_a_fractional_segmentation_says_where_it_was_cut(image, convert, tmp_path):
    image.write(tmp_path / "in" / "image")
    shares = np.stack([box((1, 3), (2, 9), (3, 8)) * 0.4 + box((2, 3), (2, 9), (3, 8)) * 0.4], axis=-1)
    save(segmentation(image, shares, ["Necrosis"], "FRACTIONAL"), tmp_path / "in" / "seg" / "0.dcm")
    convert(tmp_path / "in", tmp_path / "out")
    found, note = named(tmp_path / "out")
    assert found == {"Necrosis": set(image.array[box((2, 3), (2, 9), (3, 8))].tolist())}
    assert note == "on the grid of T1w; fractional probability, cut at 0.5"


def test_contours_off_the_image_go_to_quarantine_without_a_header_value(image, convert, tmp_path):
    image.write(tmp_path / "in" / "image")
    dataset = structure_set(image, {"Smith": contours_of(image, box((1, 5), (10, 21), (10, 21)))})
    for item in dataset.ROIContourSequence[0].ContourSequence:
        item.ContourData = [float(value) + 2.5 * (index % 3 == 2) for index, value in enumerate(item.ContourData)]
    save(dataset, tmp_path / "in" / "rt" / "0.dcm")
    convert(tmp_path / "in", tmp_path / "out")
    refused = read_quarantine(tmp_path / "out").iloc[0]
    assert refused.code == "label-grid" and "4 of its 4 contours lie between the slices" in refused.reason and "Smith" not in refused.to_csv()
