"""What is wrong with an input is said in one sentence, with exit status 2 for misuse and 1 for data that do not allow it."""

from __future__ import annotations

import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML

from pipelines.cohort import read_manifest, read_quarantine


def one_sentence(printed: str) -> str:
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in printed
    return errors[0]


def test_source_that_does_not_exist_is_misuse(cli, tmp_path):
    code, printed = cli(tmp_path / "nowhere", tmp_path / "out")
    assert code == 2
    assert "nowhere does not exist; give a folder" in one_sentence(printed)


def test_unknown_option_is_misuse(cli, tmp_path):
    assert cli(tmp_path, tmp_path / "out", "--sauce", "x")[0] == 2


def test_file_that_is_no_archive_is_misuse(cli, tmp_path):
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and then nothing")
    code, printed = cli(tmp_path / "cut.zip", tmp_path / "out")
    assert code == 2
    assert "truncated zip" in one_sentence(printed)


@pytest.mark.parametrize(("names", "words"), [([], "is empty"), (["notes.txt", "scan.png"], "2 file(s), none of them DICOM or NIfTI")])
def test_folder_without_images(cli, tmp_path, names, words):
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_text("text")
    code, printed = cli(tmp_path / "in", tmp_path / "out")
    assert code == 1
    assert words in one_sentence(printed)
    assert not (tmp_path / "out").exists()


def test_key_that_does_not_exist_or_is_short(cli, tmp_path, make_series, voxels):
    make_series(voxels).write(tmp_path / "in")
    code, printed = cli(tmp_path / "in", tmp_path / "out", key=tmp_path / "none.key")
    assert code == 2
    assert "none.key does not exist" in one_sentence(printed)
    (tmp_path / "short.key").write_text("short")
    assert "has 5 bytes, at least 16" in one_sentence(cli(tmp_path / "in", tmp_path / "out", key=tmp_path / "short.key")[1])


def damage(kind, files):
    if kind == "missing-slices":
        files[2].unlink()
    elif kind == "duplicate-position":
        copy = pydicom.dcmread(files[2])
        copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = f"{copy.SOPInstanceUID}.1"
        copy.save_as(files[2].with_name("copy.dcm"))
    elif kind == "truncated-file":
        files[2].write_bytes(files[2].read_bytes()[:-20])
    elif kind == "unreadable-file":
        for file in files:
            file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize("kind", ["missing-slices", "duplicate-position", "truncated-file", "unreadable-file"])
def test_damaged_series_alone_is_an_error_and_among_others_is_quarantined(cli, tmp_path, make_series, voxels, kind):
    damage(kind, make_series(voxels, description="t2 tse").write(tmp_path / "in" / "t2"))
    code, printed = cli(tmp_path / "in", tmp_path / "out")
    assert code == 1
    assert kind in one_sentence(printed)
    make_series(voxels).write(tmp_path / "in" / "t1")
    assert cli(tmp_path / "in", tmp_path / "out")[0] == 0
    assert read_manifest(tmp_path / "out").modality.tolist() == ["T1w"]
    quarantine = read_quarantine(tmp_path / "out")
    assert set(quarantine.code) == {kind}
    assert quarantine.reason.str.len().min() > 20
    assert quarantine.remedy.str.len().min() > 10


def test_one_file_cut_in_its_header_leaves_a_hole_that_is_seen(cli, tmp_path, make_series, voxels):
    files = make_series(voxels, description="t2 tse").write(tmp_path / "in" / "t2")
    files[2].write_bytes(files[2].read_bytes()[:200])
    make_series(voxels).write(tmp_path / "in" / "t1")
    assert cli(tmp_path / "in", tmp_path / "out")[0] == 0
    assert sorted(read_quarantine(tmp_path / "out").code) == ["missing-slices", "unreadable-file"]


def mixed(dataset, index, kind):
    if index == 0 and kind == "mixed-frame":
        dataset.FrameOfReferenceUID += "1"
    elif index == 0 and kind == "mixed-matrix":
        dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows
    elif index == 0 and kind == "mixed-rescale":
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, 0
    elif kind == "bad-rescale":
        dataset.RescaleSlope, dataset.RescaleIntercept = 0, 0
    elif kind == "no-geometry":
        del dataset.ImagePositionPatient
    elif kind == "no-patient-id":
        dataset.PatientID = ""
    elif kind == "unknown-modality":
        dataset.SeriesDescription = "Sonderfall"
    elif kind == "no-decoder":
        dataset.file_meta.TransferSyntaxUID = MPEG2MPML  # of films, never of a slice
        dataset.PixelData = encapsulate([dataset.PixelData])
    elif kind == "multi-frame":
        dataset.NumberOfFrames = 4
    elif kind == "empty-image":
        dataset.PixelData = bytes(len(dataset.PixelData))


@pytest.mark.parametrize("kind", ["mixed-frame", "mixed-matrix", "mixed-rescale", "bad-rescale", "no-geometry", "no-patient-id", "unknown-modality",
                                  "no-decoder", "multi-frame", "empty-image"])
def test_series_that_cannot_be_used_has_its_code(cli, tmp_path, make_series, voxels, kind):
    make_series(voxels, description="t2 tse", per_slice=lambda dataset, index: mixed(dataset, index, kind)).write(tmp_path / "in" / "t2")
    make_series(voxels).write(tmp_path / "in" / "t1")
    assert cli(tmp_path / "in", tmp_path / "out")[0] == 0
    assert read_quarantine(tmp_path / "out").code.tolist() == [kind]


def test_site_folder_that_is_too_deep_or_names_the_patient(tmp_path, make_series, voxels, params, key_file):
    from pipelines.errors import DataError
    from pipelines.ingest.stage import ingest
    from pipelines.params import SiteRule

    make_series(voxels, patient="Doe^Jane").write(tmp_path / "in" / "north" / "Jane_Doe^Jane")
    for depth, words in ((2, "only 2 folder"), (1, "named after patients")):
        rule = params.model_copy(update={"cohort": params.cohort.model_copy(update={"site": SiteRule(folder=depth)})})
        with pytest.raises(DataError, match=words):
            ingest(tmp_path / "in", tmp_path / "out", rule, key_file=key_file, jobs=1)
    rule = params.model_copy(update={"cohort": params.cohort.model_copy(update={"site": SiteRule(folder=0)})})
    ingest(tmp_path / "in", tmp_path / "out", rule, key_file=key_file, jobs=1)
    assert read_manifest(tmp_path / "out").site.tolist() == ["north"]
