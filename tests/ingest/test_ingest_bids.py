"""NIfTI files named as BIDS names them come through with their subjects, labels with their lookups, and tables without identity."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from pipelines.cohort import read_manifest, read_quarantine
from pipelines.errors import DataError
from pipelines.ingest.bids import modality_of
from pipelines.ingest.stage import ingest
from pipelines.params import SiteRule

LAS = np.diag([-1.0, 1.0, 5.0, 1.0])


def write(path, array=None, affine=LAS, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(len(path.name)).integers(0, 200, (8, 7, 6)) if array is None else array
    nibabel.save(nibabel.Nifti1Image(array.astype(dtype), affine), path)


@pytest.fixture
def by_folder(params):
    return params.model_copy(update={"cohort": params.cohort.model_copy(update={"site": SiteRule(folder=0)})})


def test_names_decide_modalities(params):
    known = params.ingest.modalities
    assert modality_of({"ce": "GADOLINIUM"}, "T1w", known) == "ceT1w"
    assert modality_of({"acq": "mprage", "run": "2", "ses": "1"}, "T1w", known) == "T1w"
    assert modality_of({"desc": "subtraction"}, "t1W", known) == "dT1"
    assert modality_of({"desc": "preproc"}, "T1w", known) is None
    assert modality_of({}, "bold", known) is None


def test_layout_of_sites_with_labels_and_tables(by_folder, tmp_path):
    source = tmp_path / "in"
    write(source / "CS" / "sub-A1" / "anat" / "sub-A1_ses-x2_T1w.nii.gz", dtype=np.float64)
    write(source / "CS" / "sub-A1" / "anat" / "sub-A1_ses-x2_ce-GADOLINIUM_T1w.nii.gz")
    (source / "CS" / "sub-A1" / "anat" / "sub-A1_ses-x2_T1w.json").write_text(json.dumps(
        {"RepetitionTime": 0.5, "Manufacturer": "SIEMENS", "PatientName": "Smith", "MagneticFieldStrength": 3}))
    label = np.zeros((8, 7, 6))
    label[2, 3, 4], label[5, 1, 1] = 1, 4
    write(source / "CS" / "sub-A1" / "anat" / "sub-A1_ses-x2_dseg.nii.gz", label)
    write(source / "DU" / "sub-B" / "sub-B_FLAIR.nii.gz")
    write(source / "DU" / "sub-B" / "sub-B_dseg.nii.gz", label)
    (source / "DU" / "sub-B" / "sub-B_dseg.tsv").write_text("index\tname\n1\tNecrosis\n4\tEdema\n")
    (source / "participants.tsv").write_text("participant_id\tfull_name\tscan_date\tgrade\tage\tremark\tdeath01\tmrn\n"
                                             "sub-A1\tSmith\t19990101\tII\t93\tsaw Smith\t1\t123\nsub-B\tJones\t19990102\tIII\t40\tnone\t0\t124\n")
    summary = ingest(source, tmp_path / "out", by_folder, jobs=1)
    assert (summary.subjects, summary.images, summary.labels, summary.quarantined) == (2, 3, 2, 0)
    table = read_manifest(tmp_path / "out")
    assert dict(zip(table.subject, table.site, strict=True)) == {"A1": "CS", "B": "DU"}
    first = table[(table.modality == "T1w")].iloc[0]
    assert (first.session, first.tr_ms, first.manufacturer, first.field_strength_t, first.slice_axis) == ("x2", 500.0, "Siemens", 3.0, 2)
    participants = (tmp_path / "out" / "participants.tsv").read_text().splitlines()
    assert participants == ["participant_id\tsite\tgrade\tage\tdeath01", "sub-A1\tCS\tII\t90\t1", "sub-B\tDU\tIII\t40\t0"]
    lookups = [path.read_text() for path in sorted((tmp_path / "out").rglob("*_dseg.tsv"))]
    assert lookups == ["index\tname\n1\t1\n4\t4\n", "index\tname\n1\tNecrosis\n4\tEdema\n"]
    image, placed = (nibabel.load(next((tmp_path / "out").rglob(name))) for name in ("*x2_T1w.nii.gz", "*A1_ses-x2_dseg.nii.gz"))
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(image.affine, placed.affine)
    assert np.argwhere(np.asarray(placed.dataobj) == 4).tolist() == [[2, 1, 1]]  # the first axis is flipped: 7 - 5


@pytest.mark.parametrize("affine", [np.diag([-1.0, 1.0, 5.5, 1.0]), LAS + np.eye(4)[[3, 0, 1, 2]] * 0.01], ids=["spacing", "sheared-or-shifted"])
def test_label_on_another_grid_is_refused(params, tmp_path, affine):
    write(tmp_path / "in" / "sub-A" / "sub-A_T1w.nii.gz")
    write(tmp_path / "in" / "sub-A" / "sub-A_dseg.nii.gz", np.ones((8, 7, 6)), affine)
    assert ingest(tmp_path / "in", tmp_path / "out", params, jobs=1).labels == 0
    assert read_quarantine(tmp_path / "out").code.tolist() == ["label-grid"]


def test_label_of_another_shape_is_refused(params, tmp_path):
    write(tmp_path / "in" / "sub-A_T1w.nii.gz")
    write(tmp_path / "in" / "sub-A_mask.nii.gz", np.ones((8, 7, 9)))
    ingest(tmp_path / "in", tmp_path / "out", params, jobs=1)
    assert read_quarantine(tmp_path / "out").code.tolist() == ["label-grid"]


def test_files_that_cannot_be_used_are_named_with_a_way_out(params, tmp_path):
    source = tmp_path / "in"
    write(source / "sub-A_T1w.nii.gz")
    write(source / "sub-A_bold.nii.gz")
    write(source / "sub-A_FLAIR.nii.gz", np.ones((8, 7, 6, 3)))
    write(source / "sub-A_T2w.nii.gz")
    (source / "sub-A_T2w.nii.gz").write_bytes((source / "sub-A_T2w.nii.gz").read_bytes()[:150])
    write(source / "sub-A_dseg.nii.gz", np.full((8, 7, 6), 0.5), dtype=np.float32)
    write(source / "Smith.nii.gz")
    write(source / "derivatives" / "sub-A_run-2_T1w.nii.gz")
    write(source / "sub-A_desc-brain_mask.nii.gz", np.ones((8, 7, 6)))
    assert ingest(source, tmp_path / "out", params, jobs=1).images == 1
    quarantine = read_quarantine(tmp_path / "out")
    assert dict(zip(quarantine["item"], quarantine.code, strict=True)) == {
        "file 1 of 8": "not-bids", "sub-A_bold": "unknown-modality", "sub-A_FLAIR": "not-3d", "sub-A_T2w": "unreadable-file",
        "sub-A_dseg": "label-values", "sub-A_run-2_T1w": "duplicate-modality"}
    assert "Smith" not in (tmp_path / "out" / "quarantine.tsv").read_text()


def test_same_subject_name_at_two_sites_stays_two_subjects(by_folder, tmp_path):
    for site in ("CS", "DU"):
        write(tmp_path / "in" / site / "sub-01_T1w.nii.gz")
    ingest(tmp_path / "in", tmp_path / "out", by_folder, jobs=1)
    assert read_manifest(tmp_path / "out").subject.tolist() == ["CS01", "DU01"]


def test_nifti_without_bids_names_says_how_to_name_them(params, tmp_path):
    write(tmp_path / "in" / "FLAIR.nii.gz")
    with pytest.raises(DataError, match="name it sub-<label>"):
        ingest(tmp_path / "in", tmp_path / "out", params, jobs=1)


def test_own_output_is_a_source_and_both_kinds_can_be_mixed(params, make_series, voxels, key_file, tmp_path):
    make_series(voxels).write(tmp_path / "in" / "dicom")
    write(tmp_path / "in" / "bids" / "sub-A_T1w.nii.gz")
    first = ingest(tmp_path / "in", tmp_path / "first", params, key_file=key_file, jobs=1)
    assert (first.subjects, first.images) == (2, 2)
    assert sorted(read_manifest(tmp_path / "first").source_kind) == ["dicom", "nifti"]
    assert ingest(tmp_path / "first", tmp_path / "second", params, jobs=1) == first
    for path in (tmp_path / "first").rglob("*.nii.gz"):
        again = nibabel.load(tmp_path / "second" / path.relative_to(tmp_path / "first"))
        np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(nibabel.load(path).dataobj))


def test_header_of_absurd_size_is_refused_unread(params, tmp_path):
    write(tmp_path / "in" / "sub-A" / "sub-A_FLAIR.nii")
    write(tmp_path / "in" / "sub-B" / "sub-B_FLAIR.nii")
    content = bytearray((tmp_path / "in" / "sub-A" / "sub-A_FLAIR.nii").read_bytes())
    content[42:48] = np.array([30000] * 3, "<i2").tobytes()  # dim[1..3]
    (tmp_path / "in" / "sub-A" / "sub-A_FLAIR.nii").write_bytes(content)
    ingest(tmp_path / "in", tmp_path / "out", params, jobs=1)
    assert read_manifest(tmp_path / "out").subject.tolist() == ["B"]
    assert read_quarantine(tmp_path / "out").code.tolist() == ["absurd-size"]
