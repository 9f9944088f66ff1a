"""What systems that answer whole cases came to: classification.csv, their part of metrics.json, and what the page says of them.

Every measure is one of a set of cases (average precision has no value for a single one), so a draw's measure is taken over the query cases of all
sites together, each scored by the fit that had not seen its site, and draws are averaged. Intervals are percentiles over resampled cases, each with
all its draws; cases are resampled within their site, and a comparison resamples both sides alike. The first experiment of params that answers whole
cases is the one that the others are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.params import Params
from pipelines.report.measures import METRICS, measure_outcomes
from pipelines.report.resampling import BOOTSTRAP_SEED

#: What the evaluate stage writes of such an experiment.
OUTCOMES = "outcomes.csv"
#: The columns of classification.csv.
COLUMNS = ["method", "cohort", "site", "seed", "case", "label", "score"]
TEXT = dict.fromkeys(("cohort", "experiment", "site", "case", "case_site", "outcome", "class"), str)


@dataclass(frozen=True)
class Classified:
    """A cohort's evaluated experiments that answer whole cases, in the order of params."""

    name: str
    params: Params
    summaries: dict[str, dict]
    rows: pd.DataFrame  # of every experiment's outcomes.csv


def answers_case(folder: Path) -> bool:
    """Whether an evaluated experiment answers whole cases."""
    return json.loads((folder / "summary.json").read_text()).get("answers") == "case"


def collect_classified(source: Path, listed: Sequence[Params]) -> list[Classified]:
    """The cohorts of `listed` with at least one such experiment evaluated below `source`."""
    found = []
    for params in listed:
        folder = Path(source) / params.cohort.name
        names = [name for name in params.experiments if (folder / name / "summary.json").is_file() and answers_case(folder / name)]
        if names:
            rows = pd.concat([pd.read_csv(folder / name / OUTCOMES, dtype=TEXT).assign(experiment=name) for name in names], ignore_index=True)
            summaries = {name: json.loads((folder / name / "summary.json").read_text()) for name in names}
            found.append(Classified(params.cohort.name, params, summaries, rows))
    return found


def table(classified: Sequence[Classified]) -> pd.DataFrame:
    """classification.csv. Of two classes the second is scored; of more, each has rows of its own, called `<case>/<class>`."""
    parts = []
    for cohort in classified:
        rows = cohort.rows
        if rows["class"].nunique() == 2:
            rows = rows[rows["class"] == next(iter(cohort.summaries.values()))["outcomes"][1]]
        else:
            rows = rows.assign(case=rows.case + "/" + rows["class"])
        parts.append(rows.assign(method=rows.experiment, site=rows.case_site)[COLUMNS])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def classification_metrics(cohort: Classified) -> dict[str, object]:
    """`experiments` (name -> measures with intervals, over all sites and by site) and `comparisons` with the first one."""
    summaries, settings = cohort.summaries, cohort.params.evaluate
    outcomes = next(iter(summaries.values()))["outcomes"]
    headline = next(iter(summaries))
    sampled: dict[str, dict[str, tuple[float, np.ndarray]]] = {}
    experiments = {}
    for name, summary in summaries.items():
        rows = cohort.rows[cohort.rows.experiment == name]
        sampled[name] = _sampled(rows, outcomes, settings.ece_bins, settings.bootstrap)
        cases = rows.drop_duplicates("case")
        experiments[name] = {
            "system": summary["system"], "title": summary["title"], "params": summary["params"], "protocol": summary["protocol"],
            "shots": summary["shots"], "seeds": summary["seeds"], "cases": len(cases), "cost": summary["cost"],
            "positives": {outcome: int((cases.outcome == outcome).sum()) for outcome in outcomes},
            "measures": {metric: _estimate(*values, settings.confidence) for metric, values in sampled[name].items()},
            "sites": {site: _measured(part, outcomes, settings.ece_bins) for site, part in rows.groupby("case_site")},
        }
    comparisons = {f"{headline} vs {name}": {metric: _difference(*sampled[headline][metric], *sampled[name][metric], settings.confidence)
                                             for metric in METRICS}
                   for name in summaries if name != headline and set(_cases(cohort, name)) == set(_cases(cohort, headline))}
    first = summaries[headline]
    return {"headline": headline, "outcome": first["outcome"], "outcomes": outcomes, "caveat": first["caveat"], "disease": first["disease"],
            "confidence": settings.confidence, "experiments": experiments, "comparisons": comparisons}


def _cases(cohort: Classified, name: str) -> pd.Series:
    return cohort.rows[cohort.rows.experiment == name].case


def _scores(rows: pd.DataFrame, outcomes: Sequence[str]) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Draw -> scores `(N, C)`, index of the class `(N,)` and site `(N,)`, the cases sorted by name."""
    found = {}
    for seed, part in rows.groupby("seed"):
        wide = part.pivot(index="case", columns="class", values="score")[list(outcomes)]
        known = part.drop_duplicates("case").set_index("case").loc[wide.index]
        found[int(seed)] = wide.to_numpy(), known.outcome.map({outcome: index for index, outcome in enumerate(outcomes)}).to_numpy(), \
            known.case_site.to_numpy()
    return found


def _measured(rows: pd.DataFrame, outcomes: Sequence[str], bins: int) -> dict[str, float | None]:
    """Mean over draws, without intervals."""
    each = [measure_outcomes(scores, truth, bins) for scores, truth, _ in _scores(rows, outcomes).values()]
    return {metric: _number(np.mean([values[metric] for values in each])) for metric in METRICS}


def _sampled(rows: pd.DataFrame, outcomes: Sequence[str], bins: int, resamples: int) -> dict[str, tuple[float, np.ndarray]]:
    """Metric -> its mean over draws, and the same of every resample `(resamples,)`."""
    draws = _scores(rows, outcomes)
    observed = [measure_outcomes(scores, truth, bins) for scores, truth, _ in draws.values()]
    resampled = {metric: np.zeros(resamples) for metric in METRICS}
    for scores, truth, sites in draws.values():
        chosen = _resamples(sites, resamples)
        for index in range(resamples):
            values = measure_outcomes(scores[chosen[index]], truth[chosen[index]], bins)
            for metric in METRICS:
                resampled[metric][index] += values[metric] / len(draws)
    return {metric: (float(np.mean([values[metric] for values in observed])), resampled[metric]) for metric in METRICS}


def _resamples(sites: np.ndarray, resamples: int) -> np.ndarray:
    """`(resamples, N)`: cases drawn within their site; the same for everything measured on these cases."""
    generator, chosen = np.random.default_rng([BOOTSTRAP_SEED, len(sites)]), np.zeros((resamples, len(sites)), int)
    for site in np.unique(sites):
        where = np.flatnonzero(sites == site)
        chosen[:, where] = where[generator.integers(0, len(where), (resamples, len(where)))]
    return chosen


def _interval(values: np.ndarray, confidence: float) -> dict[str, float | None]:
    """Percentiles; a resample in which a class is missing says nothing."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return {"low": None, "high": None}
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"low": float(low), "high": float(high)}


def _estimate(observed: float, resampled: np.ndarray, confidence: float) -> dict[str, float | None]:
    return {"mean": _number(observed), **_interval(resampled, confidence)}


def _difference(first: float, of_first: np.ndarray, second: float, of_second: np.ndarray, confidence: float) -> dict[str, float | None]:
    return {"first": _number(first), "second": _number(second), "difference": _number(first - second),
            **_interval(of_first - of_second, confidence)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
