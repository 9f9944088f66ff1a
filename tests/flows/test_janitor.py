"""Runs whose process is gone are closed; everything that lives, or might, is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time, types
import tasks
from tasks.runs import hold
hold(types.SimpleNamespace(name="test"), types.SimpleNamespace(id=sys.argv[1]), None)
if sys.argv[2:]:
    import os
    if os.fork():
        os.wait()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def worker(prefect_server):
    """A function that starts a process at work on a run."""
    from prefect.settings import get_current_settings

    started = []

    def start(run_id: object, *more: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(run_id), *more], stdout=subprocess.PIPE, text=True, start_new_session=True,
                                   env=os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(get_current_settings().home)})
        assert process.stdout.readline() == "held\n"
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture
def client(prefect_server):
    from prefect import get_client

    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture
def deployment(client):
    """A deployment of a flow, as the sites' adaptations are served."""
    from prefect import flow

    from tasks.runs import AGAIN, TAG

    @flow(name=f"adapt-{uuid.uuid4().hex[:8]}")
    def adapt(site: str) -> None:
        """Never run here."""

    return client.create_deployment(client.create_flow(adapt), "site-a", tags=[TAG, AGAIN, "site-a"])


def in_state(client, deployment, state):
    from prefect.states import Running

    run = client.create_flow_run_from_deployment(deployment, parameters={"site": "site-a"})
    client.set_flow_run_state(run.id, Running(), force=True)  # the server cancels at once what never began
    client.set_flow_run_state(run.id, state, force=True)
    return client.read_flow_run(run.id)


def test_a_lock_outlives_nobody(worker):
    from tasks.runs import alive

    one, other = uuid.uuid4(), uuid.uuid4()
    process, parent = worker(one), worker(other, "with a child")
    assert alive(one) is True
    assert alive(other) is True
    assert alive(uuid.uuid4()) is None, "who never said so is not judged"
    for killed in (process, parent):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert alive(one) is False
    assert alive(other) is False, "a forked child does not hold its parent's lock"


def test_zombies_are_closed_and_the_living_are_not(client, deployment, worker):
    from prefect.states import Cancelling, Paused, Pending, Running, Suspended

    from tasks.runs import close_zombies

    states = {"running": Running(), "cancelling": Cancelling(), "paused": Paused(timeout_seconds=600)}
    dead = {name: in_state(client, deployment, state) for name, state in states.items()}
    left = {"living": in_state(client, deployment, Running()), "unknown": in_state(client, deployment, Running()),
            "starting": in_state(client, deployment, Pending()), "suspended": in_state(client, deployment, Suspended(timeout_seconds=600))}
    for name, run in (dead | left).items():
        if name in (*dead, "living", "suspended"):
            process = worker(run.id)
            if name != "living":
                process.kill()
                process.wait()
    closed = {entry["id"] for entry in close_zombies.fn()}
    assert closed >= {str(run.id) for run in dead.values()}
    assert closed.isdisjoint({str(run.id) for run in left.values()})
    for run in dead.values():
        state = client.read_flow_run(run.id).state
        assert state.is_crashed()
        assert "its process is gone" in state.message
    assert {name: client.read_flow_run(run.id).state.type for name, run in left.items()} == {name: run.state.type for name, run in left.items()}
    assert close_zombies.fn() == [], "once is enough"


def test_a_run_that_never_began_is_closed_after_a_while(client, deployment, monkeypatch):
    from prefect.states import Pending

    from tasks import runs

    run = in_state(client, deployment, Pending())
    monkeypatch.setattr(runs, "PENDING_S", 0.0)
    assert str(run.id) in {entry["id"] for entry in runs.close_zombies.fn()}


def test_a_crashed_adaptation_is_started_again_but_not_for_ever(client, deployment):
    from prefect.states import Completed, Crashed, Failed

    from tasks.runs import start_again

    def own(entries) -> list:
        return [run for entry in entries if (run := client.read_flow_run(uuid.UUID(entry["id"]))).deployment_id == deployment]

    in_state(client, deployment, Failed(message="labels are wrong"))
    assert own(start_again.fn(retries=2)) == [], "it would fail again"
    in_state(client, deployment, Crashed())
    for _ in range(2):
        [again] = own(start_again.fn(retries=2))
        assert again.parameters == {"site": "site-a"}
        assert own(start_again.fn(retries=2)) == [], "it is on its way"
        client.set_flow_run_state(again.id, Crashed(), force=True)
    assert own(start_again.fn(retries=2)) == [], "three times in a row is no accident"
    in_state(client, deployment, Completed())
    in_state(client, deployment, Crashed())
    assert len(own(start_again.fn(retries=2))) == 1, "a success in between counts"


def test_a_run_that_takes_too_long_is_cancelled(client, deployment):
    from prefect.states import Running

    from tasks.runs import stop_overtime

    run = in_state(client, deployment, Running())
    assert str(run.id) not in {entry["id"] for entry in stop_overtime.fn(600.0)}
    assert str(run.id) in {entry["id"] for entry in stop_overtime.fn(0.0)}
    assert client.read_flow_run(run.id).state.type == "CANCELLING"


def test_of_overdue_runs_the_newest_is_kept(prefect_server):
    from prefect.client.schemas.objects import FlowRun

    from tasks.runs import superseded

    now, deployment = datetime.now(UTC), uuid.uuid4()

    def run(hours: float, **more) -> FlowRun:
        made = {"deployment_id": deployment, "auto_scheduled": True, "expected_start_time": now - timedelta(hours=hours)}
        return FlowRun(flow_id=uuid.uuid4(), **(made | more))

    old, older, newest, coming, other = run(2), run(3), run(1), run(-1), run(5, deployment_id=uuid.uuid4())
    assert superseded([old, newest, older, coming, other, run(4, auto_scheduled=False)], now) == [older, old]  # the oldest first


def test_the_flow_says_what_it_did(prefect_server, tmp_path):
    from flows.janitor import janitor

    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    assert set(janitor(project=tmp_path)) == {"closed", "stopped", "skipped", "started"}
