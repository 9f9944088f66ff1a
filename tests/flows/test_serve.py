"""The real thing: a Prefect server and the served flows as `make up` starts them, schedules that must really fire, a process killed with -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import yaml
from tiny_served import ask, wait_for

from pipelines.errors import UsageError

#: A run as a person starts it, which says where it is and never ends by itself.
ENDLESS = """
import time
from pathlib import Path
import tasks
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from tasks.runs import WATCHED

@task(cache_policy=NO_CACHE, persist_result=False)
def wait():
    Path("begun").touch()
    time.sleep(600)

@flow(name="endless", **WATCHED)
def endless():
    wait()

endless()
"""


def test_schedules():
    from flows.serve import schedule_of, scheduled
    from pipelines.sites.params import Schedule

    assert not schedule_of(None).active
    assert schedule_of("0 5 * * *").active
    assert schedule_of("30").interval.total_seconds() == 30
    with pytest.raises(UsageError, match="'at noon' cannot be read"):
        schedule_of("at noon")
    with pytest.raises(UsageError, match="above 0"):
        schedule_of("0")
    assert not scheduled(None).active
    assert scheduled(Schedule(every_s=900)).interval.total_seconds() == 900
    assert scheduled(Schedule(cron="*/5 * * * *")).cron == "*/5 * * * *"


def test_a_run_is_missed_only_when_its_time_has_passed():
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    from tasks.deployed import missed

    last, now = datetime(2026, 3, 1, 4, tzinfo=UTC), datetime(2026, 3, 2, 2, tzinfo=UTC)
    assert missed(IntervalSchedule(interval=timedelta(hours=1)), last, now)
    assert not missed(IntervalSchedule(interval=timedelta(days=1)), last, now)
    nightly = CronSchedule(cron="0 3 * * *", timezone="UTC")
    assert not missed(nightly, last, now)
    assert missed(nightly, last, now + timedelta(hours=2))
    assert missed(nightly, last, now + timedelta(days=9))


def test_every_site_has_its_deployments_with_a_limit_and_tags():
    from flows.serve import deployments, schedule_of
    from pipelines.sites.params import Schedule, Service, Site

    service = Service(sites={"site-a": Site(), "site-b": Site(adapt=Schedule(cron="0 2 * * *"), drift=Schedule(every_s=60))})
    found = {f"{one.flow_name}/{one.name}": one for one in deployments(service, ("phantom", schedule_of(None)))}
    of_sites = {f"{flow}/{site}" for flow in ("adapt-site", "drift", "predict", "rollback") for site in service.sites}
    assert set(found) == {"reproduce/semiflow", "janitor/semiflow", *of_sites}
    assert [entry.active for entry in found["adapt-site/site-b"].schedules] == [True]
    assert not found["drift/site-a"].schedules[0].active
    assert found["drift/site-b"].schedules[0].active
    assert found["drift/site-b"].parameters == {"site": "site-b"}
    assert set(found["drift/site-b"].tags) == {"semiflow", "site-b"}
    assert all(one.concurrency_limit == 1 for one in found.values() if one.flow_name not in ("predict", "janitor"))
    assert all(holds(one.entrypoint) for one in found.values()), "a flow that does not say that it lives is never closed when it is killed"
    assert found["janitor/semiflow"].concurrency_limit is None, "one that was killed would hold up the next"


def holds(entrypoint: str) -> bool:
    from importlib import import_module

    from tasks.runs import hold

    module, _, name = entrypoint.replace(":", ".").rpartition(".")
    return hold in getattr(import_module(module), name).on_running_hooks


class Up:
    """A Prefect server and the served flows of a project, as `make up` starts them."""

    def __init__(self, project: Path, port: int):
        self.project, self.api = project, f"http://127.0.0.1:{port}/api"

    def start(self) -> None:
        from tasks.services import services, start_all

        start_all([service for service in services(self.project) if service.name in ("prefect", "flows")], self.project)

    def runs(self, flow: str, state: str = "COMPLETED", **more) -> list[dict]:
        return ask(f"{self.api}/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}, "flow_runs": {"state": {"type": {"any_": [state]}}, **more}})

    def tasks(self, run: dict) -> list[dict]:
        return ask(f"{self.api}/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})

    def scheduled(self, flow: str) -> dict:
        """A completed run that a schedule made, not a person."""
        def completed() -> dict | None:
            assert not (broken := [*self.runs(flow, "FAILED"), *self.runs(flow, "CRASHED")]), broken[0]["state"]["message"]
            return next((run for run in self.runs(flow) if run["auto_scheduled"]), None)

        return wait_for(completed)


@pytest.fixture
def up(project, free_port, monkeypatch, tmp_path, request):
    from tasks.services import stop_all

    port, scheduled = free_port(), getattr(request, "param", True)
    for name, value in {"PREFECT_PORT": port, "SEMIFLOW_SCHEDULE": "20" if scheduled else "", "SEMIFLOW_PROJECT": project,
                        "PREFECT_HOME": tmp_path / "prefect", "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
                        "PREFECT_RUNNER_POLL_FREQUENCY": 2}.items():
        monkeypatch.setenv(name, str(value))
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["service"] |= {"janitor": {"every_s": 15}, "drift": {"recent": 5, "p": 0.02},
                           "sites": {"site-a": {"drift": {"every_s": 20} if scheduled else None}, "site-b": {}}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    served = Up(project, port)
    served.start()
    yield served
    stop_all(project)


@pytest.mark.slow
def test_schedules_fire_a_killed_run_is_closed_and_down_leaves_nothing(up, project, tmp_path, monkeypatch):
    from tasks.services import services, stop_all

    leaders = [psutil.Process(json.loads(path.read_text())["pid"]) for path in (project / ".run").glob("*.json")]
    family = [*leaders, *(child for leader in leaders for child in leader.children(recursive=True))]
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=tmp_path,
                               env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, stderr=subprocess.DEVNULL)
    living = subprocess.Popen([sys.executable, "-c", ENDLESS.replace('"endless"', '"living"').replace('"begun"', '"lives"')], cwd=tmp_path,
                              env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (tmp_path / "begun").exists() and (tmp_path / "lives").exists())
        [dying] = wait_for(lambda: up.runs("endless", "RUNNING"))
        wait_for(lambda: up.tasks(dying))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert up.scheduled("reproduce")["name"].startswith("reproduce-")
        assert (project / "runs.txt").exists()
        assert {"semiflow", "site-a"} <= set(up.scheduled("drift")["tags"])
        [closed] = wait_for(lambda: up.runs("endless", "CRASHED"))
        assert "its process is gone" in closed["state"]["message"]
        wait_for(lambda: [part["state"]["type"] for part in up.tasks(closed)] == ["CRASHED"])
        assert up.runs("living", "RUNNING"), "a living run is left alone"
        with pytest.raises(UsageError, match="PREFECT_PORT and MLFLOW_PORT are both"):
            monkeypatch.setenv("MLFLOW_PORT", os.environ["PREFECT_PORT"])
            services(project)
    finally:
        for one in (process, living):
            one.kill()
            one.wait()
    assert set(stop_all(project)) == {"prefect", "flows"}
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not list((project / ".run").glob("*.json"))


@pytest.fixture
def messages():
    """A place that a notification can be sent to: its address, and what came in."""
    received = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", received
        server.shutdown()


def run_here(up: Up, *command: str) -> str:
    return subprocess.run([sys.executable, *command], cwd=up.project, capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}).stdout


@pytest.mark.slow
@pytest.mark.parametrize("up", [False], indirect=True, ids=["quiet"])
def test_drift_is_an_event_that_automations_act_on_and_a_restart_catches_up(up, project, messages):
    from tiny_drift import tiny_site

    from tasks.deployed import TELL
    from tasks.services import stop_all

    address, received = messages
    tiny_site(project / "sites", shifted=True)
    assert run_here(up, "-m", "flows.drift", "site-b").startswith("drift: The 5 latest patients of site-b differ")

    def found() -> list[dict]:
        return ask(f"{up.api}/events/filter", {"filter": {"event": {"name": ["semiflow.drift.detected"]}}})["events"]

    [event] = wait_for(found)
    assert event["resource"]["prefect.resource.id"] == "semiflow.site.site-b"
    assert event["payload"]["verdict"] == "drift"
    run_here(up, "-m", "flows.drift", "site-b")  # nothing has changed
    shown = ask(f"{up.api}/artifacts/filter", {"artifacts": {"key": {"any_": ["drift-site-b"]}}})
    assert len(shown) == 2
    assert "differ from the 6" in shown[0]["data"]

    run_here(up, "-c", f"""
