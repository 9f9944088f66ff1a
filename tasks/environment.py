"""Where the project lies, and the defaults that keep its tools offline, silent and inside its folder.

Prefect and MLflow read their settings when they are imported, so `apply` runs first (see `tasks/__init__.py`). A variable that the user
has set already wins.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.errors import UsageError

PROJECT = Path(os.environ.get("SEMIFLOW_PROJECT") or Path(__file__).parents[1]).resolve()
HOST = "127.0.0.1"  # nothing here listens to anything but this machine, unless $SEMIFLOW_HOST says otherwise
FLOW_RUN_VARIABLE = "SEMIFLOW_FLOW_RUN_ID"  # tells the recorder which flow run it belongs to
PORTS = {"PREFECT_PORT": 4200, "MLFLOW_PORT": 5000}
RUN_FOLDER = ".run"  # pids, ports and logs of `make up`

DEFAULTS = {
    "PREFECT_HOME": str(PROJECT / ".prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",  # a loaded laptop needs more than the default 20
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_OFFLINE": "1",
}


def apply() -> None:
    """Set every default that is not set yet, and point Prefect at the server of `make up` where one runs."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "prefect" not in sys.modules and (url := running_prefect()):
        os.environ.setdefault("PREFECT_API_URL", url)


def running_prefect(project: Path = PROJECT) -> str | None:
    """The API address of the Prefect server that `make up` started, if it answers."""
    state = project / RUN_FOLDER / "prefect.json"
    if not state.is_file():
        return None
    content = json.loads(state.read_text())
    address = urlsplit(content["page"])
    return f"{content['page']}/api" if listens(address.port, address.hostname) else None


def listens(port: int, address: str = HOST) -> bool:
    """Whether something accepts connections on `port` of this machine's `address`."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def host() -> str:
    """The address that servers listen to: this machine alone, or $SEMIFLOW_HOST, the address by which others reach it.

    Raises `UsageError` where that is no address of its own: a server that listens everywhere cannot tell a browser where it is.
    """
    address = os.environ.get("SEMIFLOW_HOST") or HOST
    try:
        given = ipaddress.ip_address(address)
    except ValueError:
        given = None
    if given is None or given.is_unspecified:
        raise UsageError(f"SEMIFLOW_HOST is {address!r}; give the one IP address of this machine by which others are to reach it (see `ip address`)")
    return f"[{address}]" if given.version == 6 else address


def tool_path() -> str:
    """PATH with this Python's folder first, so that a stage's `python` is the one that runs here."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def port(variable: str) -> int:
    """The port that `variable` names, else the usual one. Raises `UsageError` for what is no port."""
    text = os.environ.get(variable) or str(PORTS[variable])
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UsageError(f"{variable} is {text!r}; give a port number between 1 and 65535")
    return int(text)


def tracking_uri(project: Path = PROJECT) -> str:
    """MLflow's store: $MLFLOW_TRACKING_URI; else the server of `make up` where $MLFLOW_BACKEND_STORE_URI gives that a database of its own, whose
    password and driver flows then need not have; else `mlruns/mlflow.db` in the project."""
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    return f"http://{host()}:{port('MLFLOW_PORT')}" if os.environ.get("MLFLOW_BACKEND_STORE_URI") else sqlite_store(project)


def sqlite_store(project: Path = PROJECT) -> str:
    """The store of a project that has no database server; absolute, as SQLite needs it."""
    return f"sqlite:///{project / 'mlruns' / 'mlflow.db'}"
