from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.errors import UsageError
from tasks.dvc_stage import StageFailed, error_line, order, repro, run_stage, stages

ROOT = Path(__file__).parents[2]
GRAPH = {
    "last": {"cmd": "cat one.txt > two.txt", "deps": ["one.txt"], "outs": ["two.txt"]},
    "first": {"cmd": "echo 1 > one.txt", "outs": ["one.txt"]},
    "wrong": {"cmd": "echo 'error: site A has too few cases' >&2; exit 1", "outs": ["never.txt"]},
    "crash": {"cmd": "kill -9 $$", "outs": ["nor-this.txt"]},
    "workers": {"cmd": "sh -c 'trap \"\" TERM; echo $$ > child.pid; sleep 300' & sleep 300 & sleep 0.5; kill -9 $$", "outs": ["nor-these.txt"]},
    "slow": {"cmd": "sh -c 'echo $$ > child.pid; exec sleep 300'", "outs": ["nor-that.txt"]},
}


@pytest.fixture
def project(tmp_path) -> Path:
    """A real DVC project with stages that work, that explain their failure, that crash, and that hang."""
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": GRAPH}))
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    return tmp_path


def gone(pid: int, within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def child_pid(project: Path) -> int:
    deadline = time.monotonic() + 60
    while not (project / "child.pid").exists() or not (project / "child.pid").read_text().strip():
        assert time.monotonic() < deadline, "the stage never started"
        time.sleep(0.1)
    return int((project / "child.pid").read_text())


def test_stages_come_after_what_they_depend_on(project):
    names = stages(None, project)
    assert sorted(names) == sorted(GRAPH)
    assert names.index("first") < names.index("last")
    assert stages("last", project) == ["first", "last"]


def test_order_reads_foreach_and_other_files():
    assert order('strict digraph {\n"c/dvc.yaml:b@x";\n"a";\n"a" -> "c/dvc.yaml:b@x";\n}') == ["a", "c/dvc.yaml:b@x"]


def test_an_unknown_target_is_misuse(project):
    with pytest.raises(UsageError, match="nope"):
        stages("nope", project)


def test_a_stage_runs_once(project):
    assert any("Running stage 'first'" in line for line in repro(["first"], project, 60))
    assert (project / "one.txt").read_text() == "1\n"
    assert any("didn't change" in line for line in repro(["first"], project, 60))


def test_a_stage_that_explains_itself_fails_with_its_sentence(project):
    with pytest.raises(StageFailed, match="wrong failed: site A has too few cases") as failure:
        repro(["wrong"], project, 60)
    assert failure.value.expected


def test_several_stages_in_one_call_and_the_one_that_fails_is_named(project):
    with pytest.raises(StageFailed, match=r"^wrong failed: site A has too few cases"):
        repro(["first", "wrong", "crash"], project, 60)
    assert any("'first' didn't change" in line for line in repro(["first"], project, 60)), "what was finished before it is kept"


def test_a_crash_is_told_from_a_refusal(project):
    with pytest.raises(StageFailed, match=r"crash failed: .*exited with -9") as failure:
        repro(["crash"], project, 60)
    assert not failure.value.expected


def test_a_stage_that_hangs_is_stopped_with_all_its_children(project):
    with pytest.raises(StageFailed, match="slow took longer than 8 s"):
        repro(["slow"], project, 8)
    assert gone(child_pid(project))


def test_workers_of_a_killed_stage_do_not_keep_anyone_waiting(project):
    """They hold the stage's output open; one of them will not be asked."""
    started = time.monotonic()
    with pytest.raises(StageFailed, match="workers failed"):
        repro(["workers"], project, 200)
    assert time.monotonic() - started < 60
    assert gone(child_pid(project))


def test_kill_9_of_the_asking_process_takes_the_stage_with_it(project):
    script = f"from pathlib import Path; from tasks.dvc_stage import repro; repro(['slow'], Path({str(project)!r}), 300)"
    asking = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    child = child_pid(project)
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    assert gone(child)
    repro(["first"], project, 60)  # and no lock is left behind


def test_the_error_line_is_the_stages_own():
    assert error_line(["error: this", "ERROR: failed to reproduce 'x'"]) == "this"
    assert error_line(["Traceback", "ERROR: failed to reproduce 'x'"]) == "failed to reproduce 'x'"


def test_the_task_caches_nothing():
    from prefect.cache_policies import NO_CACHE

    assert run_stage.cache_policy == NO_CACHE
    assert run_stage.persist_result is False
    assert run_stage.retries == 2


def test_guard_passes_the_exit_status_on(tmp_path):
    from tasks import guard

    process = guard.start(["sh", "-c", "echo here; exit 7"], tmp_path, dict(os.environ))
    assert process.stdout.read() == "here\n"
    assert process.wait() == 7
