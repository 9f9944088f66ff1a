"""Sources with names of their own: params cohort.names say what they mean, and the rest is refused as before."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.cohort import read_manifest, read_quarantine
from pipelines.ingest.renamed import as_bids
from pipelines.ingest.source import SourceFile
from pipelines.ingest.stage import ingest
from pipelines.params import FileNames, Params

NAMES = FileNames(pattern=r"patient(?P<subject>\w+)/(?P<file>\w+)", images={"T1": "T1w", "T1POST": "ceT1w", "FLAIR": "FLAIR"}, label="lesions")


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), np.diag([1.0, 1, 1, 1])), path)


@pytest.mark.parametrize(("parts", "name"), [
    (("patient07", "T1.nii.gz"), "sub-07_T1w.nii.gz"), (("site-a", "patient07", "T1POST.nii"), "sub-07_ce-gadolinium_T1w.nii"),
    (("patient07", "T1.json"), "sub-07_T1w.json"), (("patient07", "lesions.tsv"), "sub-07_dseg.tsv"), (("patient07", "brainmask.nii.gz"), None),
    (("patient07", "T1_extra.nii.gz"), None), (("impatient07", "T1.nii.gz"), None), (("notes.txt",), None)])
def test_names_are_translated(params, tmp_path, parts, name):
    file = as_bids(SourceFile(tmp_path / "x", parts), NAMES, params.ingest.modalities)
    assert file.parts == (parts if name is None else (*parts[:-1], name)) and file.path == tmp_path / "x"


def test_bids_names_stay(params, tmp_path):
    names = NAMES.model_copy(update={"pattern": r"(?P<subject>\w+)/(?P<file>[\w-]+)"})
    file = SourceFile(tmp_path / "x", ("sub-1", "sub-1_T1w.nii.gz"))
    assert as_bids(file, names, params.ingest.modalities) == file == as_bids(file, None, params.ingest.modalities)


def test_ingest_reads_them(params, tmp_path):
    generator = np.random.default_rng(0)
    for file in ("T1", "T1POST", "FLAIR", "unknown"):
        write(tmp_path / "in" / "patient07" / f"{file}.nii.gz", generator.integers(0, 200, (8, 7, 6)))
    (tmp_path / "in" / "patient07" / "FLAIR.json").write_text(json.dumps({"MagneticFieldStrength": 3}))
    write(tmp_path / "in" / "patient07" / "lesions.nii.gz", generator.integers(0, 2, (8, 7, 6)))
    own = params.model_copy(update={"cohort": params.cohort.model_copy(update={"names": NAMES})})
    summary = ingest(tmp_path / "in", tmp_path / "out", own, site="here", jobs=1)
    assert (summary.subjects, summary.images, summary.labels) == (1, 3, 1)
    table = read_manifest(tmp_path / "out")
    assert sorted(table.modality) == ["FLAIR", "T1w", "ceT1w", "dseg"] and set(table.subject) == {"07"}
    assert table[table.modality == "FLAIR"].field_strength_t.tolist() == [3.0]
    refused = read_quarantine(tmp_path / "out")
    assert refused.code.tolist() == ["not-bids"] and "cohort.names" in refused.remedy[0]


def test_patterns_and_modalities_are_checked(params):
    with pytest.raises(ValidationError, match=r"it has no group \(\?P<file>"):
        FileNames(pattern=r"(?P<subject>\w+)", images={"T1": "T1w"})
    with pytest.raises(ValidationError, match="no regular expression"):
        FileNames(pattern=r"(?P<subject>", images={"T1": "T1w"})
    content = params.model_dump(mode="json")
    content["cohort"]["names"] = {"pattern": NAMES.pattern, "images": {"T1": "T1weighted"}}
    with pytest.raises(ValidationError, match=r"cohort\.names\.images has 'T1' as 'T1weighted'"):
        Params(**content)
