"""One fit predicts its query cases, and each is measured: the rows of `cases.csv`, the bins of `reliability.csv`, the overlays.

Beside them `retention.csv`, the Dice of each case with its most uncertain voxels handed over, and `conformal.csv`, each case at the threshold
that the fit's other query cases set for a false-negative rate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.evaluate.conformal import Curve, curve, rotations
from pipelines.evaluate.metrics import expected_calibration_error, measure, reliability_bins
from pipelines.evaluate.overlay import Overlay, make_overlay, write_overlays
from pipelines.evaluate.uncertainty import RETAINED, entropy, rank_errors
from pipelines.params import Evaluate
from pipelines.systems.protocol import Task
from pipelines.threads import one_thread
from pipelines.train.band import bounding_box

RELIABILITY_KEYS = ["cohort", "experiment", "system", "shots", "site", "label", "region", "bin"]
RELIABILITY_SUMS = ["count", "confidence_sum", "accuracy_sum"]
_WARM: set[object] = set()  # systems that have predicted in this process


@dataclass(frozen=True)
class Job:
    """One fit to evaluate: `facts` are the columns that all its rows share, `query` its cases, `overlays` whether to keep slices."""

    folder: Path
    facts: Mapping[str, object]
    query: Sequence[Case]
    overlays: bool

    @property
    def name(self) -> str:
        return f"{self.facts['site']}_seed-{self.facts['seed']}"


@dataclass(frozen=True)
class Prediction:
    """A case with its truth `(S, H, W)`, the predicted label values, and probabilities before and after temperature scaling."""

    case: Case
    truth: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    raw: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Measured:
    """One label of one case: columns of `cases.csv`, reliability sums by region, Dice at `uncertainty.RETAINED`, curve of false negatives."""

    label: str
    values: dict[str, float]
    sums: dict[str, np.ndarray]
    retention: np.ndarray
    curve: Curve


def evaluate_fit(job: Job, task: Task, settings: Evaluate, out: Path) -> None:
    """Write `cases.csv`, `reliability.csv` and `overlays/` of one fit. Computes on one thread, so results do not depend on the machine's cores."""
    from pipelines.train.fitted import load_fitted

    with one_thread():
        fitted = load_fitted(job.folder, task)
        if job.facts["system"] not in _WARM:  # a first prediction, not timed: what a library loads at its first use is no case's cost
            fitted.predict(job.query[0])
            _WARM.add(job.facts["system"])
        measure_fit(fitted, job, task.labels, settings, out)


def measure_fit(fitted, job: Job, labels: Sequence[str], settings: Evaluate, out: Path) -> None:
    """Predict and measure the query cases of `job` with `fitted` (a `pipelines.train.fitted.Fitted`)."""
    own = {name: fitted.record[name] for name in ("train_seconds", "calibration_from", "temperature")}
    rows, bins, drawn, retained, curves = [], [], [], [], {label: {} for label in labels}
    for case in job.query:
        prediction = predict(fitted, case, labels, job.facts)
        measured = list(measure_case(prediction, labels, settings))
        for one in measured:
            rows.append({**job.facts, "case": case.id, "case_site": case.site, "label": one.label, **one.values, **own,
                         "predict_seconds": round(prediction.seconds, 4), "n_modalities": len(case.images)})
            facts = {**job.facts, "label": one.label}
            bins.extend(_bin_rows(facts, one.sums))
            retained.extend({**facts, "case": case.id, "retained": share, "dice": dice} for share, dice in zip(RETAINED, one.retention, strict=True))
            curves[one.label][case.id] = one.curve
        if job.overlays:
            drawn.append(_overlay(prediction, job.facts, {one.label: one.values for one in measured}))
    pd.DataFrame(rows).to_csv(out / "cases.csv", index=False)
    pd.DataFrame(retained).to_csv(out / "retention.csv", index=False)
    write_conformal(out / "conformal.csv", job.facts, curves, settings.conformal_levels)
    sum_bins(pd.DataFrame(bins)).to_csv(out / "reliability.csv", index=False)
    write_overlays(out / "overlays", drawn)


