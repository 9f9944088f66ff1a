"""From a real archive through a site's champion and back: what waits is fetched as it was sent, predicted, and its segmentation filed beside it."""

from __future__ import annotations

import shutil

import pydicom
import pytest
import yaml
from tiny_site import SITE, forget_store, make_project
from tiny_studies import Look, write_study

from tasks.prediction import keep, predict_one, retrieve_study, store_back, waiting


def load(pacs, folder) -> list[pydicom.Dataset]:
    datasets = [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
    pacs.load(*datasets)
    return datasets


@pytest.mark.parametrize("kind", ["dicomweb", "get"])
def test_a_study_there_and_back(make_pacs, desk, site_project, kind):
    pacs = make_pacs()
    project = site_project(pacs.config(desk.folder, kind))
    new = load(pacs, write_study(desk.folder / "new", 80))
    load(pacs, write_study(desk.folder / "outlined", 81, Look(outlined=True)))
    (name,) = waiting.fn(SITE, project)
    (desk.folder / "private").mkdir()
    source = retrieve_study.fn(SITE, name, desk.folder / "private", project)
    out = desk.folder / "private" / "out"
    verdict = predict_one.fn(SITE, source, out, project, even_if_withheld=True)
    assert verdict.delivered
    assert store_back.fn(SITE, out, project) == "3 object(s) stored, 0 there already"
    kept = keep.fn(SITE, name, out, project)
    assert {path.name for path in kept.iterdir()} == {"qc.json", "overlay.png"}, "objects with names stay in the archive"

    study = new[0].StudyInstanceUID
    found = pacs.session.post(f"{pacs.root}/tools/find", timeout=10, json={
        "Level": "Series", "Expand": True, "Query": {"StudyInstanceUID": study}}).json()
    assert sorted(one["MainDicomTags"]["Modality"] for one in found) == ["MR", "MR", "OT", "SEG", "SEG"]
    assert waiting.fn(SITE, project) == [], "neither the outlined study nor the one just done"
    assert store_back.fn(SITE, out, project) == "0 object(s) stored, 3 there already"
    with pytest.raises(Exception, match="has no study 'ELSE'"):
        retrieve_study.fn(SITE, "ELSE", desk.folder / "private", project)


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    """A project with a registered champion; its params are completed by each test."""
    home = tmp_path_factory.mktemp("site")
    yield make_project(home / "project", home / "work", {"folder": home / "nothing"})
    forget_store()


@pytest.fixture
def site_project(champion):
    """A function: the project with its site's studies in the archive of a configuration."""
    def with_pacs(config):
        content = yaml.safe_load((champion / "params.yaml").read_text())
        content["service"]["sites"] = {SITE: {"pacs": str(config)}}
        (champion / "params.yaml").write_text(yaml.safe_dump(content))
        shutil.rmtree(champion / "sites", ignore_errors=True)
        return champion

    return with_pacs
