"""The hospital that `faults.py` harms: studies, a Prefect server and an archive of its own, and projects whose disk can be filled."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml

from tasks.environment import HOST
from tasks.services import Service, start_all, stop_all
from tasks.site import Workspace
from tests.tiny_hospitals import ROOT, make_project, make_studies
from tests.tiny_pacs import PASSWORD, PASSWORD_VARIABLE, Pacs, free_ports

WATCHED, ARCHIVED = "site-a", "site-b"  # the one reads a folder, the other asks an archive
FIRST = 5  # labelled studies of a site before its first run: as few as the gate takes
DISK_MB = 192


class Process:
    """A run of the flow as a process of its own, whose log can be waited for."""

    def __init__(self, site: str, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as handle:
            self.popen = subprocess.Popen([sys.executable, "-m", "flows.adapt_site", site], cwd=ROOT, env=dict(environment), stdout=handle,
                                          stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def reached(self, text: str) -> bool:
        """Wait until the log says `text`; False where the process ended without."""
        while True:
            ended = not self.running  # looked at before the log, which may get its last line meanwhile
            if text in self.log.read_text(errors="replace"):
                return True
            if ended:
                return False
            time.sleep(0.02)

    def wait(self, timeout: float) -> int:
        """The exit status, -9 where it was killed. One that hangs is ended, with a status that no run has."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.end()
            return 255

    def end(self) -> None:
        if self.running:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()

    def outcome(self) -> str:
        """What the command printed at its end, 'promote' for example."""
        found = re.findall(r"^site-[ab]: (\S+)$", self.log.read_text(errors="replace"), re.MULTILINE)
        return found[-1] if found else "?"

    def last_line(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")


@dataclass
class Hospital:
    """Studies and a Prefect server below `folder`, used as a context."""

    folder: Path

    def __enter__(self) -> Hospital:
        for name in ("prefect", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.start_server()
        return self

    def __exit__(self, *error: object) -> None:
        stop_all(self.folder)

    def studies(self, site: str, count: int) -> list[Path]:
        """The first `count` studies of a site, a folder each."""
        folder = make_studies(self.folder / "studies", **{site.replace("-", "_"): count}) / site  # those that are there already stay
        return sorted(folder.iterdir(), key=lambda path: path.name.split("_")[0][-3:])[:count]  # patients are numbered as they were made

    @cached_property
    def server(self) -> Service:
        """A Prefect server on a port and with a database of its own."""
        number = free_ports(1)[0]
        page = f"http://{HOST}:{number}"
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(number)]
        return Service("prefect", command, f"{page}/api/health", page, number, self.environment() | {"PREFECT_API_URL": f"{page}/api"})

    def start_server(self) -> None:
        with contextlib.redirect_stdout(None):
            start_all([self.server], self.folder)

    @property
    def server_pid(self) -> int:
        """Of the server, which leads a process group."""
        return json.loads((self.folder / ".run" / "prefect.json").read_text())["pid"]

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")}
        return inherited | {"PREFECT_HOME": str(self.folder / "prefect"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                            PASSWORD_VARIABLE: PASSWORD}

    @contextlib.contextmanager
    def clinic(self, number: int) -> Iterator[Clinic]:
        """A project with two sites that have not been adapted to yet."""
        root, archive = self.folder / f"project-{number}", self.folder / f"archive-{number}"
        for folder in (root, archive):
            shutil.rmtree(folder, ignore_errors=True)
        clinic = Clinic(self, make_project(root), Pacs(archive))
        try:
            clinic.open()
            yield clinic
        finally:
            clinic.close()

    def zombies(self) -> list[str]:
        """Runs that the janitor leaves open, after all processes are gone."""
        environment = self.environment() | {"PREFECT_API_URL": f"{self.server.page}/api", "SEMIFLOW_PROJECT": str(ROOT)}
        done = subprocess.run([sys.executable, "-m", "flows.janitor"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return [f"the janitor failed: {done.stderr.strip().splitlines()[-1]}"]
        code = ("from prefect import get_client\nfrom prefect.client.schemas.filters import *\n"
                "with get_client(sync_client=True) as client:\n    for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state="
                "FlowRunFilterState(type=FlowRunFilterStateType(any_=['RUNNING', 'PENDING', 'CANCELLING'])))):\n        print(run.name)\n")
        left = subprocess.run([sys.executable, "-c", f"import tasks\n{code}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return [f"the janitor left the run {name} open" for name in left.stdout.split()]


@dataclass
class Clinic:
    """One project of the hospital: a site with a watched folder, a site with an archive. `arrived`: site -> folders of its studies, in order."""

    hospital: Hospital
    project: Path
    archive: Pacs
    arrived: dict[str, list[Path]] = field(default_factory=lambda: {WATCHED: [], ARCHIVED: []})
    mounted: bool = False

    def open(self) -> None:
        self.archive.start()
        config = self.archive.config(self.project, "dicomweb", settle_s=0)
        content = yaml.safe_load((self.project / "params.yaml").read_text())
        content["service"]["sites"] = {WATCHED: {"settle_s": 0}, ARCHIVED: {"pacs": str(config)}}
        (self.project / "params.yaml").write_text(yaml.safe_dump(content))
        self.sites.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=700", "semiflow-faults", str(self.sites)]
        self.mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def close(self) -> None:
        self.archive.kill()
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.sites)], check=False)

    @property
    def sites(self) -> Path:
        return self.project / "sites"

    @property
    def registry(self) -> Path:
        return self.project / "mlruns" / "mlflow.db"

    def workspace(self, site: str) -> Workspace:
        return Workspace(site, self.project)

    def arrive(self, site: str) -> None:
        """The next labelled study arrives; before the first run of a site all that it needs."""
        count = len(self.arrived[site])
        for folder in self.hospital.studies(site, count + 1 if count else FIRST)[count:]:
            if site == WATCHED:
                shutil.copytree(folder, self.workspace(site).inbox / folder.name)
            else:
                self.send(folder)
            self.arrived[site].append(folder)

    def send(self, folder: Path) -> None:
        """Store a study in the archive."""
        for path in sorted(folder.rglob("*.dcm")):
            self.archive.session.post(f"{self.archive.root}/instances", data=path.read_bytes(), timeout=10).raise_for_status()

    def start(self, site: str, number: int, what: str = "harmed") -> Process:
        """Start the flow for a site."""
        environment = self.hospital.environment() | {"SEMIFLOW_PROJECT": str(self.project), "PREFECT_API_URL": f"{self.hospital.server.page}/api"}
        return Process(site, self.hospital.folder / "logs" / f"{number:04d}-{what}.log", environment)
