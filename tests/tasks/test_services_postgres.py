"""The two servers on PostgreSQL: a real cluster of Debian's packages, a run recorded, everything restarted, dumped and restored, and still there.

What was recorded to MLflow is checked where its driver is installed (psycopg2); Prefect's own (asyncpg) comes with Prefect.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
BINARIES = Path("/usr/lib/postgresql")
USER = "semiflow"
WITH_MLFLOW = importlib.util.find_spec("psycopg2") is not None

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Cluster:
    """A PostgreSQL of this test alone."""

    binaries: Path
    folder: Path
    port: int
    password: str

    @property
    def owner(self) -> dict:
        """It refuses to run as root."""
        return {"user": "postgres", "group": "postgres", "extra_groups": [], "cwd": self.folder} if os.geteuid() == 0 else {}

    def url(self, driver: str, database: str) -> str:
        return f"{driver}://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def tool(self, name: str, *arguments: object) -> None:
        """A client's command, as an administrator gives it."""
        subprocess.run([self.binaries / name, "--host=127.0.0.1", f"--port={self.port}", f"--username={USER}", *map(str, arguments)], check=True,
                       env=os.environ | {"PGPASSWORD": self.password}, capture_output=True, timeout=60)

    def start(self) -> subprocess.Popen:
        process = subprocess.Popen([self.binaries / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-c", "listen_addresses=127.0.0.1",
                                    "-c", "unix_socket_directories="], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self.owner)
        deadline = time.monotonic() + 60
        while subprocess.run([self.binaries / "pg_isready", "--host=127.0.0.1", f"--port={self.port}"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            assert process.poll() is None, "PostgreSQL ended instead of starting"
            time.sleep(0.2)
        return process


@pytest.fixture
def cluster():
    found = sorted(BINARIES.glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        message = "no PostgreSQL (Debian: apt-get install postgresql)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))  # pytest's own folders are closed to other users
    made = Cluster(found[-1], folder, free_port(), secrets.token_hex(12))
    password = folder / "password"
    password.write_text(made.password)
    if os.geteuid() == 0:
        for path in (folder, password):
            shutil.chown(path, "postgres", "postgres")
    subprocess.run([made.binaries / "initdb", "-D", folder / "data", "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync"],
                   check=True, capture_output=True, **made.owner)
    process = made.start()
    yield made
    process.terminate()
    process.wait(30)
    shutil.rmtree(folder)


def ask(url: str, body: dict) -> list[dict]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_what_ran_is_still_there_after_a_restart_and_after_a_restore(cluster, tmp_path, monkeypatch):
    from tasks.services import services, start_all, stop_all

    project, prefect, mlflow = tmp_path / "project", free_port(), free_port()
    project.mkdir()
    shutil.copyfile(ROOT / "params.yaml", project / "params.yaml")
    for name, value in {"PREFECT_PORT": prefect, "MLFLOW_PORT": mlflow, "SEMIFLOW_PROJECT": project, "PREFECT_HOME": tmp_path / "prefect",
                        "PREFECT_API_DATABASE_CONNECTION_URL": cluster.url("postgresql+asyncpg", "prefect"),
                        "MLFLOW_BACKEND_STORE_URI": cluster.url("postgresql", "mlflow")}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for database in ("prefect", "mlflow"):
        cluster.tool("createdb", database)
    wanted = [service for service in services(project) if service.name in ("prefect", "mlflow")[:1 + WITH_MLFLOW]]
    api = f"http://127.0.0.1:{prefect}/api"

    def completed() -> set[str]:
        return {run["id"] for run in ask(f"{api}/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})}

    try:
        start_all(wanted, project)
        subprocess.run([sys.executable, "-m", "flows.janitor"], cwd=ROOT, check=True, env=os.environ | {"PREFECT_API_URL": api}, capture_output=True)
        ran, recorded = completed(), record() if WITH_MLFLOW else None
        assert len(ran) == 1
        assert not leaks(cluster.password, project)
        stop_all(project)
        start_all(wanted[:1], project)
        assert completed() == ran
        stop_all(project)

        for database in ("prefect", "mlflow"):  # as docs/operations.md has it
            cluster.tool("pg_dump", "--format=custom", f"--file={tmp_path / database}.dump", database)
            cluster.tool("dropdb", database)
            cluster.tool("createdb", database)
            cluster.tool("pg_restore", f"--dbname={database}", tmp_path / f"{database}.dump")
        start_all(wanted, project)
        assert completed() == ran
        assert not WITH_MLFLOW or record_of(recorded) == 0.5
    finally:
        stop_all(project)


def record() -> str:
    import mlflow

    from tasks.environment import tracking_uri

    mlflow.set_tracking_uri(tracking_uri())
    mlflow.set_experiment("kept")  # else the number of one in another store, if an earlier test of this process has set it
    with mlflow.start_run() as run:
        mlflow.log_metric("dice", 0.5)
        mlflow.log_text("a model", "model.txt")
    return run.info.run_id


def record_of(run_id: str) -> float:
    import mlflow

    assert mlflow.artifacts.load_text(f"runs:/{run_id}/model.txt") == "a model"
    return mlflow.get_run(run_id).data.metrics["dice"]


def leaks(password: str, project: Path) -> list[str]:
    """Where a password can be read by others: logs, state files, command lines."""
    files = [str(path) for path in (project / ".run").iterdir() if path.is_file() and password in path.read_text(errors="replace")]
    leaders = [psutil.Process(json.loads(path.read_text())["pid"]) for path in (project / ".run").glob("*.json")]
    processes = [process for leader in leaders for process in [leader, *leader.children(recursive=True)]]
    return files + [process.name() for process in processes if any(password in argument for argument in process.cmdline())]
