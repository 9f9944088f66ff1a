"""Where the project lies, and the defaults that keep its tools offline, silent and inside its folder.

Prefect and MLflow read their settings when they are imported, so `apply` runs first (see `tasks/__init__.py`). A variable that the user
has set already wins.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

PROJECT = Path(os.environ.get("SEMIFLOW_PROJECT") or Path(__file__).parents[1]).resolve()
HOST = "127.0.0.1"  # nothing here listens to anything but this machine
FLOW_RUN_VARIABLE = "SEMIFLOW_FLOW_RUN_ID"  # tells the recorder which flow run it belongs to
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
    port = json.loads(state.read_text())["port"]
    return f"http://{HOST}:{port}/api" if listens(port) else None


def listens(port: int) -> bool:
    """Whether something on this machine accepts connections on `port`."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def tool_path() -> str:
    """PATH with this Python's folder first, so that a stage's `python` is the one that runs here."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def tracking_uri(project: Path = PROJECT) -> str:
    """MLflow's store: $MLFLOW_TRACKING_URI, else `mlruns/mlflow.db` in the project (absolute, as SQLite needs it)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project / 'mlruns' / 'mlflow.db'}"
