"""`make up` and `make down`: the Prefect server, the MLflow UI and the served flows as background processes of this machine only.

What runs is written to `.run/<service>.json` with the process's start time, because a pid alone may by now be somebody else's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cyclopts
import psutil

from pipelines import cli
from pipelines.errors import DataError, UsageError
from pipelines.outputs import write_json
from tasks.environment import HOST, PROJECT, RUN_FOLDER, listens, tool_path, tracking_uri

START_S = 120.0  # importing and migrating a fresh database on a busy machine
STOP_S = 15.0  # for an orderly end; then the group is killed
SAME_START_S = 1.0  # tolerance when a process's start time is compared

app = cyclopts.App(name="python -m tasks.services", help_format="plaintext")


@dataclass(frozen=True)
class Service:
    """A background process. It is up when `ready` answers (an address), or appears in its log (any other text)."""

    name: str
    command: list[str]
    ready: str
    page: str
    port: int | None = None  # None: it listens to nothing
    environment: Mapping[str, str] = field(default_factory=dict)


def services(project: Path = PROJECT) -> list[Service]:
    """What `up` starts, in this order. Ports: $PREFECT_PORT (4200), $MLFLOW_PORT (5000)."""
    prefect, mlflow = _port("PREFECT_PORT", 4200), _port("MLFLOW_PORT", 5000)
    if prefect == mlflow:
        raise UsageError(f"PREFECT_PORT and MLFLOW_PORT are both {prefect}; give each its own")
    api = {"PREFECT_API_URL": f"http://{HOST}:{prefect}/api"}
    store = tracking_uri(project)
    return [
        Service("prefect", [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(prefect)],
                f"{api['PREFECT_API_URL']}/health", f"http://{HOST}:{prefect}", prefect, {**api, "PREFECT_UI_API_URL": api["PREFECT_API_URL"]}),
        Service("mlflow", [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow), "--workers", "1",
                           "--backend-store-uri", store, "--default-artifact-root", (project / "mlruns" / "artifacts").as_uri()],
                f"http://{HOST}:{mlflow}/health", f"http://{HOST}:{mlflow}", mlflow,
                {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}),  # its job queue is for language models; without it, it stops at once
        Service("flows", [sys.executable, "-m", "flows.serve"],
                "is being served", f"http://{HOST}:{prefect}/deployments", None, api),
    ]


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UsageError(f"{variable} is {text!r}; give a port number between 1 and 65535")
    return int(text)


@app.command
def up() -> None:
    """Start what is not running, wait until it answers, print the addresses.

    Example: PREFECT_PORT=4300 MLFLOW_PORT=5050 python -m tasks.services up
    """
    start_all(services(), PROJECT)


@app.command
def down() -> None:
    """Stop everything that `up` started, with all its child processes."""
    for name in stop_all(PROJECT) or ["nothing"]:
        print(f"{name} was running, now stopped" if name != "nothing" else "nothing was running")


@app.command
def status() -> None:
    """Say what runs, and where."""
    for state in _states(PROJECT):
        print(f"{state['name']}: {state['page'] if _running(state) else 'stopped by itself; see ' + state['log']}")


def start_all(wanted: list[Service], project: Path) -> None:
    """Start each service and wait for it. If one fails, those started by this call are stopped again."""
    running = {state["name"]: state for state in _states(project) if _running(state)}
    for service in wanted:
        if service.name not in running and service.port and listens(service.port):
            raise UsageError(f"port {service.port} is taken, so {service.name} cannot start there; "
                             f"free it or set {service.name.upper()}_PORT to another")
    new = [service for service in wanted if service.name not in running]
    try:
        for listening in (True, False):  # those that listen start side by side; the others need them
            batch = [service for service in new if bool(service.port) == listening]
            for service, process in [(service, _start(service, project)) for service in batch]:
                _wait(service, process, project)
    except BaseException:
        stop_all(project, only=[service.name for service in new])
        raise
    for service in wanted:
        print(f"{service.name}: {running.get(service.name, {}).get('page', service.page)}", flush=True)


def _start(service: Service, project: Path) -> subprocess.Popen:
    folder = project / RUN_FOLDER
    folder.mkdir(exist_ok=True)
    (project / "mlruns").mkdir(exist_ok=True)
    environment = os.environ | {"PATH": tool_path(), "PYTHONUNBUFFERED": "1"} | dict(service.environment)
    with (project / _log(service)).open("wb") as handle:
        process = subprocess.Popen(service.command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=handle,
                                   stderr=subprocess.STDOUT, start_new_session=True)
    write_json(folder / f"{service.name}.json", {
        "name": service.name, "pid": process.pid, "created": psutil.Process(process.pid).create_time(), "port": service.port,
        "page": service.page, "log": _log(service)})
    return process


def _log(service: Service) -> str:
    return f"{RUN_FOLDER}/{service.name}.log"


def _wait(service: Service, process: subprocess.Popen, project: Path) -> None:
    deadline, log = time.monotonic() + START_S, project / _log(service)
    while not (_answers(service.ready) if service.ready.startswith("http") else service.ready in log.read_text(errors="replace")):
        if process.poll() is not None:
            raise DataError(f"{service.name} ended with status {process.returncode} instead of starting: {_last_line(log)} (see {_log(service)})")
        if time.monotonic() > deadline:
            raise DataError(f"{service.name} does not answer after {START_S:g} s; see {_log(service)}")
        time.sleep(0.3)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def stop_all(project: Path, only: list[str] | None = None) -> list[str]:
    """Stop services in the reverse order of their start; returns the names of those that ran."""
    order = {"flows": 0, "mlflow": 1, "prefect": 2}
    stopped = []
    for state in sorted(_states(project), key=lambda state: order.get(state["name"], 0)):
        if only is not None and state["name"] not in only:
            continue
        if _stop(state):
            stopped.append(state["name"])
        (project / RUN_FOLDER / f"{state['name']}.json").unlink(missing_ok=True)
    return stopped


def _stop(state: Mapping) -> bool:
    """End a service's session: politely first, then by force, then what left the group but descends from it."""
    leader = _process(state)
    family = [leader, *leader.children(recursive=True)] if leader else []
    family += [process for process in psutil.process_iter() if process not in family and _in_session(process, state)]
    if not family:
        return False
    for process in family if leader is None else [leader]:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=STOP_S)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=STOP_S)
    return True


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _process(state: Mapping) -> psutil.Process | None:
    """The service's first process, if it still is that one: same pid and same start."""
    try:
        process = psutil.Process(state["pid"])
        same = abs(process.create_time() - state["created"]) < SAME_START_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _in_session(process: psutil.Process, state: Mapping) -> bool:
    """Whether a process belongs to the session that the service opened, and began after it."""
    try:
        return os.getsid(process.pid) == state["pid"] and process.create_time() >= state["created"] - SAME_START_S
    except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
        return False


def _running(state: Mapping) -> bool:
    return _process(state) is not None


def _states(project: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((project / RUN_FOLDER).glob("*.json"))]


if __name__ == "__main__":
    cli.run(app)
