"""From a real PACS to a cohort: what comes through the inbox is what a folder of the same images gives."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from pipelines.cohort import read_manifest
from pipelines.ingest.deidentify import deidentifier
from pipelines.ingest.pseudonyms import Pseudonyms
from pipelines.ingest.stage import ingest
from pipelines.params import Deidentify, SiteRule, load_params

KEY = b"a key that is known to the tests only"


@pytest.fixture
def params():
    project = load_params()
    return project.model_copy(update={"cohort": project.cohort.model_copy(update={"site": SiteRule(constant="here"), "pseudonym_key": ""})})


@pytest.mark.parametrize("kind", ["dicomweb", "get"])
def test_inbox_gives_the_cohort_that_the_originals_give(make_pacs, make_study, desk, params, kind):
    study = make_study("Alice", series=1, slices=5)
    for index, dataset in enumerate(study):
        dataset.SeriesDescription, dataset.StudyDate = "t1 se tra", "20200101"
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [0, 0, 3.0 * index], [1.0, 1.0]
    (desk.folder / "originals").mkdir()
    for number, dataset in enumerate(study):
        dataset.save_as(desk.folder / "originals" / f"{number}.dcm", enforce_file_format=True)
    (desk.folder / "key").write_bytes(KEY)
    pacs = make_pacs(*study)
    desk.fetch(pacs.config(desk.folder, kind), deidentifier(Pseudonyms(KEY), Deidentify()))
    for source, out in ((desk.folder / "originals", "direct"), (desk.inbox, "fetched")):
        ingest(source, desk.folder / out, params, key_file=desk.folder / "key", jobs=1)
    direct, fetched = read_manifest(desk.folder / "direct"), read_manifest(desk.folder / "fetched")
    assert direct.subject.tolist() == fetched.subject.tolist()
    for one, other in zip(direct.path, fetched.path, strict=True):
        images = nibabel.load(desk.folder / "direct" / one), nibabel.load(desk.folder / "fetched" / other)
        np.testing.assert_array_equal(*(np.asarray(image.dataobj) for image in images))
        np.testing.assert_array_equal(*(image.affine for image in images))
