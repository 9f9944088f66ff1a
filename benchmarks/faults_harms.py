"""What `faults.py` does to a run, each harm at a moment that its round's random numbers choose: a line of the log, and a while after it."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.faults_hospital import ARCHIVED, WATCHED, Clinic, Process
from tasks.site import STAGES as DATA

#: Moment -> what the log says then, and for how many seconds at most after it a harm strikes.
STAGES = {name: (f"Running stage '{name}'", 3.0) for name in (*DATA, "adapt", "judge")}
MOMENTS = {"begin": ("Beginning flow run", 1.5), **{name: STAGES[name] for name in DATA},
           "roles": (f"Task run '{' '.join(DATA)}' - Finished", 2.0), "adapt": STAGES["adapt"], "judge": STAGES["judge"],
           "promote": ("Task run 'judge' - Finished", 4.0)}
LOCKED_S = (4.0, 20.0)  # SQLite waits 5 s for a lock before it gives up
SPARE_BYTES = 400_000  # what a full disk still takes, at most
LARGEST_FILE_BYTES = 60_000
DOWN_S = 4.0


class Harm:
    """A harm of one round: prepared, struck while `process` runs, ended, and its damage repaired before the next run."""

    sites: tuple[str, ...] = (WATCHED, ARCHIVED)
    moments: tuple[str, ...] = tuple(MOMENTS)

    def __init__(self, clinic: Clinic, site: str, rng: np.random.Generator) -> None:
        self.clinic, self.site, self.rng = clinic, site, rng
        self.anchor = str(rng.choice(self.moments))
        self.delay = float(rng.uniform(0, MOMENTS[self.anchor][1]))

    @property
    def moment(self) -> str:
        return f"{self.anchor} + {self.delay:.2f} s"

    @property
    def order(self) -> tuple[int, float]:
        """When in a run it strikes, compared with others."""
        return list(MOMENTS).index(self.anchor), self.delay

    def before(self) -> None:
        """What is to be there before the run starts."""

    def strike(self, process: Process) -> bool:
        """Wait for the moment and do it. False where the run was over before."""
        if not process.reached(MOMENTS[self.anchor][0]):
            return False
        time.sleep(self.delay)
        return self.harm(process)

    def harm(self, process: Process) -> bool:
        raise NotImplementedError

    def over(self) -> None:
        """The harmed run has ended."""

    def faults(self, status: int) -> list[str]:
        """What the harmed run itself should not have done."""
        return []

    def repair(self) -> None:
        """What a person does before the next run."""


class KillFlow(Harm):
    """`kill -9` of the process that the flow runs in."""

    def harm(self, process: Process) -> bool:
        alive = process.running
        if alive:
            process.popen.send_signal(signal.SIGKILL)
        return alive

    def repair(self) -> None:
        time.sleep(0.5)  # the guard of a stage ends it when its pipe does


class KillPart(Harm):
    """`kill -9` of a process that the flow has started, found by its command."""

    moments = tuple(STAGES)
    module = ""

    def harm(self, process: Process) -> bool:
        while process.running:
            for part in _family(process):
                with contextlib.suppress(psutil.Error):
                    if self.module in " ".join(part.cmdline()[1:3]):
                        part.kill()
                        return True
            time.sleep(0.02)
        return False


class KillDvc(KillPart):
    module = "-m dvc"


class KillStage(KillPart):
    module = "-m pipelines."


class KillPrefect(Harm):
    """`kill -9` of the Prefect server, which is started again some seconds later."""

    def harm(self, process: Process) -> bool:
        os.killpg(self.clinic.hospital.server_pid, signal.SIGKILL)
        time.sleep(float(self.rng.uniform(0, DOWN_S)))
        self.clinic.hospital.start_server()
        return True


class KillArchive(Harm):
    """`kill -9` of the archive while studies are fetched from it; it is back for the next run."""

    sites, moments = (ARCHIVED,), ("begin",)

    def harm(self, process: Process) -> bool:
        self.clinic.archive.kill()
        return process.running

    def repair(self) -> None:
        self.clinic.archive.start()


class LockRegistry(Harm):
    """MLflow's database is locked by somebody else for some seconds, and every connection to it fails meanwhile."""

    moments = ("begin", "roles", "adapt", "promote")

    def harm(self, process: Process) -> bool:
        seconds = float(self.rng.uniform(*LOCKED_S))
        while not self.clinic.registry.is_file():
            if not process.running:
                return False
            time.sleep(0.02)
        self.thread = threading.Thread(target=_lock, args=(self.clinic.registry, seconds))
        self.thread.start()
        return process.running

    def over(self) -> None:
        if hasattr(self, "thread"):
            self.thread.join()