import tasks
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block
Block(name="ear", url={address!r}, json_data={{"subject": "{{{{subject}}}}", "body": "{{{{body}}}}"}}).save("semiflow-notify")
""")
    wait_for(lambda: up.runs("janitor"))
    stop_all(project, only=["flows"])
    time.sleep(15)  # a date of its schedule passes
    up.start()
    wait_for(lambda: [run for run in up.runs("janitor") if "catch-up" in run["tags"]])
    offered = {one["name"]: one for one in ask(f"{up.api}/automations/filter", {})}
    assert set(offered) == {TELL, "semiflow: adapt site-a when it drifts", "semiflow: adapt site-b when it drifts"}
    assert not any(one["enabled"] for one in offered.values())
    for one in offered.values():
        ask(f"{up.api}/automations/{one['id']}", {"enabled": True}, "PATCH")
    sites = {one["name"]: one["id"] for one in ask(f"{up.api}/deployments/filter", {"flows": {"name": {"any_": ["adapt-site"]}}})}
    run_here(up, "-c", f"import tasks; from uuid import UUID; from tasks.deployed import automations; "
                       f"automations({{site: UUID(id) for site, id in {sites!r}.items()}})")  # what serving does again at every start
    again = {one["name"]: one for one in ask(f"{up.api}/automations/filter", {})}
    assert {name: one["id"] for name, one in again.items()} == {name: one["id"] for name, one in offered.items()}
    assert all(one["enabled"] for one in again.values()), "what a person turned on stays on"

    (project / "sites" / "site-b" / "drift.json").unlink()
    run_here(up, "-m", "flows.drift", "site-b")
    wait_for(lambda: received)
    wait_for(lambda: [run for state in ("SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED") for run in up.runs("adapt-site", state)
                      if not run["auto_scheduled"] and "site-b" in run["tags"]])
    assert received[0]["subject"].endswith("site-b")
    assert "label some of them and run adapt_site" in received[0]["body"]
    wait_for(lambda: len(found()) == 2)  # one for each finding