def write_conformal(path: Path, facts: Mapping[str, object], curves: Mapping[str, Mapping[str, Curve]], levels: Sequence[float]) -> None:
    """Every label's rotations over the query cases; a file without rows where no case has the label."""
    rows = [{**facts, "label": label, **row} for label, of_cases in curves.items() for row in rotations(of_cases, levels)]
    columns = [*facts, "label", "case", "alpha", "n_calibration", "threshold", "fnr", "size_ratio", "refused"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


def predict(fitted, case: Case, labels: Sequence[str], facts: Mapping[str, object]) -> Prediction:
    """Predict one case, timed, and check that it is what a system has to give."""
    started = time.perf_counter()
    raw = fitted.raw(case)
    probability = fitted.calibrated(raw)
    seconds = time.perf_counter() - started
    truth = case.label()
    expected = (1 + len(labels), *truth.shape)
    if probability.shape != expected or not np.isfinite(probability).all():
        raise DataError(f"{facts['system']} (site {facts['site']}, seed {facts['seed']}) predicted {case.id} as {probability.shape} where finite "
                        f"probabilities {expected} are needed; its model does not fit this cohort, train experiment {facts['experiment']} again")
    return Prediction(case, truth, probability.argmax(axis=0), probability, raw, seconds)


def measure_case(prediction: Prediction, labels: Sequence[str], settings: Evaluate) -> Iterator[Measured]:
    """Measure each label, in the box of the head: around it there is nothing to measure."""
    brain = prediction.case.foreground()
    relevant = brain | (prediction.truth > 0) | (prediction.predicted > 0)
    box = bounding_box(relevant, (1, 1, 1)) if relevant.any() else (slice(None),) * 3
    brain, truth, predicted = brain[box], prediction.truth[box], prediction.predicted[box]
    probability, raw = (volume[:, *box] for volume in (prediction.probability, prediction.raw))
    for value, label in enumerate(labels, start=1):
        true, found = truth == value, predicted == value
        values, sums, band = measure(true, found, probability[value], brain, prediction.case.spacing_mm, band_mm=settings.band_mm,
                                     tolerance_mm=settings.nsd_tolerance_mm, bins=settings.ece_bins)
        # the tolerance is part of the column's name, so that two tolerances are never compared by mistake
        values = {f"nsd_{settings.nsd_tolerance_mm:g}mm" if name == "nsd" else name: number for name, number in values.items()}
        unscaled = reliability_bins(raw[value][band], true[band], settings.ece_bins)
        ranking, retention = rank_errors(entropy(probability[:, band]), true[band], found[band])
        yield Measured(label, {**values, "ece_unscaled": expected_calibration_error(unscaled), **ranking}, sums, retention,
                       curve(probability[value], true))


def sum_bins(table: pd.DataFrame) -> pd.DataFrame:
    """Reliability sums added up over cases, fits or both."""
    return table.groupby(RELIABILITY_KEYS, sort=True)[RELIABILITY_SUMS].sum().reset_index()


def _bin_rows(facts: Mapping[str, object], sums: Mapping[str, np.ndarray]) -> Iterator[dict[str, object]]:
    for region, table in sums.items():
        for index, (count, confidence, accuracy) in enumerate(table):
            yield {**facts, "region": region, "bin": index, "count": int(count), "confidence_sum": confidence, "accuracy_sum": accuracy}


def _overlay(prediction: Prediction, facts: Mapping[str, object], measured: Mapping[str, Mapping[str, float]]) -> Overlay:
    scores = {label: None if np.isnan(values["dice"]) else values["dice"] for label, values in measured.items()}
    known = [score for score in scores.values() if score is not None]
    return make_overlay(prediction.case, prediction.truth, prediction.predicted, prediction.probability, {
        "site": facts["site"], "seed": facts["seed"], "dice": scores, "mean_dice": float(np.mean(known)) if known else None,
        "truth_ml": sum(values["truth_ml"] for values in measured.values())})
