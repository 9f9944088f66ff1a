"""A site's workspace: laid out once, locked, and what is new in it, told without reading an image."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from pipelines.errors import UsageError
from tasks.site import Workspace, arrivals, at_work, data_of, inputs, lay_out_site, service, still_arriving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hospital(tmp_path) -> Path:
    """A project's folder with code to look at, small, and params of two sites."""
    folder = tmp_path / "hospital"
    (folder / "pipelines" / "ingest").mkdir(parents=True)
    (folder / "pipelines" / "ingest" / "stage.py").write_text("step = 1\n")
    (folder / "requirements.lock").write_text("nothing==1\n")
    shutil.copytree(ROOT / "conf", folder / "conf")
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    return folder


def change(project: Path, **sections) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["service"] |= sections
    (project / "params.yaml").write_text(yaml.safe_dump(content))


def test_the_layout_is_a_dvc_project_with_the_projects_params(hospital):
    workspace = lay_out_site("site-a", hospital)
    params = yaml.safe_load(workspace.params.read_text())
    assert params["cohort"]["site"] == {"constant": "site-a", "folder": None}
    assert params["cohort"]["source"] == "sites/site-a/inbox"
    assert params["ingest"]["rules"][0]["name"] == "own-prediction", "what was predicted is not learned from"
    graph = yaml.safe_load((workspace.folder / "dvc.yaml").read_text())
    assert list(graph["stages"]) == ["ingest", "resample", "prompts", "embed", "adapt", "judge"]
    assert graph["stages"]["ingest"]["cmd"].startswith("cd ../.. && python -m pipelines.ingest --source sites/site-a/inbox ")
    assert "${" not in (workspace.folder / "dvc.yaml").read_text()
    listed = subprocess.run([sys.executable, "-m", "dvc", "stage", "list", "--name-only"], cwd=workspace.folder, capture_output=True, text=True,
                            check=True)
    assert set(listed.stdout.split()) == set(graph["stages"])


def test_laying_out_again_touches_nothing(hospital):
    workspace = lay_out_site("site-a", hospital)
    before = {path: path.stat().st_mtime_ns for path in workspace.folder.rglob("*") if path.is_file() and ".dvc" not in path.parts}
    lay_out_site("site-a", hospital)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_root_elsewhere_with_a_space_in_it(hospital, tmp_path):
    change(hospital, root=str(tmp_path / "all sites"))
    workspace = lay_out_site("site-a", hospital)
    assert workspace.folder == tmp_path / "all sites" / "site-a"
    command = yaml.safe_load((workspace.folder / "dvc.yaml").read_text())["stages"]["ingest"]["cmd"]
    assert f"'{tmp_path}/all sites/site-a'/data/bids" in command


def test_an_unknown_site_or_cohort_is_refused(hospital):
    with pytest.raises(UsageError, match="known: site-a, site-b"):
        Workspace("site-x", hospital)
    change(hospital, cohort="nope")
    with pytest.raises(UsageError, match="neither"):
        lay_out_site("site-a", hospital)


def test_what_counts_as_new(hospital):
    change(hospital, sites={"site-a": {"settle_s": 0}, "site-b": {}})
    lay_out_site("site-a", hospital)
    seen = [inputs(Workspace("site-a", hospital))]

    def is_new() -> bool:
        seen.append(inputs(Workspace("site-a", hospital)))
        return seen[-1] != seen[-2]

    assert not is_new()
    inbox = Workspace("site-a", hospital).inbox
    (inbox / "study").mkdir()
    (inbox / "study" / "Miller_Ann.dcm").write_bytes(b"pixels")
    assert is_new(), "a study"
    assert "Miller" not in str(arrivals(Workspace("site-a", hospital)))
    (inbox / ".journal.sqlite").write_bytes(b"x")
    (inbox / "quarantine.tsv").write_text("x")
    assert not is_new(), "what the retrieval notes for itself"
    (hospital / "pipelines" / "ingest" / "stage.py").write_text("step = 2\n")
    assert is_new(), "code"
    change(hospital, gate=service(hospital).gate.model_dump() | {"margin": 0.05})
    assert is_new(), "the gate"
    change(hospital, drift={"recent": 5})
    assert not is_new(), "what only another flow looks at"


def test_a_watched_folder_settles_by_the_time_of_change(hospital, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    change(hospital, sites={"site-a": {"folder": str(folder), "settle_s": 1}})
    (folder / "one.dcm").write_bytes(b"x")
    workspace = Workspace("site-a", hospital)
    assert still_arriving(workspace) == 1
    deadline = time.monotonic() + 10
    while still_arriving(workspace) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert still_arriving(workspace) == 0
    assert arrivals(workspace)["files"] == 1


def test_one_run_a_site(hospital):
    with at_work(Workspace("site-a", hospital)) as first, at_work(Workspace("site-a", hospital)) as second, \
            at_work(Workspace("site-b", hospital)) as other:
        assert (first, second, other) == (True, False, True)
    with at_work(Workspace("site-a", hospital)) as again:
        assert again


def test_a_site_is_not_changed_while_another_reads_it(hospital):
    workspace, order = Workspace("site-a", hospital), []

    def change_it() -> None:
        with data_of([workspace], change=True):
            order.append("changed")

    with data_of([workspace]), data_of([workspace]):  # two readers
        writer = threading.Thread(target=change_it)
        writer.start()
        time.sleep(0.3)
        order.append("read")
    writer.join(10)
    assert order == ["read", "changed"]