class FillDisk(Harm):
    """The disk with the sites' workspaces (a small tmpfs) gets full but for a few hundred kilobytes, until the run has ended.

    Where nothing may be mounted, files of the flow and its children may not grow beyond a small size (`RLIMIT_FSIZE`) instead: a write fails there
    as it does on a full disk, but small files still pass.
    """

    def harm(self, process: Process) -> bool:
        spare = int(self.rng.uniform(0, SPARE_BYTES))
        if not self.clinic.mounted:
            for one in _family(process):
                with contextlib.suppress(psutil.Error):
                    one.rlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE_BYTES, LARGEST_FILE_BYTES))
            return process.running
        disk = os.statvfs(self.clinic.sites)
        with self.filler.open("wb") as handle:
            size = disk.f_bavail * disk.f_frsize - spare
            while size > 0:
                try:
                    os.posix_fallocate(handle.fileno(), 0, size)
                    break
                except OSError:  # the run wrote something meanwhile
                    size -= SPARE_BYTES
        return process.running

    @property
    def filler(self) -> Path:
        return self.clinic.sites / ".filler"

    def over(self) -> None:
        self.filler.unlink(missing_ok=True)


class CorruptStudy(Harm):
    """Files of a study, new or old, are cut or overwritten on their way into the watched folder; later they are sent again."""

    sites, moments = (WATCHED,), ("begin",)

    def before(self) -> None:
        new = bool(self.rng.random() < 0.5)
        arrived = self.clinic.arrived[self.site]
        self.patient = arrived[-1 if new else int(self.rng.integers(len(arrived)))]
        for folder in sorted((self.inbox / self.patient.name).iterdir()):
            if "FLAIR" in folder.name or "dark-fluid" in folder.name or "segmentation" in folder.name:
                files = sorted(folder.glob("*.dcm"))
                _damage(files[len(files) // 2], self.rng)

    @property
    def inbox(self) -> Path:
        return self.clinic.workspace(self.site).inbox

    def strike(self, process: Process) -> bool:
        return True

    def faults(self, status: int) -> list[str]:
        from benchmarks.faults_checks import pseudonym
        from pipelines.cohort import read_quarantine
        from pipelines.sites.lesson import labelled

        if status:
            return [f"a corrupt study ended the run with status {status}"]
        workspace, subject = self.clinic.workspace(self.site), pseudonym(self.clinic, self.patient)
        kept = any(case["subject"] == subject for case in labelled(workspace.resampled).values())
        named = len(read_quarantine(workspace.bids)) >= 2  # its FLAIR and its segmentation
        return ["a corrupt study counts as a labelled case"] * kept + ["quarantine.tsv does not name it"] * (not named)

    def repair(self) -> None:
        shutil.copytree(self.patient, self.inbox / self.patient.name, dirs_exist_ok=True)


def _family(process: Process) -> list[psutil.Process]:
    """The flow's process and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.popen.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def _lock(path: Path, seconds: float) -> None:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _damage(path: Path, rng: np.random.Generator) -> None:
    """Cut a file within its pixels, or overwrite it with noise from its first element on."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        content = content[:int(rng.integers(len(content) // 2, len(content) - 200))]
    else:
        content[140:] = rng.bytes(len(content) - 140)
    path.write_bytes(content)


HARMS: dict[str, type[Harm]] = {
    "flow": KillFlow, "dvc": KillDvc, "stage": KillStage, "archive": KillArchive, "prefect": KillPrefect, "registry": LockRegistry, "disk": FillDisk,
    "study": CorruptStudy}
