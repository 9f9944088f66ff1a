"""One fit: train on support (and source) cases, set the temperature on calibration cases. What a fit depends on, and nothing else."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from pipelines.outputs import write_json
from pipelines.systems import answers_of, create, params_model
from pipelines.systems.protocol import CaseClassifier, FewShotSystem, Task
from pipelines.threads import one_thread
from pipelines.train.calibrate import Temperature, band_sample, fit_temperature
from pipelines.train.fitted import RECORD, Fitted
from pipelines.train.outcomes import fit_case_temperature
from pipelines.train.split import Split


@dataclass(frozen=True)
class Job:
    """One fit to make."""

    experiment: str
    system: str
    params: dict
    shots: int
    site: str
    seed: int
    split: Split
    band_mm: float
    protocol: str = "within"

    def folder(self, out: Path) -> Path:
        return out / self.site / f"seed-{self.seed}"


def train_one(job: Job, task: Task, before: Path | None = None) -> Fitted:
    """Train and calibrate one fit, on one thread. Its record is what `fit.json` holds, but for the sizes, known once it is written.

    `before`: the folder of an earlier fit of an `Incremental` system, which goes on from there with the support; source cases are then not asked.
    """
    with one_thread():
        system = create(job.system, params_model(job.system)(**job.params))
        if before is not None:
            system.load(before)
        start = time.perf_counter()
        if before is not None:
            system.learn_site(task, job.split.support, job.seed)
        else:
            system.fit(task, job.split.support, job.seed, job.split.source)
        seconds = time.perf_counter() - start
        temperature = _calibrate(system, task, job)
    record = {"experiment": job.experiment, "system": job.system, "params": job.params, "protocol": job.protocol, "shots": job.shots,
              "site": job.site, "seed": job.seed, "labels": list(task.labels), "modalities": list(task.modalities), "split": job.split.ids(),
              "calibration_from": job.split.calibration_from, "temperature": temperature.value, "calibration": asdict(temperature),
              "train_seconds": round(seconds, 3), "backbone": task.backbone.fingerprint}
    if answers_of(job.system) == "case":
        record["outcomes"] = list(task.outcomes)
    return Fitted(system, task, record)


def save_fit(fitted: Fitted, final: Path) -> dict:
    """Write a fit so that its folder appears whole. Returns what `fit.json` holds."""
    working = final.with_name(f".{final.name}.partial")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    record = {**fitted.record, **save_system(fitted.system, working)}
    write_json(working / RECORD, record)
    working.rename(final)
    return record


def save_system(system: FewShotSystem, folder: Path) -> dict[str, int | None]:
    """Let a system write itself into an empty folder. Returns `model_bytes` and `parameters` (numbers in its tensors; None where it stores none)."""
    from safetensors import safe_open

    system.save(folder)
    count, tensors = 0, False
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            count += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)
            tensors = True
    return {"model_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), "parameters": count if tensors else None}


def _calibrate(system: FewShotSystem | CaseClassifier, task: Task, job: Job) -> Temperature:
    if answers_of(job.system) == "case":
        said = [(system.predict(task, case), task.outcomes.index(case.outcome)) for case in job.split.calibration]
        return fit_case_temperature(said) if said else Temperature()
    samples = [band_sample(system.predict(task, case), case.label(), case.spacing_mm, job.band_mm) for case in job.split.calibration]
    return fit_temperature(samples) if samples else Temperature()
