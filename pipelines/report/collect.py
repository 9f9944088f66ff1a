"""What there is to report: the evaluated experiments that params still list, of the project's cohort and of every cohort laid out beside it.

A folder under `reports/cohorts` that no params.yaml lists any more is stale and ignored; an experiment that is listed and not evaluated yet
is named in the report, so that nothing is missing silently. Where a cohort has a sweep (`<cohort>/sweep/`: many systems, variants and
protocols on the same draws), the report speaks of the sweep; the cohort's single experiments then stay in results.csv and metrics.json only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.errors import DataError, UsageError
from pipelines.params import DEFAULT, Evaluate, Params, load_params
from pipelines.report.classification import answers_case

#: The first columns of results.csv, in this order; whatever else the evaluate stage wrote follows.
COLUMNS = ["cohort", "experiment", "system", "shots", "seed", "site", "case", "label", "dice", "hd95_mm", "nsd_2mm", "ece", "brier", "nll",
           "false_positive_ml", "train_seconds", "predict_seconds"]
SWEEP = "sweep"  # the folder of a cohort that holds its sweep; an experiment of it is called "sweep/<folder>"
PROTOCOLS = ("within", "transfer", "pooled")  # in the order of the page
HEADLINE, BASELINE = "headline", "baseline"
MOST_DRAWN = 7  # arms in a figure: more curves than colours that are told apart help nobody
VARIANTS = ("ablation", "control")  # roles of arms that are the headline system with something taken away or made wrong
#: Optional tables: of the whole sweep, and of one experiment.
SWEEP_TABLES = ("missing", "cost", "left_out")
EXPERIMENT_TABLES = ("conformal", "retention")
FINGERPRINT = "fingerprint.json"  # what ingest says of the cohort's data, beside the experiments' folders
BACKBONE = "embed.json"  # what embed says of the cohort's backbone and cache, there too
#: What of it goes into metrics.json: what does not depend on when and where the stage ran.
BACKBONE_FACTS = ("backbone", "fingerprint", "precision", "levels", "patch_ceiling", "bytes_per_voxel", "times_float16_voxels")
TEXT = dict.fromkeys(("cohort", "experiment", "system", "site", "case", "label", "region", "calibration_from", "arm", "protocol", "case_site",
                      "modalities"), str)


@dataclass(frozen=True)
class Cohort:
    """One cohort's evaluated experiments, as the report sees them. An *arm* is a system with its options; elsewhere it is the system itself."""

    name: str
    file: str  # its params.yaml, seen from the project's folder
    settings: Evaluate
    protocol: dict[str, object]
    summaries: dict[str, dict]  # experiment -> summary.json with arm, role and protocol, in params' order
    cases: pd.DataFrame
    reliability: pd.DataFrame
    folder: Path
    waiting: list[str]  # listed in params, not evaluated yet
    fingerprint: dict | None = None  # None where ingest was an earlier version's
    backbone: dict | None = None  # None where embed was
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # the optional tables that are there and not empty
    beside: Cohort | None = None  # the single experiments of a cohort whose sweep is reported

    @property
    def any_summary(self) -> dict:
        """What is the same for every experiment of the cohort."""
        return next(iter(self.summaries.values()))

    @property
    def split_by(self) -> str:
        return str(self.any_summary["split_by"])

    @property
    def swept(self) -> bool:
        return any(summary.get("sweep") for summary in self.summaries.values())

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
        """The arm that the others are compared with; the first one where the cohort lacks the one that params name."""
        arms = [summary["arm"] for summary in self.summaries.values() if summary["role"] == HEADLINE]
        return self.settings.headline if self.settings.headline in arms else next(iter(arms), self.any_summary["arm"])

    def role(self, arm: str) -> str:
        return HEADLINE if arm == self.headline else next(summary["role"] for summary in self.summaries.values() if summary["arm"] == arm)

    def title(self, arm: str) -> str:
        """How the page calls an arm: its title, and what is special about it where another arm has the same."""
        summary = next(summary for summary in self.summaries.values() if summary["arm"] == arm)
        if summary["system"] == arm or not any(other["title"] == summary["title"] and other["arm"] != arm for other in self.summaries.values()):
            return summary["title"]
        return f"{summary['title']}: {arm.removeprefix(summary['system']).lstrip('-').replace('-', ' ')}"

    def experiment(self, arm: str, shots: int, protocol: str | None = None) -> str | None:
        """The experiment of an arm; under the protocol in focus where none is given."""
        wanted = (arm, shots, protocol or self.focus_protocol)
        return next((name for name, summary in self.summaries.items() if (summary["arm"], summary["shots"], summary["protocol"]) == wanted), None)

    def arms(self, roles: Iterable[str] = (HEADLINE, BASELINE, *VARIANTS)) -> list[str]:
        """Arms of these roles, the headline first."""
        found = {summary["arm"] for summary in self.summaries.values()}
        return sorted((arm for arm in found if self.role(arm) in roles), key=lambda arm: (arm != self.headline, arm))

    def protocols(self) -> list[str]:
        found = {summary["protocol"] for summary in self.summaries.values()}
        return sorted(found, key=lambda name: (PROTOCOLS.index(name) if name in PROTOCOLS else len(PROTOCOLS), name))

    @property
    def focus_protocol(self) -> str:
        """The protocol that the summary speaks of: the first in which the headline was run."""
        return next(name for name in self.protocols() if self.shots(name, self.headline))

    def shots(self, protocol: str | None = None, arm: str | None = None) -> list[int]:
        return sorted({summary["shots"] for summary in self.summaries.values()
                       if protocol in (None, summary["protocol"]) and arm in (None, summary["arm"])})

    def best_shots(self) -> int:
        """The largest number of shots of the headline under the protocol in focus: what the summary speaks of."""
        return max(self.shots(self.focus_protocol, self.headline))

    def conditions(self) -> list[tuple[str, int]]:
        """Every protocol and number of shots at which the headline was run."""
        return [(protocol, shots) for protocol in self.protocols() for shots in self.shots(protocol, self.headline)]

    def in_focus(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that the summary speaks of."""
        return table[(table.shots == self.best_shots()) & (table.protocol == self.focus_protocol)]

    @cached_property
    def drawn(self) -> list[str]:
        """The arms that figures show: the headline and the baselines, of many the best ones (the tables have them all).

        Best by mean Dice minus the headline's, over the protocols and numbers of shots that a baseline was run at.
        """
        arms = self.arms((HEADLINE, BASELINE))
        if len(arms) <= MOST_DRAWN:
            return arms
        means = self.cases.groupby(["protocol", "shots", "arm"]).dice.mean().unstack("arm")
        behind = means.sub(means[self.headline], axis=0).mean()
        return [self.headline, *sorted(arms[1:], key=lambda arm: (-behind[arm], arm))[:MOST_DRAWN - 1]]

    def several_sites(self) -> bool:
        """Whether query cases come from more than one site, so that a mean over sites says more than one over patients."""
        return self.cases.case_site.nunique() > 1

    def overlays(self, experiment: str) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
        """Each overlay of an experiment: its index entry and its arrays."""
        folder = self.folder / experiment / "overlays"
        for entry in json.loads((folder / "index.json").read_text()):
            with np.load(folder / entry["file"]) as arrays:
                yield entry, dict(arrays)


def collect(source: Path, params_file: Path | None = None, needed: bool = True) -> list[Cohort]:
    """Every cohort with at least one evaluated experiment that segments, the one of `params_file` first. Raises `DataError` where one is `needed` and
    there is none."""
    if not Path(source).is_dir():
        raise UsageError(f"{source} does not exist; `python -m pipelines.evaluate` writes <cohort>/<experiment>/ into it")
    cohorts = [_read(Path(source) / params.cohort.name, file, params) for file, params in params_listed(params_file)]
    found = [cohort for cohort in cohorts if cohort is not None]
    if not found and needed:
        raise DataError(f"{source} holds no evaluated experiment that params list; run `python -m pipelines.evaluate` for one of them first")
    return found


def params_listed(params_file: Path | None) -> list[tuple[str, Params]]:
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
    waiting = [name for name in params.experiments if name not in done]
    done = [name for name in done if not answers_case(folder / name)]
    swept = sorted(f"{SWEEP}/{path.parent.name}" for path in (folder / SWEEP).glob("*/summary.json") if not path.parent.name.startswith("."))
    shown, beside = (swept, done) if swept else (done, [])
    if not shown:
        return None
    first = _experiments(folder, file, params, shown, [] if swept else waiting)
    return replace(first, beside=_experiments(folder, file, params, beside, waiting)) if beside else first


def _experiments(folder: Path, file: str, params: Params, names: list[str], waiting: list[str]) -> Cohort:
    summaries = {name: _summary(folder / name, params.evaluate.headline) for name in names}
    tables = {name: _known(table, summaries) for name in EXPERIMENT_TABLES if (table := _tables(folder, names, f"{name}.csv")) is not None}
    if names[0].startswith(f"{SWEEP}/"):
        tables |= {name: pd.read_csv(path, dtype=TEXT) for name in SWEEP_TABLES if (path := folder / SWEEP / f"{name}.csv").is_file()}
    return Cohort(
        name=params.cohort.name, file=file, settings=params.evaluate, protocol=params.protocol.model_dump(), summaries=summaries,
        cases=_columns(_known(_needed(folder, names, "cases.csv"), summaries)),
        reliability=_known(_needed(folder, names, "reliability.csv"), summaries),
        folder=folder, waiting=waiting, tables={name: table for name, table in tables.items() if not table.empty},
        fingerprint=json.loads((folder / FINGERPRINT).read_text()) if (folder / FINGERPRINT).is_file() else None,
        backbone=_backbone(folder / BACKBONE),
    )


def _summary(folder: Path, headline: str) -> dict:
    """summary.json; an experiment outside a sweep is its system's arm, and every system but the headline is a baseline."""
    summary = json.loads((folder / "summary.json").read_text())
    return {"arm": summary["system"], "role": HEADLINE if summary["system"] == headline else BASELINE, "protocol": "within", **summary}


def _known(table: pd.DataFrame, summaries: dict[str, dict]) -> pd.DataFrame:
    """Rows with what their experiment's summary says of them."""
    for key in ("arm", "protocol", "shots"):
        table[key] = table.experiment.map({name: summary[key] for name, summary in summaries.items()})
    if "case_site" not in table and "site" in table:
        table["case_site"] = table["site"]
    return table


def _backbone(file: Path) -> dict | None:
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    return {name: content[name] for name in BACKBONE_FACTS if name in content} if "patch_ceiling" in content else None


def _needed(folder: Path, experiments: list[str], name: str) -> pd.DataFrame:
    table = _tables(folder, experiments, name)
    if table is None:
        raise DataError(f"{folder / experiments[0] / name} and its like hold no rows; evaluate these experiments again")
    return table


def _tables(folder: Path, experiments: list[str], name: str) -> pd.DataFrame | None:
    """The same table of several experiments, each row with its experiment's name here; None where none has rows."""
    paths = {experiment: folder / experiment / name for experiment in experiments}
    tables = [pd.read_csv(path, dtype=TEXT).assign(experiment=experiment) for experiment, path in paths.items() if path.is_file()]
    filled = [table for table in tables if not table.empty]
    return pd.concat(filled, ignore_index=True) if filled else None


def _columns(cases: pd.DataFrame) -> pd.DataFrame:
    return cases.reindex(columns=[*COLUMNS, *(name for name in cases.columns if name not in COLUMNS)])
