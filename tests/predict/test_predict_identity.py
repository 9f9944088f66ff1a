"""Names stay in the objects that are filed under them; and many predictions at once are the same as one after the other."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pydicom
import pytest
from tiny_studies import ROOT, Look, contents, settings, write_study

from pipelines.errors import DataError
from pipelines.parallel import spread
from pipelines.predict.run import predict_study
from pipelines.predict.seg import SERIES

CANARIES = {"PatientName": "Zqbirdname^Zqfirst", "PatientID": "ZQID77", "PatientBirthDate": "19510203", "AccessionNumber": "ZQACC9",
            "StudyID": "ZQST1",
            "ReferringPhysicianName": "Zqreferrer", "PatientAddress": "1 Zqstreet", "InstitutionName": "Zqhospital", "OperatorsName": "Zqoperator",
            "StudyDescription": "Zqstudywords", "IssuerOfPatientID": "ZQISSUER", "OtherPatientIDs": "ZQOTHER", "PatientComments": "Zqcomment",
            "ProtocolName": "Zqprotocol", "StationName": "ZQSTATION", "DeviceSerialNumber": "ZQSERIAL", "AdditionalPatientHistory": "Zqhistory"}


def planted(folder: Path, number: int = 40) -> tuple[Path, set[bytes]]:
    """A study with a word of its own in every field that names somebody, and those words with its UIDs."""
    study, words = write_study(folder, number), {value.encode() for value in CANARIES.values()} | {b"Zqbirdname", b"Zqfirst"}
    for path in study.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for name, value in CANARIES.items():
            setattr(dataset, name, value)
        dataset.save_as(path)
        words |= {str(dataset[name].value).encode() for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")}
    return study, words


def holders(words: set[bytes], *folders: Path) -> set[str]:
    """Files, by name or content, in which one of the words is, in any case."""
    lower, found = {word.lower() for word in words}, set()
    for folder in folders:
        for path in folder.rglob("*"):
            content = str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b"")
            if any(word in content.lower() for word in lower):
                found.add(path.name.rpartition("_")[2])
    return found


def test_identifiers_are_in_the_objects_and_nowhere_else(model, tmp_path, monkeypatch, capfd, caplog):
    study, words = planted(tmp_path / "in")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    with caplog.at_level(logging.DEBUG):
        predict_study(study, tmp_path / "out", model, settings(), even_if_withheld=True)
    said = "".join([*capfd.readouterr(), caplog.text]).encode().lower()
    assert not [word for word in words if word.lower() in said]
    assert holders(words, tmp_path / "out") == {f"{kind}.dcm" for kind in SERIES}
    assert not list((tmp_path / "scratch").iterdir()), "the ingested study does not stay behind"
    seg = pydicom.dcmread(next((tmp_path / "out").glob("*_seg.dcm")))
    assert {name: str(seg[name].value) for name in ("PatientName", "PatientID", "AccessionNumber", "IssuerOfPatientID")} == {
        name: CANARIES[name] for name in ("PatientName", "PatientID", "AccessionNumber", "IssuerOfPatientID")}


def test_a_withheld_study_leaves_no_identifier(model, tmp_path):
    study, words = planted(tmp_path / "in")
    verdict = predict_study(study, tmp_path / "out", model, settings(required=["PET"]))
    assert verdict.withheld
    assert holders(words, tmp_path / "out") == set()


def test_headers_that_no_object_can_be_made_of_are_a_sentence_without_them(model, tmp_path, capfd, caplog):
    study, words = planted(tmp_path / "in")
    for path in study.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            dataset.add_new("PatientBirthDate", "DA", "Zqfirst")
            dataset.add_new("PatientSex", "CS", "ZQID77")
        dataset.save_as(path)
    try:
        predict_study(study, tmp_path / "out", model, settings(), even_if_withheld=True)
    except DataError as error:
        assert "do not allow a segmentation object" in str(error)
        assert not [word for word in words if word.lower() in str(error).encode().lower()]
    else:
        pytest.fail("a birth date that is none was written into an object")
    said = "".join([*capfd.readouterr(), caplog.text]).encode().lower()
    assert not [word for word in words if word.lower() in said]
    assert not (tmp_path / "out").exists()


def _predict_one(model, home: Path, index: int) -> None:
    predict_study(home / f"study-{50 + index}", home / f"process-{index}", model, settings(), even_if_withheld=True)


@pytest.mark.slow
def test_ten_at_once_are_the_same_as_one_after_the_other(model, tmp_path):
    """In processes of their own, and on threads of one (three of them: there they take turns)."""
    look = Look(shape=(6, 56, 48))
    studies = [write_study(tmp_path / f"study-{number}", number, look) for number in range(50, 60)]

    def predict(index: int, kind: str) -> None:
        predict_study(studies[index], tmp_path / f"{kind}-{index}", model, settings(), even_if_withheld=True)

    for index in range(10):
        predict(index, "alone")
    list(spread(partial(_predict_one, model, tmp_path), range(10), 10))
    threads = [threading.Thread(target=predict, args=(index, "thread")) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(10):
        alone = contents(tmp_path / f"alone-{index}")
        assert len(alone) == 5
        assert contents(tmp_path / f"process-{index}") == alone
        assert index > 2 or contents(tmp_path / f"thread-{index}") == alone


@pytest.mark.slow
def test_the_command_works_without_any_server(bundle, tmp_path):
    """From a zip, in a process of its own that knows no Prefect server and no MLflow store."""
    study = write_study(tmp_path / "study", 61)
    shutil.make_archive(str(tmp_path / "export"), "zip", study)
    command = [sys.executable, "-m", "flows.predict", str(tmp_path / "export.zip"), "--out", str(tmp_path / "out"), "--model", str(bundle)]
    quiet = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "MLFLOW_TRACKING_URI": "sqlite:////nowhere/at/all.db", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=quiet)
    assert done.returncode == 0, done.stderr
    assert "written to" in done.stdout
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".dcm", ".json", ".png"}
    both = subprocess.run([*command, "--site", "site-b"], capture_output=True, text=True, check=False, cwd=ROOT, env=quiet)
    assert both.returncode == 2
    assert "give exactly one of --site and --model" in both.stderr
