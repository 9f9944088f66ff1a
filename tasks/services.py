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
from tasks.environment import HOST, PROJECT, RUN_FOLDER, host, listens, port, sqlite_store, tool_path, tracking_uri

START_S = 120.0  # importing and migrating a fresh database on a busy machine
STOP_S = 15.0  # for an orderly end; then the group is killed
ARTIFACTS = "mlruns/artifacts"
SERVED = "The flows are being served"  # what flows.serve says once all is registered
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


def services(project: Path = PROJECT, *, flows: bool = True) -> list[Service]:
    """What `up` starts, in this order. Ports: $PREFECT_PORT (4200), $MLFLOW_PORT (5000); address: $SEMIFLOW_HOST (this machine alone).

    A Prefect server or an MLflow server that runs elsewhere ($PREFECT_API_URL, $MLFLOW_TRACKING_URI with http) is used, not started. Their databases
    are $PREFECT_API_DATABASE_CONNECTION_URL and $MLFLOW_BACKEND_STORE_URI, by default files in the project.
    """
    address, prefect, mlflow = host(), port("PREFECT_PORT"), port("MLFLOW_PORT")
    if prefect == mlflow:
        raise UsageError(f"PREFECT_PORT and MLFLOW_PORT are both {prefect}; give each its own")
    page, recorded = f"http://{address}:{prefect}", f"http://{address}:{mlflow}"
    api = {"PREFECT_API_URL": _elsewhere("PREFECT_API_URL", f"{page}/api") or f"{page}/api"}
    found = []
    if api["PREFECT_API_URL"] == f"{page}/api":
        found.append(Service("prefect", [sys.executable, "-m", "prefect", "server", "start", "--host", address, "--port", str(prefect)],
                             f"{page}/api/health", page, prefect, {**api, "PREFECT_UI_API_URL": api["PREFECT_API_URL"]}))
    if not _elsewhere("MLFLOW_TRACKING_URI", recorded):
        through = not flows or tracking_uri(project).startswith("http")  # clients hand files to the server; else they write them themselves
        found.append(Service("mlflow", [sys.executable, "-m", "mlflow", "server", "--host", address, "--port", str(mlflow), "--workers", "1",
                                        "--artifacts-destination" if through else "--default-artifact-root", (project / ARTIFACTS).as_uri(),
                                        *_admitted(address, mlflow)],
                             f"{recorded}/health", recorded, mlflow,
                             {"MLFLOW_BACKEND_STORE_URI": _store(project),  # not an argument: it may hold a password, and arguments are public
                              "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}))  # its job queue is for language models; without it, it stops at once
    if flows:
        pages = api["PREFECT_API_URL"].removesuffix("/api")
        found.append(Service("flows", [sys.executable, "-m", "flows.serve"], SERVED, f"{pages}/deployments", None, api))
    return found


def _admitted(address: str, number: int) -> list[str]:
    """What MLflow has to be told to answer on another address than this machine's own: by default it takes other names for an attack."""
    if address == HOST:
        return []
    return ["--allowed-hosts", f"{address},{address}:{number},localhost:*,{HOST}:*", "--cors-allowed-origins", f"http://{address}:{number}"]


def mlflow_page() -> str:
    """The address of the MLflow UI: $MLFLOW_TRACKING_URI where that is a server, else the one that `up` starts."""
    return _elsewhere("MLFLOW_TRACKING_URI", "") or f"http://{host()}:{port('MLFLOW_PORT')}"


def _elsewhere(variable: str, own: str) -> str | None:
    """The address of a server in `variable`, where it is another than our `own`."""
    given = (os.environ.get(variable) or "").rstrip("/")
    return given if given.startswith("http") and given != own else None


def _store(project: Path) -> str:
    """The database of the MLflow server."""
    given = os.environ.get("MLFLOW_BACKEND_STORE_URI") or tracking_uri(project)
    return given if not given.startswith("http") else sqlite_store(project)


@app.command
def up(*, flows: bool = True) -> None:
    """Start what is not running, wait until it answers, print the addresses.

    Example: PREFECT_PORT=4300 MLFLOW_PORT=5050 python -m tasks.services up

    Parameters
    ----------
    flows
        Serve the flows here. Without, this machine has the two servers, and models are handed to MLflow over the network; the flows run on another,
        with PREFECT_API_URL and MLFLOW_TRACKING_URI pointing here.
    """
    if host() != HOST:
        print(f"warning: whoever reaches {host()} can read and change everything here, because neither server asks who it is; leave SEMIFLOW_HOST "
              "unset, or let a proxy with a login stand before both ports (docs/operations.md)", flush=True)
    start_all(services(flows=flows), PROJECT)


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
        if service.name not in running and service.port and listens(service.port, host().strip('[]')):
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
