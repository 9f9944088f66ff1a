"""A site's adaptation from DICOM to champion, on real parts: DVC, Prefect, MLflow and the stages, with coarse phantoms.

That the next site is judged against the first one's champion is part of the day in the life of a site (test_day_in_the_life.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_hospitals import ROOT, make_project, make_studies


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    return make_studies(tmp_path_factory.mktemp("studies"), site_a=5)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory, prefect_server):
    """A project of its own, with its own MLflow store."""
    project = make_project(tmp_path_factory.mktemp("hospital") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield project


def arrive(project: Path, studies: Path, site: str) -> None:
    shutil.copytree(studies / site, project / "sites" / site / "inbox", dirs_exist_ok=True)


def run(site: str, project: Path) -> dict:
    from flows.adapt_site import adapt_site

    return adapt_site(site, project)


def killed_during(stage: str, site: str, project: Path) -> None:
    """Start the flow as a process of its own and kill it with -9 when `stage` has begun."""
    from prefect.settings import get_current_settings

    environment = os.environ | {"SEMIFLOW_PROJECT": str(project), "PREFECT_API_URL": str(get_current_settings().api.url)}
    process = subprocess.Popen([sys.executable, "-m", "flows.adapt_site", site], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    try:
        assert any(f"Running stage '{stage}'" in line for line in process.stdout), f"stage {stage} never ran"
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()


def test_a_site_without_studies_or_name_or_turn(hospital):
    from pipelines.errors import UsageError
    from tasks.site import Workspace, at_work

    assert run("site-b", hospital)["outcome"] == "empty"
    with at_work(Workspace("site-b", hospital)) as free:
        assert free
        assert run("site-b", hospital)["outcome"] == "busy"
    with pytest.raises(UsageError, match=r"there is no site 'nowhere' in params service\.sites; known: site-a, site-b"):
        run("nowhere", hospital)


def test_files_that_are_still_being_copied_are_left_alone(hospital):
    from tasks.site import Workspace, still_arriving

    settings = yaml.safe_load((hospital / "params.yaml").read_text())
    inbox = hospital / "sites" / "site-b" / "inbox"
    (inbox / "study").mkdir(parents=True, exist_ok=True)
    (inbox / "study" / "one.dcm").write_bytes(b"half")
    os.utime(inbox / "study" / "one.dcm", (0, 0))  # as a copy that keeps times
    settings["service"]["sites"]["site-b"] = {"settle_s": 60}
    (hospital / "params.yaml").write_text(yaml.safe_dump(settings))
    try:
        assert still_arriving(Workspace("site-b", hospital)) == 1
        assert run("site-b", hospital)["outcome"] == "arriving"
    finally:
        settings["service"]["sites"]["site-b"] = {"settle_s": 0}
        (hospital / "params.yaml").write_text(yaml.safe_dump(settings))
        shutil.rmtree(inbox / "study")


@pytest.mark.slow
def test_from_dicom_to_champion_though_killed_and_nothing_twice(hospital, studies):
    from tasks.champions import serving
    from tasks.site import Workspace

    arrive(hospital, studies, "site-a")
    killed_during("adapt", "site-a", hospital)
    own = Workspace("site-a", hospital)
    assert not own.state.exists()
    assert serving("site-a", hospital) is None
    done = run("site-a", hospital)
    assert done["outcome"] == "promote", done["reasons"]
    assert json.loads((own.champion / "champion.json").read_text())["model"] == "semiflow-site-site-a"
    roles = own.roles.read_text()
    assert len(roles.splitlines()) == 6

    lock = (own.folder / "dvc.lock").stat().st_mtime_ns
    assert run("site-a", hospital)["outcome"] == "unchanged"
    own.state.unlink()  # as if it had been killed just before the end
    assert run("site-a", hospital)["outcome"] == "promote"
    assert (own.folder / "dvc.lock").stat().st_mtime_ns == lock, "no stage ran again"
    assert serving("site-a", hospital).version == 1, "no model twice"
    assert own.roles.read_text() == roles
    left = [path for path in own.folder.rglob("*") if path.is_file() and not path.is_relative_to(own.inbox)]
    names = [patient.name for patient in (studies / "site-a").iterdir()]
    readable = "\n".join(f"{path.relative_to(own.folder)} {path.read_text(errors='ignore')}" for path in left if path.stat().st_size < 200_000)
    for name in names:
        for part in name.split("_"):
            assert part not in readable, "what identifies a patient has left the inbox"


@pytest.mark.slow
def test_a_run_with_nothing_new_needs_neither_torch_nor_dvc(hospital):
    """In a process of its own, with the flow's work alone: what it imports, and that it takes no time."""
    code = ("import sys, time\nfrom pathlib import Path\nfrom tasks.site import Workspace, arrivals, at_work, inputs, read_state, still_arriving\n"
            f"start = time.monotonic()\nworkspace = Workspace('site-a', Path({str(hospital)!r}))\n"
            "with at_work(workspace) as free:\n    assert free and not still_arriving(workspace) and arrivals(workspace)['files']\n"
            "    assert read_state(workspace) and inputs(workspace)\n"
            "assert time.monotonic() - start < 5, 'nothing new took too long'\n"
            "import flows.adapt_site\n"
            "print([name for name in ('torch', 'dvc', 'mlflow', 'pandas', 'pydicom', 'nibabel') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout


@pytest.mark.parametrize("answer", [{"promote": True}, {"promote": False, "reason": "wait for the audit"}])
def test_a_person_decides_where_params_want_that(hospital, answer):
    """A real pause: the flow waits until the server has an answer, as from the button in its UI."""
    import threading

    from prefect import flow, get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.flow_runs import resume_flow_run

    from flows import adapt_site
    from tasks.site import Workspace

    workspace = Workspace("site-b", hospital)
    gate = workspace.service.gate.model_copy(update={"approval": True})
    workspace.__dict__["service"] = workspace.service.model_copy(update={"gate": gate})
    verdict = {"decision": "promote", "reasons": ["better"], "challenger": "c" * 64, "numbers": {}, "cases": []}

    def click() -> None:
        paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
        deadline = time.monotonic() + 60
        with get_client(sync_client=True) as client:
            while time.monotonic() < deadline:
                if runs := client.read_flow_runs(flow_run_filter=paused):
                    resume_flow_run(runs[0].id, run_input=answer)
                    return
                time.sleep(0.2)

    @flow
    def asking() -> dict:
        return adapt_site.approved(workspace, verdict)

    person = threading.Thread(target=click)
    person.start()
    decided = asking()
    person.join()
    assert decided["decision"] == ("promote" if answer["promote"] else "keep")
    assert answer.get("reason", "approved by a person") in decided["reasons"][0]
    assert decided["asked"]["c" * 64]["promote"] is answer["promote"]


@pytest.mark.slow
def test_rollback_needs_a_reason_and_a_champion_before(hospital):
    from flows.rollback import rollback
    from pipelines.errors import DataError, UsageError

    with pytest.raises(UsageError, match="needs a reason"):
        rollback("site-a", " ", hospital)
    with pytest.raises(DataError, match="cannot be rolled back"):
        rollback("site-a", "misses lesions", hospital)
