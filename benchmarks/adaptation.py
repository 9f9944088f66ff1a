"""How long a site takes to adapt to, and how much memory: from DICOM in one go (cold), and with its features cached (warm).

Every stage and the fit run as the commands that a user runs, each a process of its own, so that imports count and memory is one stage's alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import cyclopts
import psutil

if __package__ in (None, ""):  # `python benchmarks/adaptation.py`: the project is not on the path then
    sys.path[0] = str(Path(__file__).parents[1])

from pipelines.cli import run
from pipelines.errors import DataError, UsageError

PROJECT = Path(__file__).parents[1]
LOOK_S = 0.05
Modalities = Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True)]
app = cyclopts.App(name="python benchmarks/adaptation.py", help_format="plaintext")


@app.command
def cold(source: Path, *, studies: int = 5, modalities: Modalities = ("T1w", "ceT1w", "FLAIR"), params: Path = PROJECT / "params.yaml") -> None:
    """From the DICOM studies of one site (a folder each in SOURCE) to a calibrated model: ingest, resample, prompts, embed and one fit.

    Example: python benchmarks/adaptation.py cold data/phantom/dicom/site-b

    Parameters
    ----------
    studies
        The first so many folders of SOURCE; one is left for the temperature and one to be judged, the others are shots.
    modalities
        Series of other modalities are left where they are.
    params
        A params.yaml with the rules, labels and backbone.
    """
    found = sorted(path for path in source.iterdir() if path.is_dir())[:studies]
    if len(found) < studies:
        raise UsageError(f"{source} holds {len(found)} studies, {studies} were asked for; give --studies {len(found)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        settings = settings_of(params, work, modalities, shots=studies - 2)
        for study in found:
            shutil.copytree(study, work / "dicom" / "site" / study.name)
        stages = {name: ["--source", str(work / before), "--out", str(work / name), "--params", str(settings)]
                  for name, before in (("ingest", "dicom"), ("resample", "ingest"), ("prompts", "resample"))}
        stages["embed"] = [*stages["prompts"][:2], "--prompts", str(work / "prompts"), "--out", str(work / "embed"), "--params", str(settings)]
        stages["train"] = _fit(work / "resample", work / "prompts", work / "embed", work / "train", settings)
        say({name: measured(name, arguments) for name, arguments in stages.items()})


@app.command
def warm(cohort: str = "tcga-lgg", *, shots: int = 16, root: Path = Path()) -> None:
    """One fit of the headline system on shots of all sites of a cohort whose features are cached.

    Example: python benchmarks/adaptation.py warm tcga-lgg --shots 16

    Parameters
    ----------
    root
        The folder that holds data/COHORT and cohorts/COHORT.
    """
    own = root / "cohorts" / cohort / "params.yaml"
    data = root / "data" / cohort
    with tempfile.TemporaryDirectory() as temporary:
        settings = settings_of(own if own.is_file() else root / "params.yaml", Path(temporary), (), shots=shots, pooled=True)
        say({"train": measured("train", _fit(data / "resampled", data / "prompts", data / "embeddings", Path(temporary) / "train", settings))})


def settings_of(params: Path, work: Path, modalities: tuple[str, ...], *, shots: int, pooled: bool = False) -> Path:
    """A params.yaml of one experiment, `shots` of the headline system at one draw. Rules of other than `modalities` (none: all) go."""
    import yaml

    from pipelines.params import load_params

    content = load_params(params).model_dump(mode="json")
    content["experiments"] = {"adapt": {"system": content["evaluate"]["headline"], "shots": shots, "protocol": "pooled" if pooled else None}}
    content["protocol"] |= {"seeds": [0], "min_query_cases": 1}
    content["cohort"] |= {"targets": "all"}
    if modalities:
        unknown = set(modalities) - set(content["ingest"]["modalities"])
        if unknown:
            raise UsageError(f"{params} has no modality {', '.join(sorted(unknown))}; it has {', '.join(content['ingest']['modalities'])}")
        others = [name for name in content["ingest"]["modalities"] if name not in modalities]
        for rule in content["ingest"]["rules"]:
            if rule.get("modality") in others:
                rule |= {"modality": None, "skip": "a modality that is not asked for"}
    path = work / "params.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    load_params(path)
    return path


def _fit(source: Path, prompts: Path, embeddings: Path, out: Path, settings: Path) -> list[str]:
    folders = {"source": source, "prompts": prompts, "embeddings": embeddings, "out": out, "params": settings}
    return ["--experiment", "adapt", *(word for name, path in folders.items() for word in (f"--{name}", str(path.absolute())))]


def measured(stage: str, arguments: list[str]) -> tuple[float, float]:
    """Seconds of one stage, and the most memory (10^9 bytes) that its processes held together. Raises `DataError` where it fails."""
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-m", f"pipelines.{stage}", *arguments], cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, _held(process.pid))
            time.sleep(LOOK_S)
        seconds = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            raise DataError(f"the stage {stage} failed: {(log.read().strip().splitlines() or ['it said nothing'])[-1]}")
    return seconds, peak / 1e9


def _held(pid: int) -> int:
    """Resident bytes of a process and all its children; what forked children share counts for each (an upper bound)."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return sum(process.memory_info().rss for process in family)
    except psutil.NoSuchProcess:
        return 0


def say(stages: dict[str, tuple[float, float]]) -> None:
    """A line per stage and the whole."""
    for name, (seconds, peak) in stages.items():
        print(f"{name}: {seconds:.1f} s, {peak:.2f} GB")
    print(f"together: {sum(seconds for seconds, _ in stages.values()):.1f} s, at most {max(peak for _, peak in stages.values()):.2f} GB "
          f"({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})")


if __name__ == "__main__":
    run(app)
