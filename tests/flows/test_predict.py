"""The flow on a watched folder: what waits is predicted once, what fails does not stop the others, and the run's page tells of it without names."""

from __future__ import annotations

import json

import pydicom
import pytest
from tiny_site import SITE, forget_store, make_project
from tiny_studies import Look, write_study

from pipelines.ingest.pseudonyms import Pseudonyms, load_key
from pipelines.params import load_params
from tasks.pacs.inbox import keyed_name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A project whose site has a champion and a watched folder with: a study to predict, an outlined one, an odd one, a broken one."""
    folder = tmp_path_factory.mktemp("site")
    make_project(folder / "project", folder / "work", {"folder": folder / "watched"})
    for name, number, look in (("new", 70, Look()), ("outlined", 71, Look(outlined=True)), ("odd", 72, Look(contrast=-1.0)), ("broken", 73, Look())):
        write_study(folder / "watched" / name, number, look)
    for path in (folder / "watched" / "broken").rglob("*.dcm"):
        path.write_bytes(path.read_bytes()[:-3000])
    yield folder
    forget_store()


@pytest.fixture(scope="module")
def runs(prefect_server, site):
    """The states of a first and a second run."""
    from flows.predict import predict

    return [predict(SITE, project=site / "project", return_state=True) for _ in range(2)]


def name_of(site, study: str) -> str:
    """The keyed name of a study of the watched folder."""
    key = load_key(None, (site / "project" / load_params(site / "project" / "params.yaml").cohort.pseudonym_key))
    first = pydicom.dcmread(next((site / "watched" / study).rglob("*.dcm")), stop_before_pixels=True)
    return keyed_name(Pseudonyms(key), "study", first.StudyInstanceUID)


def test_what_waits_is_predicted_or_withheld_with_the_reason(runs, site):
    first, _ = runs
    rows = {row["study"]: row for row in first.result()}
    kept = site / "project" / "sites" / SITE / "predictions"
    good, odd, broken = (kept / name_of(site, study) for study in ("new", "odd", "broken"))
    assert {name: row["verdict"] for name, row in rows.items()} == {good.name: "delivered", odd.name: "withheld", broken.name: "withheld"}
    assert {path.name for path in kept.iterdir() if not path.name.startswith(".")} == set(rows), "the outlined one was left alone"
    assert json.loads((good / "qc.json").read_text())["withheld"] is False
    assert len(list(good.glob("*.dcm"))) == 3
    assert [path.name for path in odd.iterdir()] == ["qc.json"]
    assert "end before their pixels do" in rows[broken.name]["why"]
    assert "watched" not in rows[broken.name]["why"], "a folder may be called like a patient"


def test_nothing_waits_twice(runs):
    _, second = runs
    assert second.result() == []


def test_one_study_by_name_even_if_withheld(runs, site):
    from flows.predict import predict

    name = name_of(site, "odd")
    (row,) = predict(SITE, study=name, even_if_withheld=True, project=site / "project")
    assert row["verdict"] == "withheld"
    assert len(list((site / "project" / "sites" / SITE / "predictions" / name).glob("*.dcm"))) == 3
    state = predict(SITE, study="NOSUCHSTUDY", project=site / "project", return_state=True)
    assert "has no study 'NOSUCHSTUDY'" in state.message


def test_a_study_that_another_run_does_is_left_to_it(runs, site):
    from flows.predict import predict
    from tasks.prediction import claimed

    name = name_of(site, "new")
    with claimed(SITE, name, True, site / "project") as mine:
        assert mine
        assert predict(SITE, study=name, project=site / "project") == []
    with claimed(SITE, name, False, site / "project") as mine:
        assert not mine, "it was done since"


def test_prefect_knows_no_patient(runs, site):
    """What the server has of the runs: artifacts, states, parameters and task runs."""
    from prefect import get_client

    words = {"watched/"}
    for path in (site / "watched").rglob("*.dcm"):
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        words |= {str(dataset[name].value).lower() for name in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber", "SOPInstanceUID")}
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
        held = [artifacts, *(client.request("POST", f"/{what}/filter", json={}).json() for what in ("flow_runs", "task_runs", "logs"))]
    assert {"predict-site-b-overlay", "predict-site-b-verdict", "predict-site-b"} <= {artifact["key"] for artifact in artifacts}
    text = json.dumps(held).lower()
    assert not [word for word in words if word in text]
