"""The real thing: a Prefect server and the served flow as `make up` starts them, and a schedule that must really fire."""

from __future__ import annotations

import json
import time
import urllib.request

import psutil
import pytest

from pipelines.errors import UsageError


def ask(url: str, body: dict) -> list[dict]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_schedules():
    from flows.serve import schedule_of

    assert not schedule_of(None).active
    assert schedule_of("0 5 * * *").active
    assert schedule_of("30").interval.total_seconds() == 30
    with pytest.raises(UsageError, match="'at noon' cannot be read"):
        schedule_of("at noon")
    with pytest.raises(UsageError, match="above 0"):
        schedule_of("0")


@pytest.mark.slow
def test_a_scheduled_run_really_fires_and_down_leaves_nothing(project, free_port, monkeypatch, tmp_path):
    from tasks.services import services, start_all, stop_all

    port = free_port()
    for name, value in {"PREFECT_PORT": port, "SEMIFLOW_SCHEDULE": "5", "SEMIFLOW_PROJECT": project, "PREFECT_HOME": tmp_path / "prefect",
                        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": 2, "PREFECT_RUNNER_POLL_FREQUENCY": 2}.items():
        monkeypatch.setenv(name, str(value))
    wanted = [service for service in services(project) if service.name in ("prefect", "flows")]
    start_all(wanted, project)
    leaders = [psutil.Process(json.loads(path.read_text())["pid"]) for path in (project / ".run").glob("*.json")]
    family = [*leaders, *(child for leader in leaders for child in leader.children(recursive=True))]
    try:
        assert scheduled_run(port)["name"].startswith("reproduce-")
        assert (project / "runs.txt").exists()
        with pytest.raises(UsageError, match="PREFECT_PORT and MLFLOW_PORT are both"):
            monkeypatch.setenv("MLFLOW_PORT", str(port))
            services(project)
    finally:
        assert set(stop_all(project)) == {"prefect", "flows"}
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not list((project / ".run").glob("*.json"))


def scheduled_run(port: int, within_s: float = 60) -> dict:
    """A completed run that the schedule made, not a person."""
    deadline, seen = time.monotonic() + within_s, []
    while time.monotonic() < deadline:
        seen = ask(f"http://127.0.0.1:{port}/api/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}})
        done = [run for run in seen if run["auto_scheduled"]]
        if done:
            assert done[0]["state"]["type"] == "COMPLETED", done[0]["state"]["message"]
            return done[0]
        time.sleep(0.5)
    raise AssertionError(f"no scheduled run ended within {within_s:g} s")
