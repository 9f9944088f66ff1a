"""What a site's adaptation fetches from a real PACS: studies, without what identifies, and without predictions of a machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from prefect.logging import disable_run_logger
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence

ROOT = Path(__file__).parents[3]


@pytest.fixture
def workspace(tmp_path):
    """Site b of a project, whose studies come from a PACS that `give` describes."""
    from tasks.site import Workspace

    project = tmp_path / "project"
    shutil.copytree(ROOT / "conf", project / "conf")

    def give(config: Path) -> Workspace:
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        content["service"]["sites"] = {"b": {"pacs": str(config)}}
        (project / "params.yaml").write_text(yaml.safe_dump(content))
        return Workspace("b", project)

    return give


def segmentation(of: Dataset, kind: str) -> Dataset:
    """As much of a segmentation as tells who drew it."""
    from pydicom.uid import generate_uid

    dataset = Dataset()
    dataset.update(of)
    dataset.file_meta = of.file_meta
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.Modality = generate_uid(), "SEG"
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel, segment.SegmentAlgorithmType = 1, "Edema", kind
    dataset.SegmentSequence = Sequence([segment])
    return dataset


def test_a_pacs_gives_studies_once_and_predictions_never(make_pacs, make_study, desk, workspace):
    from tasks.adaptation import receive
    from tasks.site import arrivals

    images = make_study("Alice", series=1, slices=4)
    pacs = make_pacs(*images)
    site = workspace(pacs.config(desk.folder, "dicomweb"))
    site.folder.mkdir(parents=True)
    with disable_run_logger():
        assert "1 handed on" in receive.fn(site)
        before = arrivals(site)
        assert before["files"] == 4
        assert "1 unchanged" in receive.fn(site)
        assert arrivals(site) == before, "nothing new"
        pacs.load(segmentation(make_study("Alice", series=1, slices=4)[0], "MANUAL"))
    kept = [dcmread(path) for path in sorted(site.inbox.rglob("*.dcm"))]
    assert {str(dataset.PatientName) for dataset in kept}.isdisjoint({str(images[0].PatientName)})


@pytest.mark.parametrize(("kind", "taken"), [("AUTOMATIC", False), ("SEMIAUTOMATIC", True), ("MANUAL", True)])
def test_who_drew_a_segmentation_decides(make_study, kind, taken):
    from pipelines.errors import Refused
    from tasks.adaptation import not_made_by_machine

    dataset = segmentation(make_study("Bob", series=1, slices=1)[0], kind)
    if taken:
        assert not_made_by_machine(dataset) is dataset
    else:
        with pytest.raises(Refused, match="a prediction and no label"):
            not_made_by_machine(dataset)
