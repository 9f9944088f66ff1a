"""What the stages left to be recorded, read from `reports/` and `data/`: nothing here knows MLflow."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from pipelines.errors import DataError
from pipelines.outputs import sha256

#: Raise when what a run holds changes, so that the next recording makes new runs of the same results.
RECORD_VERSION = 1
CLASSIFICATION = "classification.csv"
#: What the names of experiments begin with that are methods of the continual protocol.
CONTINUAL = "continual/"


@dataclass(frozen=True)
class Experiment:
    """One experiment of a cohort, as evaluated."""

    cohort: str
    name: str
    folder: Path  # reports/cohorts/<cohort>/<experiment>
    models: Path  # data/<cohort>/models/<experiment>
    summary: Mapping[str, object]

    @property
    def system(self) -> str:
        return str(self.summary["system"])

    @property
    def curve(self) -> str:
        """What runs of other numbers of shots belong to the same curve: the system, or the arm of a sweep under its protocol."""
        arm, protocol = str(self.summary.get("arm", self.system)), str(self.summary["protocol"])
        return f"{arm} {protocol}" if self.summary.get("sweep") and protocol != "within" else arm

    @property
    def answers_case(self) -> bool:
        return self.summary.get("answers") == "case"

    @property
    def rows(self) -> Path:
        """A row per case and label or class."""
        return self.folder / ("outcomes.csv" if self.answers_case else "cases.csv")

    @property
    def shots(self) -> int:
        return int(self.summary["shots"])


@dataclass(frozen=True)
class Reported:
    """One cohort's results. `params` is the content of its params.yaml, empty where that file is gone."""

    cohort: str
    project: Path
    reports: Path
    experiments: tuple[Experiment, ...]
    metrics: Mapping[str, object]
    params_file: Path
    lock_file: Path

    @property
    def params(self) -> dict:
        return yaml.safe_load(self.params_file.read_text()) if self.params_file.is_file() else {}

    @property
    def data(self) -> Path:
        return self.project / "data" / self.cohort

    @property
    def manifest(self) -> Path:
        return self.data / "resampled" / "manifest.tsv"

    def fingerprint(self) -> str:
        """Digest of every result row, summary and model file: equal means there is nothing new to record."""
        digest = hashlib.sha256(f"record {RECORD_VERSION} {self.cohort}".encode())
        for experiment in self.experiments:
            files = [experiment.rows, experiment.folder / "summary.json"]
            files += sorted(path for path in experiment.models.rglob("*") if path.is_file() and not hidden(path, experiment.models))
            for path in files:
                digest.update(f"{experiment.name} {path.name} {sha256(path)}\n".encode())
        if self.continual:
            digest.update(json.dumps(self.continual, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def continual(self) -> Mapping:
        """What stage continual found, by scenario and method; empty where it has not run."""
        return self.metrics.get(self.cohort, {}).get("continual", {}).get("scenarios", {})


def read_reports(reports: Path, project: Path) -> list[Reported]:
    """Every cohort of `reports/results.csv` and `classification.csv`, by name, each with its experiments."""
    for name, maker in (("results.csv", "report"), ("metrics.json", "report")):
        if not (reports / name).is_file():
            raise DataError(f"{reports.name}/{name} does not exist; run the {maker} stage first")
    table = pd.read_csv(reports / "results.csv", usecols=["cohort", "experiment"], dtype=str)
    tables = [table[~table.experiment.str.startswith(CONTINUAL)]]  # those have no folder of their own: they come from metrics.json
    if (reports / CLASSIFICATION).is_file():
        tables.append(pd.read_csv(reports / CLASSIFICATION, usecols=["cohort", "method"], dtype=str).rename(columns={"method": "experiment"}))
    rows = pd.concat(tables).drop_duplicates()
    metrics = json.loads((reports / "metrics.json").read_text())
    return [_cohort(str(cohort), sorted(group.experiment), reports, project, metrics) for cohort, group in rows.groupby("cohort", sort=True)]


def _cohort(cohort: str, names: list[str], reports: Path, project: Path, metrics: dict) -> Reported:
    experiments = []
    for name in names:
        folder = reports / "cohorts" / cohort / name
        summary = folder / "summary.json"
        if not summary.is_file():
            raise DataError(f"{cohort}/{name}/summary.json does not exist though the tables have rows of it; run the report stage again")
        experiments.append(Experiment(cohort, name, folder, project / "data" / cohort / "models" / name, json.loads(summary.read_text())))
    laid_out = project / "cohorts" / cohort
    base = laid_out if (laid_out / "params.yaml").is_file() else project
    return Reported(cohort, project, reports, tuple(experiments), metrics, base / "params.yaml", base / "dvc.lock")


def hidden(path: Path, below: Path) -> bool:
    """Whether a part of `path` below `below` starts with a dot: locks and work in progress."""
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def leaves(tree: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value of nested dicts with the keys that lead to it. A list of numbers or words is a value."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, (*keys, str(key)))
    else:
        yield keys, tree


def numbers_of(metrics: Mapping[str, object], cohort: str, experiment: str) -> dict[str, float]:
    """The aggregated numbers of one experiment in metrics.json, named for MLflow, whose UI groups by what stands before the slash.

    A mean is `<label>/<metric>`, its interval `<label>/<metric>.low` and `.high`; one site's are under `<site> <label>/`. What answers whole cases
    has `cases/<metric>` and `<site>/<metric>`.
    """
    found = metrics.get(cohort, {})
    if experiment in (classified := found.get("classification", {}).get("experiments", {})):
        entry = classified[experiment]
        groups = {"cases": entry["measures"], **entry["sites"]}
    else:
        entry = found.get("experiments", {}).get(experiment, {})
        groups = dict(entry.get("labels", {}))
        groups |= {f"{site} {label}": values for site, labels in entry.get("sites", {}).items() for label, values in labels.items()}
    numbers = {}
    for group, values in {**groups, "cost": entry.get("cost", {})}.items():
        for keys, value in leaves(values):
            if isinstance(value, (int, float)) and math.isfinite(value):
                numbers[metric_name(f"{group}/{'.'.join(keys).removesuffix('.mean')}")] = float(value)
    return numbers


def metric_name(text: str) -> str:
    """`text` with the characters that MLflow refuses in a metric's or parameter's name replaced."""
    return re.sub(r"[^\w\-. :/]", "_", text)
