"""What there is to report: the evaluated experiments that params still list, of the project's cohort and of every cohort laid out beside it.

A folder under `reports/cohorts` that no params.yaml lists any more is stale and ignored; an experiment that is listed and not evaluated yet
is named in the report, so that nothing is missing silently.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.errors import DataError, UsageError
from pipelines.params import DEFAULT, Evaluate, Params, load_params

#: The first columns of results.csv, in this order; whatever else the evaluate stage wrote follows.
COLUMNS = ["cohort", "experiment", "system", "shots", "seed", "site", "case", "label", "dice", "hd95_mm", "nsd_2mm", "ece", "brier", "nll",
           "false_positive_ml", "train_seconds", "predict_seconds"]
FINGERPRINT = "fingerprint.json"  # what ingest says of the cohort's data, beside the experiments' folders
BACKBONE = "embed.json"  # what embed says of the cohort's backbone and cache, there too
#: What of it goes into metrics.json: what does not depend on when and where the stage ran.
BACKBONE_FACTS = ("backbone", "fingerprint", "precision", "levels", "patch_ceiling", "bytes_per_voxel", "times_float16_voxels")
TEXT = dict.fromkeys(("cohort", "experiment", "system", "site", "case", "label", "region", "calibration_from"), str)


@dataclass(frozen=True)
class Cohort:
    """One cohort's evaluated experiments, as the report sees them."""

    name: str
    file: str  # its params.yaml, seen from the project's folder
    settings: Evaluate
    protocol: dict[str, object]
    summaries: dict[str, dict]  # experiment -> summary.json, in params' order
    cases: pd.DataFrame
    reliability: pd.DataFrame
    folder: Path
    waiting: list[str]  # listed in params, not evaluated yet
    fingerprint: dict | None = None  # None where ingest was an earlier version's
    backbone: dict | None = None  # None where embed was

    @property
    def any_summary(self) -> dict:
        """What is the same for every experiment of the cohort."""
        return next(iter(self.summaries.values()))

    @property
    def labels(self) -> dict[str, str]:
        """Label name -> how a radiologist names it."""
        return {label["name"]: label["text"] for label in self.any_summary["labels"]}

    @property
    def patch_ceiling(self) -> dict[str, float | None]:
        """Label -> Dice of the truth itself on the backbone's finest token grid."""
        if self.backbone is None:
            return {}
        finest = min(self.backbone["levels"], key=lambda level: self.backbone["levels"][level]["stride"])
        return {label: values["mean"] for label, values in self.backbone["patch_ceiling"][finest].items()}

    @property
    def headline(self) -> str:
        """The system that the others are compared with; the first one where the cohort lacks the one params name."""
        systems = [summary["system"] for summary in self.summaries.values()]
        return self.settings.headline if self.settings.headline in systems else systems[0]

    def title(self, system: str) -> str:
        return next(summary["title"] for summary in self.summaries.values() if summary["system"] == system)

    def experiment(self, system: str, shots: int) -> str | None:
        return next((name for name, summary in self.summaries.items() if (summary["system"], summary["shots"]) == (system, shots)), None)

    def systems(self) -> list[str]:
        """Systems, the headline first."""
        return sorted({summary["system"] for summary in self.summaries.values()}, key=lambda name: (name != self.headline, name))

    def shots(self) -> list[int]:
        return sorted({summary["shots"] for summary in self.summaries.values()})

    def best_shots(self) -> int:
        """The largest number of shots of the headline system: what the summary speaks of."""
        return max(summary["shots"] for summary in self.summaries.values() if summary["system"] == self.headline)

    def overlays(self, experiment: str) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
        """Each overlay of an experiment: its index entry and its arrays."""
        folder = self.folder / experiment / "overlays"
        for entry in json.loads((folder / "index.json").read_text()):
            with np.load(folder / entry["file"]) as arrays:
                yield entry, dict(arrays)


def collect(source: Path, params_file: Path | None = None) -> list[Cohort]:
    """Every cohort with at least one evaluated experiment, the one of `params_file` first. Raises `DataError` where there is none."""
    if not Path(source).is_dir():
        raise UsageError(f"{source} does not exist; `python -m pipelines.evaluate` writes <cohort>/<experiment>/ into it")
    cohorts = [_read(Path(source) / params.cohort.name, file, params) for file, params in _listed(params_file)]
    found = [cohort for cohort in cohorts if cohort is not None]
    if not found:
        raise DataError(f"{source} holds no evaluated experiment that params list; run `python -m pipelines.evaluate` for one of them first")
    return found


def _listed(params_file: Path | None) -> list[tuple[str, Params]]:
    """The project's params and those of every cohort laid out under `cohorts/` beside them; a cohort named twice counts once."""
    first = Path(params_file) if params_file else DEFAULT
    listed: dict[str, tuple[str, Params]] = {}
    for path in [first, *sorted(first.parent.glob("cohorts/*/params.yaml"))]:
        try:
            params = load_params(path)
        except UsageError as error:
            if path == first:
                raise
            # laid out by another version: one old cohort must not keep the others from being reported
            print(f"left out: {error}; lay it out again with `make reproduce COHORT={path.parent.name}`", file=sys.stderr, flush=True)
            continue
        listed.setdefault(params.cohort.name, (path.relative_to(first.parent).as_posix(), params))
    return list(listed.values())


def _read(folder: Path, file: str, params: Params) -> Cohort | None:
    done = [name for name in params.experiments if (folder / name / "summary.json").is_file()]
    if not done:
        return None
    return Cohort(
        name=params.cohort.name, file=file, settings=params.evaluate, protocol=params.protocol.model_dump(),
        summaries={name: json.loads((folder / name / "summary.json").read_text()) for name in done},
        cases=_columns(_tables(folder, done, "cases.csv")),
        reliability=_tables(folder, done, "reliability.csv"),
        folder=folder, waiting=[name for name in params.experiments if name not in done],
        fingerprint=json.loads((folder / FINGERPRINT).read_text()) if (folder / FINGERPRINT).is_file() else None,
        backbone=_backbone(folder / BACKBONE),
    )


def _backbone(file: Path) -> dict | None:
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    return {name: content[name] for name in BACKBONE_FACTS if name in content} if "patch_ceiling" in content else None


def _tables(folder: Path, experiments: list[str], name: str) -> pd.DataFrame:
    tables = [pd.read_csv(folder / experiment / name, dtype=TEXT) for experiment in experiments]
    return pd.concat([table for table in tables if not table.empty], ignore_index=True)


def _columns(cases: pd.DataFrame) -> pd.DataFrame:
    return cases.reindex(columns=[*COLUMNS, *(name for name in cases.columns if name not in COLUMNS)])
