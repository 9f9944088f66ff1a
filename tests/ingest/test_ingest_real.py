"""Real images: a zip of DICOM as a PACS exports it, and a four-hospital NIfTI collection."""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict

import highdicom as hd
import nibabel
import numpy as np
import pydicom
import pytest
import yaml

from pipelines.cohort import read_manifest
from pipelines.ingest.pseudonyms import Pseudonyms
from pipelines.ingest.stage import ingest
from pipelines.params import DEFAULT, Cohort

pytestmark = pytest.mark.real_data


def cohort(params, name):
    section = yaml.safe_load((DEFAULT.parent / "conf" / "cohort" / f"{name}.yaml").read_text())["cohort"]
    return params.model_copy(update={"cohort": Cohort(**section)})


def test_zip_of_two_studies(params, real_data, key_file, tmp_path):
    source = real_data / "brain-tumor-progression" / "PGBM-001.zip"
    summary = ingest(source, tmp_path / "out", cohort(params, "pgbm"), key_file=key_file)
    assert (summary.subjects, summary.cases, summary.images, summary.labels, summary.quarantined) == (1, 2, 18, 2, 0)
    table = read_manifest(tmp_path / "out")
    decisions = (tmp_path / "out" / "decisions.tsv").read_text().splitlines()
    items = {line.split("\t")[2]: (line.split("\t")[1], line.split("\t")[4]) for line in decisions[1:]}
    name = Pseudonyms(key_file.read_bytes())
    series = defaultdict(list)
    with zipfile.ZipFile(source) as archive:
        for member in archive.namelist():
            if member.endswith(".dcm"):
                dataset = pydicom.dcmread(io.BytesIO(archive.read(member)))
                series[dataset.SeriesInstanceUID].append(dataset)
    for uid, datasets in series.items():
        session, outcome = items[f"series-{name('series', uid)}"]
        truth = hd.get_volume_from_series(datasets)
        rows = table[(table.session == session) & (table.modality == outcome.replace("image ", "").replace("label", "dseg"))]
        image = nibabel.load(tmp_path / "out" / rows.path.iloc[0])
        turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(truth.array, truth.get_affine("RAS")))
        np.testing.assert_allclose(image.affine, turned.affine, atol=1e-3)
        if outcome == "label":
            assert np.isclose((np.asarray(image.dataobj) > 0).sum(), (truth.array > 0).sum(), rtol=0.01)
        else:
            np.testing.assert_allclose(image.get_fdata(), turned.get_fdata(), rtol=1e-6, atol=1e-6)


def test_four_hospitals(params, real_data, tmp_path):
    source = real_data / "tcga-lgg"
    summary = ingest(source, tmp_path / "out", cohort(params, "tcga-lgg"))
    images = [path for path in source.rglob("*.nii.gz") if "_dseg" not in path.name]
    labels = list(source.rglob("*_dseg.nii.gz"))
    assert (summary.images, summary.labels, summary.quarantined) == (len(images), len(labels), 0)
    table = read_manifest(tmp_path / "out")
    assert table.site.nunique() == len([path for path in source.iterdir() if path.is_dir()])
    row = table[table.kind == "label"].iloc[0]
    truth = nibabel.load(next(source.rglob(f"sub-{row.subject}_dseg.nii.gz")))
    written = nibabel.load(tmp_path / "out" / row.path)
    assert (np.asarray(written.dataobj) > 0).sum() == (np.asarray(truth.dataobj) > 0).sum()
    assert nibabel.aff2axcodes(written.affine) == ("R", "A", "S")
    assert "date" not in (tmp_path / "out" / "participants.tsv").read_text().splitlines()[0]
