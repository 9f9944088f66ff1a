"""What the service adds to its work (`python -m benchmarks.service adapt`), and what it does at once (`python -m benchmarks.service predict`).

Every run is the command that a user or a schedule starts, a process of its own against a Prefect server. Processor time is printed beside the
clock's: it is the steadier of the two on a busy machine.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cyclopts
import yaml

from benchmarks.faults_hospital import Hospital
from pipelines.cli import run
from pipelines.errors import DataError
from pipelines.params import Simulate
from tasks.site import STAGES, Workspace
from tests.tiny_store import fresh_store
from tests.tiny_studies import contents

PROJECT = Path(__file__).parents[1]
SITE = "site-b"
#: What the stages make, and what the flow has to write before they can.
MADE = ("data", "challenger", "verdict.json", "verdict.png")
app = cyclopts.App(name="python -m benchmarks.service", help_format="plaintext")


@app.command
def adapt(*, studies: int = 5, repeats: int = 1, slice_mm: float | None = None) -> None:
    """Adapt to simulated DICOM studies with the flow, and then run the same stages bare, with params.yaml's own system.

    Prefect, DVC, the roles, the gate's bookkeeping and the registry are all in the flow's time. The bare stages are the very commands of the
    workspace's dvc.yaml, one after another. A second run of the flow, which finds nothing new, is timed too.

    Parameters
    ----------
    studies
        Labelled studies of the site; roles are given to them as params say.
    repeats
        How often both are timed, in turns; medians are printed.
    slice_mm
        Acquire every series in slices of this thickness instead of the site's own 6 mm: 1 to 1.5 as 3-D sequences have it.
    """
    with tempfile.TemporaryDirectory(prefix="semiflow-service-") as temporary, Hospital(Path(temporary)) as hospital:
        inbox = simulated(Path(temporary) / "studies", studies, slice_mm)
        spent: dict[str, list[Spent]] = {"flow": [], "nothing new": [], "stages": []}
        for number in range(repeats):
            workspace = new_workspace(Path(temporary) / f"project-{number}", inbox)
            environment = known_to(hospital, workspace)
            for name in ("flow", "nothing new"):
                spent[name].append(timed([sys.executable, "-m", "flows.adapt_site", SITE], PROJECT, environment))
            spent["stages"].append(bare(workspace, environment))
        say({name: sorted(values)[len(values) // 2] for name, values in spent.items()}, studies)


@app.command
def predict(*, count: int = 10, studies: int = 5) -> None:
    """Predict COUNT studies with a site's champion, one process after another and all at once, and compare what they wrote.

    Parameters
    ----------
    studies
        Labelled studies that the champion is made of and judged on; predicted are further ones of the site.
    """
    with tempfile.TemporaryDirectory(prefix="semiflow-service-") as temporary, Hospital(Path(temporary)) as hospital:
        work = Path(temporary)
        arrived = sorted(simulated(work / "studies", studies + count).iterdir())
        for study in arrived[:studies]:
            shutil.copytree(study, work / "inbox" / study.name)
        workspace = new_workspace(work / "project", work / "inbox")
        environment = known_to(hospital, workspace)
        timed([sys.executable, "-m", "flows.adapt_site", SITE], PROJECT, environment)
        commands = [[sys.executable, "-m", "flows.predict", str(study), "--site", SITE, "--even-if-withheld"] for study in arrived[studies:]]
        alone = [timed([*command, "--out", str(work / f"alone-{number}")], PROJECT, environment) for number, command in enumerate(commands)]
        with ThreadPoolExecutor(count) as pool:
            started = time.perf_counter()
            list(pool.map(lambda one: timed([*one[1], "--out", str(work / f"together-{one[0]}")], PROJECT, environment), enumerate(commands)))
            together = time.perf_counter() - started
        different = [number for number in range(count) if contents(work / f"alone-{number}") != contents(work / f"together-{number}")]
        seconds = sum(spent.clock for spent in alone)
        print(f"{count} predictions one after another: {seconds:.1f} s, at once: {together:.1f} s, {seconds / together:.2f} times as many a minute "
              f"({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}); {len(different)} of {count} differ")
        if different:
            sys.exit(1)


class Spent(NamedTuple):
    """Seconds on the clock, and of processors."""

    clock: float
    processor: float

    def __str__(self) -> str:
        return f"{self.clock:.1f} s ({self.processor:.1f} s of processor time)"


def known_to(hospital: Hospital, workspace: Workspace) -> dict[str, str]:
    """The environment of a run on the project, seen by the hospital's Prefect server."""
    return hospital.environment() | {"PREFECT_API_URL": f"{hospital.server.page}/api", "SEMIFLOW_PROJECT": str(workspace.project)}


def simulated(folder: Path, studies: int, slice_mm: float | None = None) -> Path:
    """DICOM studies of the default phantom cohort's second site, at full size, a folder each; in slices of its own thickness, or of `slice_mm`."""
    from pipelines.params import load_params
    from pipelines.phantoms.cohort import simulate_subject
    from pipelines.phantoms.sites import SITES

    if slice_mm:
        thin = {name: replace(series, slices=round(series.slices * series.step_mm / slice_mm), step_mm=slice_mm, thickness_mm=slice_mm)
                for name, series in SITES[SITE].series.items()}
        SITES[SITE] = replace(SITES[SITE], series=thin)
    settings = load_params(PROJECT / "params.yaml").simulate.model_dump() | {"subjects_per_site": studies, "missing_fraction": 0.0}
    for index in range(studies):
        simulate_subject(Simulate(**settings), SITE, index, folder)
    return folder / SITE


def new_workspace(project: Path, inbox: Path) -> Workspace:
    """A project with this code and these params, and one site to which the studies have come."""
    project.mkdir()
    for name in ("pipelines", "tasks", "flows", "models", "conf", "requirements.lock"):
        (project / name).symlink_to(PROJECT / name)
    content = yaml.safe_load((PROJECT / "params.yaml").read_text())
    content["service"]["sites"] = {SITE: {"settle_s": 0}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    workspace = Workspace(SITE, project)
    fresh_store(project)  # an installation has one already
    shutil.copytree(inbox, workspace.inbox)
    return workspace


def bare(workspace: Workspace, environment: dict[str, str]) -> Spent:
    """The stages' own commands alone, in an emptied workspace."""
    for name in MADE:
        path = workspace.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    graph = yaml.safe_load((workspace.folder / "dvc.yaml").read_text())["stages"]
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"}
    each = [timed(["sh", "-c", graph[name]["cmd"]], workspace.folder, environment | path) for name in (*STAGES, "adapt", "judge")]
    return Spent(*map(sum, zip(*each, strict=True)))


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> Spent:
    """What a command takes. Raises `DataError` where it fails."""
    started, before = time.perf_counter(), _children_time()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise DataError(f"{' '.join(command[:4])} failed: {(done.stdout.strip().splitlines() or ['it said nothing'])[-1]}")
    return Spent(time.perf_counter() - started, _children_time() - before)


def _children_time() -> float:
    """Processor seconds of all processes that have been started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def say(spent: dict[str, Spent], studies: int) -> None:
    """The two lines of the outcome."""
    flow, stages = spent["flow"], spent["stages"]
    shares = [100 * (whole - part) / whole for whole, part in zip(flow, stages, strict=True)]
    print(f"{studies} studies from DICOM to a verdict: {flow} with the flow, {stages} for the stages alone; "
          f"orchestration, registry and reports are {shares[0]:.1f} % of the time and {shares[1]:.1f} % of the processor time")
    print(f"a run with nothing new: {spent['nothing new']} ({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})")


if __name__ == "__main__":
    run(app)
