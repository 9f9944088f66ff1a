"""A small hospital for tests of the whole service: one archive, two sites whose studies are in it, and what `make up` starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
from tiny_hospitals import make_project, make_studies
from tiny_pacs import Pacs
from tiny_served import ask, wait_for
from tiny_site import forget_store

from pipelines.phantoms import identity

SCHEDULE_S = 30
PATIENTS = {"site-a": 5, "site-b": 10}
WAIT_S = 420  # for a run that adapts: a minute where nothing else runs, several on a busy machine
#: How models are made here: on intensities alone, so quickly, and so that another scanner makes a difference.
ADAPT = {"system": "random-forest", "rehearsal": 4, "params": {"trees": 20}}
#: Nobody has a study under it; it keeps a list of patients from being empty before the first has one.
NOBODY = "quality-assurance"


@dataclass
class Day:
    """The project of a hospital, its archive, its patients by site (folders of DICOM), and where the servers are."""

    project: Path
    pacs: Pacs
    patients: dict[str, list[Path]]
    prefect: str
    mlflow: str

    @property
    def lists(self) -> Path:
        """The folder with each site's list of patients, which is what its query names."""
        return self.pacs.folder

    def arrive(self, site: str, patients: list[Path], *, outlined: bool = True) -> list[str]:
        """Studies are sent to the archive, then their patients come onto the site's list. Returns their Study Instance UIDs."""
        ids, studies = [], []
        for patient in patients:
            datasets = [pydicom.dcmread(path) for path in sorted(patient.rglob("*.dcm"))]
            self.pacs.load(*(dataset for dataset in datasets if outlined or dataset.Modality != "SEG"))
            ids.append(datasets[0].PatientID)
            studies.append(datasets[0].StudyInstanceUID)
        listed = self.lists / f"{site}.txt"
        listed.write_text("\n".join([*listed.read_text().split(), *ids]))
        return studies

    def runs(self, flow: str, site: str, state: str = "COMPLETED") -> list[dict]:
        """Runs of a deployment in a state, newest first."""
        return ask(f"{self.prefect}/api/flow_runs/filter", {
            "flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": [site]}}, "flow_runs": {"state": {"type": {"any_": [state]}}},
            "sort": "END_TIME_DESC"})

    def press_run(self, flow: str, site: str, **parameters: object) -> dict:
        """Start a run of a deployment, as its button in the UI does, and wait for its end."""
        [deployment] = ask(f"{self.prefect}/api/deployments/filter", {"flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": [site]}}})
        begun = ask(f"{self.prefect}/api/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})

        def ended() -> dict | None:
            run = ask(f"{self.prefect}/api/flow_runs/filter", {"flow_runs": {"id": {"any_": [begun["id"]]}}})[0]
            return run if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        run = wait_for(ended, WAIT_S)
        assert run["state"]["type"] == "COMPLETED", run["state"]["message"]
        return run

    def scheduled(self, site: str, since: float, *outcomes: str, by: str = "end_time") -> dict:
        """Wait for a run of adapt-site that a schedule began, whose end (or `by`) is after `since` (epoch), and whose message begins with one of
        `outcomes`."""
        def ended() -> dict | None:
            broken = [run for state in ("FAILED", "CRASHED") for run in self.runs("adapt-site", site, state)]
            assert not broken, broken[0]["state"]["message"]
            return next((run for run in self.runs("adapt-site", site)
                         if run["auto_scheduled"] and epoch(run[by]) > since and run["state"]["message"].startswith(outcomes)), None)

        return wait_for(ended, WAIT_S)

    def artifacts(self, run: dict) -> dict[str, dict]:
        """Key -> what a run's page shows (`id`, `data`)."""
        found = ask(f"{self.prefect}/api/artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        return {artifact["key"]: artifact for artifact in found}

    def verdict(self, site: str) -> dict:
        return json.loads((self.project / "sites" / site / "verdict.json").read_text())

    def serving(self, site: str) -> str:
        """'<site> <version>' of the model that serves a site, by the project's registry."""
        from tasks.champions import serving

        try:
            found = serving(site, self.project)
        finally:
            forget_store()
        return f"{found.site} {found.version}"

    def aliases(self, site: str) -> dict[str, int]:
        """Alias -> version of a site's model, as the MLflow server has them."""
        from mlflow import MlflowClient

        found = MlflowClient(tracking_uri=self.mlflow, registry_uri=self.mlflow).get_registered_model(f"semiflow-site-{site}")
        return {alias: int(version) for alias, version in found.aliases.items()}

    def objects(self, study: str, modality: str) -> list[pydicom.Dataset]:
        """What the archive has of a study, of one modality."""
        session, root = self.pacs.session, self.pacs.root
        names = session.post(f"{root}/tools/find", timeout=30, json={"Level": "Instance", "Query": {"StudyInstanceUID": study, "Modality": modality}})
        return [pydicom.dcmread(BytesIO(session.get(f"{root}/instances/{name}/file", timeout=30).content))
                for name in names.json()]

    def family(self) -> list[psutil.Process]:
        """Every process of the service."""
        leaders = [psutil.Process(json.loads(path.read_text())["pid"]) for path in (self.project / ".run").glob("*.json")]
        return [*leaders, *(child for leader in leaders for child in leader.children(recursive=True))]


def open_day(folder: Path, prefect: str, mlflow: str) -> Day:
    """A hospital before its first study, its archive running; the service is not up yet."""
    with pytest.MonkeyPatch.context() as patch:  # names that stand nowhere else, not even in this project's code, which models take with them
        patch.setattr(identity, "FAMILY", tuple(f"Canary{name.lower()}" for name in identity.FAMILY))
        studies = make_studies(folder / "studies", **{site.replace("-", "_"): count for site, count in PATIENTS.items()})
    pacs = Pacs(folder / "pacs").start()
    sites: dict[str, dict] = {}
    for site in PATIENTS:
        listed = pacs.folder / f"{site}.txt"
        listed.write_text(NOBODY)
        (pacs.folder / site).mkdir()
        query = {"ids": {"attribute": "PatientID", "file": str(listed)}}
        sites[site] = {"pacs": str(pacs.config(pacs.folder / site, "dicomweb", query=query, settle_s=1, timeout_s=60, retries={"attempts": 5}))}
    sites["site-b"]["adapt"] = {"every_s": SCHEDULE_S}
    project = make_project(folder / "project", sites=sites, adapt=ADAPT, janitor={"every_s": 300})  # and once at the start of serving
    return Day(project, pacs, {site: sorted((studies / site).iterdir()) for site in PATIENTS}, prefect, mlflow)


def epoch(text: str) -> float:
    """A time of the Prefect server as seconds since the epoch."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def drawn(segmentation: pydicom.Dataset) -> dict[str, np.ndarray]:
    """Image instance -> what any segment outlines on it, `(rows, columns)` bool."""
    found: dict[str, np.ndarray] = {}
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns) > 0
    for frame, group in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        image = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        found[image] = found.get(image, np.zeros_like(frame)) | frame
    return found


def overlap(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Dice of two outlines of the same images; what neither mentions is empty."""
    both = sum((one[image] & other[image]).sum() for image in one.keys() & other.keys())
    return 2 * float(both) / sum(mask.sum() for masks in (one, other) for mask in masks.values())


def canaries(patients: list[Path], *secrets: str) -> list[bytes]:
    """What identifies patients, in small letters: names, numbers, UIDs of studies; and `secrets`."""
    words = {word.lower() for word in secrets}
    for patient in patients:
        dataset = pydicom.dcmread(next(patient.rglob("*.dcm")), stop_before_pixels=True)
        names = (dataset.PatientID, str(dataset.PatientName).split("^")[0], dataset.AccessionNumber, dataset.StudyInstanceUID)
        words |= {str(name).lower() for name in names}
    return sorted(word.encode() for word in words)


def files_of(project: Path) -> Iterator[Path]:
    """Every file that the service has written, but for the inboxes, which hold patient data by design. Links are not followed."""
    inboxes = [site / "inbox" for site in (project / "sites").iterdir()]
    for path in project.rglob("*"):
        if path.is_file() and not path.is_symlink() and not any(map(path.is_relative_to, inboxes)):
            yield path
