"""Nothing that identifies a patient is in any byte written or printed, and the key is guarded."""

from __future__ import annotations

import gzip
import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from pipelines.cohort import read_manifest
from pipelines.errors import UsageError
from pipelines.ingest.pseudonyms import Pseudonyms, load_key
from pipelines.ingest.rules import model, vendor
from pipelines.ingest.stage import ingest

CANARIES = ["Quetzalcoatl", "Xiuhtecuhtli", "MRN8675309", "19310217", "Tlaloc", "Coyolxauhqui", "Huitzilopochtli", "ACC555777", "Mictlan", "20200101",
            "Tezcatlipoca", "2.25."]


def plant(dataset, index):
    """Identity wherever a header has room for it."""
    dataset.PatientName, dataset.PatientBirthDate, dataset.AccessionNumber = "Quetzalcoatl^Xiuhtecuhtli", "19310217", "ACC555777"
    dataset.ReferringPhysicianName, dataset.InstitutionName, dataset.OperatorsName = "Tlaloc", "Coyolxauhqui Clinic", "Tlaloc"
    dataset.SeriesDescription, dataset.StudyDescription = f"{dataset.SeriesDescription} Quetzalcoatl", "Huitzilopochtli"
    dataset.ImageComments, dataset.ProtocolName, dataset.StationName = "Mictlan", "Tezcatlipoca", "Mictlan"
    dataset.Manufacturer, dataset.ManufacturerModelName = "Tezcatlipoca Imaging", "Avanto of Quetzalcoatl"
    dataset.ContrastBolusAgent = "given by Tlaloc"
    dataset.private_block(0x0009, "Mictlan", create=True).add_new(1, "LO", "Huitzilopochtli")


