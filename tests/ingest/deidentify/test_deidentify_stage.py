"""A folder or archive of DICOM becomes a de-identified folder with an audit; a run that was killed is resumed."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pandas as pd
import pydicom
import pytest

from pipelines.cli import run
from pipelines.errors import DataError
from pipelines.ingest.deidentify import stage
from pipelines.ingest.deidentify.__main__ import app
from pipelines.ingest.pseudonyms import Pseudonyms


@pytest.fixture
def source(make_series, tmp_path):
    folder = tmp_path / "in"
    voxels = np.arange(3 * 56).reshape(3, 7, 8)
    make_series(voxels, description="t1").write(folder / "a")
    make_series(voxels, description="flair", tags={"BurnedInAnnotation": "YES"}).write(folder / "b")
    (folder / "notes.txt").write_text("x")
    (folder / "c.dcm").write_bytes(b"\0" * 128 + b"DICM broken")
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_every_file_is_accounted_for(source, params, key_file, tmp_path, packed):
    if packed:
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            for path in source.rglob("*"):
                archive.write(path, path.relative_to(source))
    summary = stage.deidentify(tmp_path / "in.zip" if packed else source, tmp_path / "out", params, key_file=key_file, jobs=1)
    assert (summary.subjects, summary.series, summary.files, summary.refused) == (1, 1, 3, 5)
    files = sorted((tmp_path / "out").rglob("*.dcm"))
    name = Pseudonyms(key_file.read_bytes())
    assert [path.name for path in files] == ["000001.dcm", "000002.dcm", "000003.dcm"]
    assert files[0].parts[-4] == f"sub-{name('subject', 'patient-1', '')}"
    assert {str(pydicom.dcmread(path).PatientID) for path in files} == {name("subject", "patient-1", "")}
    codes = sorted(pd.read_csv(tmp_path / "out" / "quarantine.tsv", sep="\t").code)
    assert codes == ["burned-in"] * 3 + ["not-dicom", "unreadable-file"]
    audit = pd.read_csv(tmp_path / "out" / "audit.tsv", sep="\t").set_index(["action", "element"])
    assert audit.loc[("replace", "SOPInstanceUID"), "count"] == 3
    assert json.loads((tmp_path / "out" / "deidentification.json").read_text())["key"] == name.key_id
    assert not (tmp_path / "out" / ".work").exists()


def test_a_killed_run_is_resumed(source, params, key_file, tmp_path, monkeypatch):
    done, convert = [], stage._convert

    def dying(file, number, folder, tool):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        return convert(file, number, folder, tool)

    monkeypatch.setattr(stage, "_convert", dying)
    with pytest.raises(KeyboardInterrupt):
        stage.deidentify(source, tmp_path / "out", params, key_file=key_file, jobs=1)
    assert not (tmp_path / "out").exists()
    again = []
    monkeypatch.setattr(stage, "_convert", lambda file, number, folder, tool: (again.append(number), convert(file, number, folder, tool))[1])
    assert stage.deidentify(source, tmp_path / "out", params, key_file=key_file, jobs=1).files == 3
    assert set(done).isdisjoint(again)
    assert len(done) + len(again) == 8


def test_nothing_usable_is_one_sentence(source, params, key_file, tmp_path):
    for path in (source / "a").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="burned-in"):
        stage.deidentify(source, tmp_path / "out", params, key_file=key_file, jobs=1)
    assert not (tmp_path / "out").exists()


def test_key_inside_the_source_ends_with_two(source, tmp_path, capsys):
    (source / "key").write_bytes(b"k" * 32)
    with pytest.raises(SystemExit) as end:
        run(app, ["--source", str(source), "--out", str(tmp_path / "out"), "--key", str(source / "key")])
    assert end.value.code == 2
    assert "keep the key elsewhere" in capsys.readouterr().err


def test_ingest_gives_equal_volumes_before_and_after(make_series, params, key_file, convert, tmp_path):
    """The volumes of a cohort are the same, bit for bit, whether its DICOM was de-identified before or not."""
    import nibabel

    voxels = np.random.default_rng(0).permutation(6 * 7 * 8).reshape(6, 7, 8)
    make_series(voxels, description="t1 se tra").write(tmp_path / "in" / "a")
    make_series(voxels[::-1], description="flair").write(tmp_path / "in" / "b")
    stage.deidentify(tmp_path / "in", tmp_path / "clean", params, key_file=key_file, jobs=1)
    before, after = (convert(tmp_path / name, tmp_path / f"{name}-bids") for name in ("in", "clean"))
    assert before.images == after.images == 2
    first, second = (sorted(path for path in (tmp_path / f"{name}-bids").rglob("*.nii.gz")) for name in ("in", "clean"))
    assert [path.name.split("_", 1)[1] for path in first] == [path.name.split("_", 1)[1] for path in second]
    for paths in zip(first, second, strict=True):
        one, other = (nibabel.load(path) for path in paths)
        assert np.array_equal(one.get_fdata(), other.get_fdata())
        assert np.array_equal(one.affine, other.affine)
