"""A day in the life of a site, on real parts: an archive, a Prefect server, an MLflow server, served flows, a schedule that fires, a browser.

    SEMIFLOW_SCREENSHOTS=docs/figures pytest tests/flows/test_day_in_the_life.py      # makes the pictures of docs/operations.md, too
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import psutil
import pytest
from tiny_browser import headless, text_of, wait_for
from tiny_day import Day, canaries, drawn, files_of, open_day, overlap
from tiny_hospitals import ROOT, mislabel
from tiny_pacs import PASSWORD, PASSWORD_VARIABLE, needs_orthanc

MARGIN = 0.03  # params service.gate.earlier_margin
LIKE_THE_TRUTH = 0.3  # Dice of a stored segmentation with what was drawn on that study and never sent


@pytest.fixture
def browser(tmp_path):
    with headless(tmp_path / "profile") as driver:
        yield driver


@pytest.fixture
def day(tmp_path, free_port, monkeypatch):
    """The hospital in the morning: the archive runs and is empty, `make up` has been run."""
    from tasks.services import services, start_all, stop_all

    needs_orthanc()
    prefect, mlflow = free_port(), free_port()
    project = tmp_path / "project"
    for name, value in {"PREFECT_PORT": prefect, "MLFLOW_PORT": mlflow, "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
                        "PREFECT_HOME": project / ".prefect", "SEMIFLOW_PROJECT": project, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1",
                        PASSWORD_VARIABLE: PASSWORD, "PREFECT_RUNNER_POLL_FREQUENCY": 2,
                        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": 15}.items():  # below 10 the runner asks at every poll
        monkeypatch.setenv(name, str(value))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "SEMIFLOW_HOST", "SEMIFLOW_SCHEDULE", "SEMIFLOW_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    day = open_day(tmp_path, f"http://127.0.0.1:{prefect}", f"http://127.0.0.1:{mlflow}")
    try:
        start_all(services(project), project)
        yield day
    finally:
        stop_all(project)
        day.pacs.kill()


@pytest.mark.slow
def test_a_day_in_the_life_of_a_site(day, browser, tmp_path):
    labelled, new, wrong = day.patients["site-b"][:5], day.patients["site-b"][5], day.patients["site-b"][6:9]
    a_champion_from_site_a(day)
    five_labelled_studies_make_a_better_model_by_schedule(day, labelled)
    a_new_study_gets_its_segmentation_in_the_archive(day, new)
    kept = a_mislabelled_batch_changes_nothing(day, wrong)
    both_pages_show_it(day, browser, kept, tmp_path)
    rollback_restores_the_champion_before(day)
    down_leaves_nothing(day)
    nobody_was_named(day)


def a_champion_from_site_a(day: Day) -> None:
    day.arrive("site-a", day.patients["site-a"])
    run = day.press_run("adapt-site", "site-a")
    assert run["state"]["message"].startswith("promote: the site has no champion yet"), run["state"]["message"]
    assert day.serving("site-a") == "site-a 1" == day.serving("site-b"), "a site without a model of its own has the champion of the one before"


def five_labelled_studies_make_a_better_model_by_schedule(day: Day, labelled: list[Path]) -> None:
    since = time.time()
    day.arrive("site-b", labelled)
    run = day.scheduled("site-b", since, "promote:", "keep:")
    assert run["auto_scheduled"]
    assert run["state"]["message"].startswith("promote: better on the site"), day.verdict("site-b")
    verdict = day.verdict("site-b")
    assert verdict["champion"] == {"model": "semiflow-site-site-a", "version": 1}
    assert {row["site"] for row in verdict["cases"]} == {"site-a", "site-b"}, "on cases of the earlier site, too"
    own = [row for row in verdict["cases"] if row["site"] == "site-b"]
    assert sum(row["dice"] for row in own) > sum(row["champion_dice"] for row in own), "better than what served, on the same cases"
    assert verdict["numbers"]["low"] > 0
    assert verdict["numbers"]["earlier"]["site-a"]["difference"] > -MARGIN
    assert day.serving("site-b") == "site-b 1"
    assert day.serving("site-a") == "site-a 1"


def a_new_study_gets_its_segmentation_in_the_archive(day: Day, patient: Path) -> None:
    import pydicom

    [study] = day.arrive("site-b", [patient], outlined=False)
    assert not day.objects(study, "SEG")
    day.press_run("predict", "site-b")
    found = {one.SegmentationType: one for one in day.objects(study, "SEG")}
    assert set(found) == {"BINARY", "FRACTIONAL"}
    [truth] = [one for path in patient.rglob("*.dcm") if (one := pydicom.dcmread(path)).Modality == "SEG"]
    images = {one.SOPInstanceUID for one in day.objects(study, "MR")}
    outlined = drawn(found["BINARY"])
    assert outlined.keys() <= images, "on images of that very study"
    assert overlap(outlined, drawn(truth)) > LIKE_THE_TRUTH
    assert (found["BINARY"].PatientID, found["BINARY"].PatientName) == (truth.PatientID, truth.PatientName), "filed with its patient"


def a_mislabelled_batch_changes_nothing(day: Day, patients: list[Path]) -> dict:
    for patient in patients:
        mislabel(patient)
    since = time.time()
    day.arrive("site-b", patients)
    run = day.scheduled("site-b", since, "promote:", "keep: check", "keep: not", "keep: worse")
    verdict, page = day.verdict("site-b"), day.artifacts(run)["adapt-site-b"]["data"]
    assert verdict["decision"] == "keep", verdict["reasons"]
    assert verdict["champion"] == {"model": "semiflow-site-site-b", "version": 1}
    assert page.startswith("# keep")
    assert all(reason in page for reason in verdict["reasons"])
    assert run["state"]["message"] == f"keep: {verdict['reasons'][0]}", "a person sees why without looking further"
    assert day.serving("site-b") == "site-b 1"
    return run


def both_pages_show_it(day: Day, browser, kept: dict, pictures: Path) -> None:
    assert day.aliases("site-b")["champion"] == 1
    assert day.aliases("site-b")["challenger"] == 2
    browser.get(f"{day.mlflow}/#/models/semiflow-site-site-b")
    words = ("Version 2", "@ champion", "@ challenger")
    wait_for(browser, lambda page: all(word in text_of(page) for word in words), "the model's page lacks an alias")
    photograph(browser, pictures / "day-mlflow.png")
    browser.get(f"{day.prefect}/runs/flow-run/{kept['id']}")
    words = ("auto-scheduled", "site-b", "Completed", "Artifacts", "Beginning flow run")
    wait_for(browser, lambda page: all(word in text_of(page) for word in words), "the run's page does not tell of it")
    browser.get(f"{day.prefect}/artifacts/artifact/{day.artifacts(kept)['adapt-site-b']['id']}")
    reason = day.verdict("site-b")["reasons"][0]
    wait_for(browser, lambda page: squeezed(reason) in squeezed(text_of(page)), "the page does not say why")
    photograph(browser, pictures / "day-prefect.png")


def squeezed(text: str) -> str:
    """Without what typesetting changes: an arrow for '->', spaces, line breaks."""
    return "".join(letter for letter in text if letter.isalnum())


def photograph(browser, path: Path) -> None:
    """Keep a picture of the page; in $SEMIFLOW_SCREENSHOTS too, where that names a folder."""
    time.sleep(2)  # pages fade in
    assert browser.save_screenshot(str(path))
    if folder := os.environ.get("SEMIFLOW_SCREENSHOTS"):
        shutil.copyfile(path, Path(folder) / path.name)


def rollback_restores_the_champion_before(day: Day) -> None:
    day.press_run("rollback", "site-b", reason="the readers disagree with it")
    assert day.serving("site-b") == "site-a 1"
    assert json.loads((day.project / "sites" / "site-b" / "champion" / "champion.json").read_text())["source"] == "site-a"
    assert day.aliases("site-b")["previous"] == 1
    day.scheduled("site-b", time.time(), "unchanged:", "keep: there is nothing new to learn from", by="start_time")
    assert day.serving("site-b") == "site-a 1", "the schedule does not bring it back"


def nobody_was_named(day: Day) -> None:
    words = canaries([patient for patients in day.patients.values() for patient in patients], PASSWORD)
    assert [word for word in words if names(readable(day.lists / "site-b.txt"), word)], "what identifies is found where it is"
    files = list(files_of(day.project))
    assert {".prefect", ".run", "mlruns", "sites"} <= {path.relative_to(day.project).parts[0] for path in files}
    assert [(str(path), word) for path in files for content in [readable(path)] for word in words if names(content, word)] == []
    assert not [path for path in files for word in words if names(str(path.relative_to(day.project)).lower().encode(), word)]


def names(content: bytes, word: bytes) -> bool:
    """Whether a word is in a content; a number only where it is not part of a longer one."""
    return word in content and (not word.isdigit() or re.search(rb"(?<!\d)" + word + rb"(?!\d)", content) is not None)


def readable(path: Path) -> bytes:
    import gzip

    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).lower()


def down_leaves_nothing(day: Day) -> None:
    from tasks.environment import listens
    from tasks.services import stop_all

    family = day.family()
    assert set(stop_all(day.project)) == {"prefect", "mlflow", "flows"}
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert not any(listens(int(address.rpartition(":")[2])) for address in (day.prefect, day.mlflow))
    assert not list((day.project / ".run").glob("*.json"))