@pytest.fixture(scope="module")
def planted(make_series, tmp_path_factory):
    """A source with good and bad series, names planted in headers, folders and files."""
    import numpy as np

    source = tmp_path_factory.mktemp("source") / "in"
    voxels = np.random.default_rng(0).permutation(6 * 7 * 8).reshape(6, 7, 8)
    names = [f"Quetzalcoatl_{index}.dcm" for index in range(6)]
    home = source / "Quetzalcoatl_MRN8675309" / "19310217"
    make_series(voxels, patient="MRN8675309", per_slice=plant).write(home / "Huitzilopochtli", names)
    hole = make_series(voxels, patient="MRN8675309", description="t2", per_slice=plant).write(home / "Mictlan", names)
    hole[2].unlink()
    cut = make_series(voxels, patient="MRN8675309", description="flair", per_slice=plant).write(home / "Tlaloc", names)
    cut[0].write_bytes(cut[0].read_bytes()[:180])
    cut[1].write_bytes(cut[1].read_bytes()[:-50])
    make_series(voxels, patient="MRN8675309", description="Sonderfall", per_slice=plant).write(home / "Tezcatlipoca", names)

    def invalid(dataset, index):
        plant(dataset, index)
        dataset.add_new(0x00180080, "DS", "500") if index else dataset.add_new(0x00180080, "LO", "Tlaloc")
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0

    make_series(voxels, patient="MRN8675309", study="20210101", per_slice=invalid).write(home / "Coyolxauhqui", names)
    (home / "Quetzalcoatl.nii.gz").write_bytes(b"no nifti")
    (home / "Quetzalcoatl.txt").write_text("Quetzalcoatl")
    return source


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_no_output_byte_names_the_patient(planted, key_file, tmp_path, packed):
    source = planted
    if packed:
        source = tmp_path / "export.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in sorted(planted.rglob("*")):
                archive.write(path, path.relative_to(planted.parent))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "pipelines.ingest", "--source", str(source), "--out", str(tmp_path / "out" / "bids")]
    done = subprocess.run(
        [*command, "--site", "here", "--key", str(key_file)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env={**os.environ, "TMPDIR": str(scratch)})
    seen = [done.stdout.encode(), done.stderr.encode()]
    for path in (tmp_path / "out").rglob("*"):
        seen.append(str(path.relative_to(tmp_path / "out")).encode())
        if path.is_file():
            content = path.read_bytes()
            seen += [content, gzip.decompress(content)] if path.suffix == ".gz" else [content]
    for canary in CANARIES:
        assert not [text for text in seen if canary.lower().encode() in text.lower()], canary
    assert not list(scratch.rglob("*.dcm"))
    assert not [path for path in scratch.iterdir() if path.name.startswith("semiflow-")]
    assert b"missing-slices" in (tmp_path / "out" / "bids" / "quarantine.tsv").read_bytes()


def test_error_when_nothing_is_left_does_not_name_the_patient(cli, make_series, voxels, tmp_path):
    make_series(voxels[:1], patient="MRN8675309", per_slice=plant).write(tmp_path / "in" / "Quetzalcoatl", ["Quetzalcoatl.dcm"])
    code, printed = cli(tmp_path / "in", tmp_path / "out")
    assert code == 1
    assert "single-slice" in printed
    assert not [canary for canary in CANARIES if canary in printed]


def test_unpacked_files_vanish_and_have_no_names(planted, tmp_path, monkeypatch):
    from pipelines.ingest.source import open_source

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in planted.rglob("*"):
            archive.write(path, path.relative_to(planted.parent))
    with open_source(tmp_path / "in.zip") as files:
        assert len(files) == 31
        assert all(re.fullmatch(r"\d{7}(\.nii\.gz)?", file.path.name) for file in files)
        folder = files[0].path.parent
    assert not folder.exists()


def test_pseudonyms_depend_on_key_patient_and_issuer():
    one, other = Pseudonyms(b"1" * 16), Pseudonyms(b"2" * 16)
    names = {one("subject", "7", ""), one("subject", "7", "hospital"), one("subject", "8", ""), other("subject", "7", "")}
    assert len(names) == 4
    assert all(re.fullmatch("[A-Z2-7]{8}", name) for name in names)
    assert one("subject", "7", "") == Pseudonyms(b"1" * 16)("subject", "7", "")


def test_own_key_is_made_once_and_for_the_user_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SEMIFLOW_KEY_FILE", raising=False)
    first = load_key(None)
    path = tmp_path / ".config" / "semiflow" / "pseudonym.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "made a new pseudonym key" in (printed := capsys.readouterr().out)
    assert first.decode() not in printed
    assert load_key(None) == first
    assert capsys.readouterr().out == ""
    assert list(path.parent.iterdir()) == [path]


def test_key_named_by_the_environment(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("sixteen bytes and more")
    monkeypatch.setenv("SEMIFLOW_KEY_FILE", str(tmp_path / "key"))
    assert load_key(None) == b"sixteen bytes and more"
    monkeypatch.setenv("SEMIFLOW_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="does not exist"):
        load_key(None)


def test_dates_move_and_devices_go_where_params_say_so(make_series, voxels, params, key_file, tmp_path):
    for date in ("20200101", "20200131"):
        make_series(voxels, study=date).write(tmp_path / "in" / date)
    options = params.ingest.deidentify.model_copy(update={"dates": "shift", "device": "remove"})
    changed = params.model_copy(update={"ingest": params.ingest.model_copy(update={"deidentify": options})})
    ingest(tmp_path / "in", tmp_path / "out", changed, key_file=key_file, jobs=1)
    manifest = read_manifest(tmp_path / "out")
    assert set(manifest.manufacturer) == set(manifest.scanner) == {""}
    table, = (tmp_path / "out").glob("sub-*/sub-*_sessions.tsv")
    dates = pd.read_csv(table, sep="\t", parse_dates=["acq_time"])
    assert dates.session_id.tolist() == ["ses-01", "ses-02"]
    assert (dates.acq_time[1] - dates.acq_time[0]).days == 30
    assert dates.acq_time.max() < pd.Timestamp("2020-01-01")


def test_makers_are_spelled_one_way_and_models_carry_no_name():
    spelled = {"SIEMENS": "Siemens", "Siemens Healthineers": "Siemens", "GE MEDICAL SYSTEMS": "GE", "Philips Medical Systems": "Philips",
               "TOSHIBA_MEC": "Toshiba", "Canon Medical": "Canon", "Dr Smith's own": "other", "": ""}
    assert {text: vendor(text) for text in spelled} == spelled
    assert model("Signa HDxt") == "Signa HDxt"
    assert model("Ingenuity TF PET/CT") == "Ingenuity TF PET CT"
    assert model("Signa of SMITH") == "Signa"


def test_terminated_run_removes_what_it_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("Quetzalcoatl.dcm", b"x")
    code = ("import os, signal, sys; from pathlib import Path; from pipelines.ingest.source import open_source\n"
            "with open_source(Path(sys.argv[1])) as files:\n    os.kill(os.getpid(), signal.SIGTERM)\n")
    (tmp_path / "scratch").mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "in.zip")], check=False, cwd=Path(__file__).parents[2],
                          env={**os.environ, "TMPDIR": str(tmp_path / "scratch")})
    assert done.returncode == 143
    assert not list((tmp_path / "scratch").iterdir())
