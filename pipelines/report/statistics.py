"""From rows per case to statements: means with bootstrap intervals, and paired comparisons with corrected p-values.

The unit is the patient (a study where cases are split by study). A unit's value is its mean over the support draws (seeds) in which it was
a query case, so that five seeds of one patient do not count as five patients; intervals resample units.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pipelines.params import Evaluate
from pipelines.report.collect import Cohort

#: Metrics in every table of means: column -> (name for a reader, +1 where more is better). Surface distances at a tolerance follow by name.
METRICS = {
    "dice": ("Dice", 1), "hd95_mm": ("HD95 (mm)", -1), "ece": ("ECE", -1), "ece_unscaled": ("ECE before temperature", -1),
    "ece_brain": ("ECE in the head", -1), "ace": ("ACE", -1), "brier": ("Brier", -1), "nll": ("NLL", -1),
    "false_positive_ml": ("False positives (ml)", -1), "train_seconds": ("Training (s)", -1), "predict_seconds": ("Prediction (s)", -1),
}
#: Metrics that the headline system is compared on. Each is a family of its own for Holm's correction.
COMPARED = ("dice", "ece")
BOOTSTRAP_SEED = 20260
PERMUTATIONS = 9999
PAIR_KEYS = ["site", "seed", "case", "label"]


def surface_columns(cases: pd.DataFrame) -> list[str]:
    """Columns of normalised surface distances, one a tolerance ("nsd_2mm"), that hold any value."""
    return [name for name in cases.columns if name.startswith("nsd_") and cases[name].notna().any()]


def metric_names(cases: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """The metrics that these rows have, in the order of tables."""
    surfaces = {name: (f"NSD at {name.removeprefix('nsd_').removesuffix('mm')} mm", 1) for name in surface_columns(cases)}
    ordered = {"dice": METRICS["dice"], **surfaces, **METRICS}
    return {name: ordered[name] for name in ordered if name in cases}


def units(cases: pd.DataFrame, split_by: str) -> pd.Series:
    """What is resampled: the subject of each row, or its case where support and query are studies of the same subject."""
    return cases["case"] if split_by == "session" else cases["case"].str.split("_ses-").str[0]


def interval(statistic, data: Sequence[np.ndarray], settings: Evaluate) -> tuple[float | None, float | None]:
    """Bias-corrected accelerated bootstrap interval of `statistic(*data, axis=-1)`, units resampled together.

    None for fewer than two units. Where BCa does not exist (all values equal, or a statistic at its bound) the percentile interval stands in.
    """
    from scipy.stats import bootstrap

    if len(data[0]) < 2:
        return None, None
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # "degenerate": dealt with below
            found = bootstrap(data, statistic, paired=True, vectorized=True, n_resamples=settings.bootstrap, method=method,
                              confidence_level=settings.confidence, rng=np.random.default_rng(BOOTSTRAP_SEED)).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return float(found.low), float(found.high)
    return None, None


def estimate(rows: pd.DataFrame, metric: str, unit: pd.Series, settings: Evaluate) -> dict[str, float | int | None]:
    """Mean of a metric over units with its interval; `n` units had a value; `seed_sd` is how much the mean moves between support draws."""
    known = rows[rows[metric].notna()]
    values = known.groupby(unit[known.index])[metric].mean().to_numpy(float)
    if not len(values):
        return {"mean": None, "low": None, "high": None, "n": 0, "seed_sd": None}
    low, high = interval(np.mean, (values,), settings)
    by_seed = known.groupby("seed")[metric].mean()
    return {"mean": float(values.mean()), "low": low, "high": high, "n": len(values), "seed_sd": float(by_seed.std()) if len(by_seed) > 1 else None}


def ratio_of_means(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """How many times as large, in the mean."""
    return np.mean(first, axis=axis) / np.mean(second, axis=axis)


def mean_difference(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """How much larger, in the mean."""
    return np.mean(first - second, axis=axis)


def pair(first: pd.DataFrame, second: pd.DataFrame, metric: str, split_by: str) -> pd.DataFrame:
    """Both systems' values of the rows they share (same site, draw, case and label), averaged per unit: columns `first`, `second`, `rows`."""
    left, right = (table[[*PAIR_KEYS, metric]].rename(columns={metric: name}) for table, name in ((first, "first"), (second, "second")))
    both = left.merge(right, on=PAIR_KEYS, validate="one_to_one").dropna()
    grouped = both.groupby(units(both, split_by))
    return grouped[["first", "second"]].mean().assign(rows=grouped.size())


def compare(pairs: pd.DataFrame, settings: Evaluate) -> dict[str, float | int | None]:
    """Difference and ratio of means with paired intervals, and the p-value of a sign-flip permutation test on the units' differences."""
    from scipy.stats import permutation_test

    first, second = pairs["first"].to_numpy(float), pairs["second"].to_numpy(float)
    if not len(first):
        return {"n": 0, "rows": 0, "difference": None, "low": None, "high": None, "ratio": None, "ratio_low": None, "ratio_high": None, "p": None}
    low, high = interval(mean_difference, (first, second), settings)
    has_ratio = second.mean() > 0
    ratio_low, ratio_high = interval(ratio_of_means, (first, second), settings) if has_ratio else (None, None)
    tested = len(first) >= 2 and not np.array_equal(first, second)
    p = permutation_test((first, second), mean_difference, permutation_type="samples", vectorized=True, n_resamples=PERMUTATIONS,
                         rng=np.random.default_rng(BOOTSTRAP_SEED)).pvalue if tested else None
    return {"n": len(first), "rows": int(pairs["rows"].sum()), "difference": float((first - second).mean()), "low": low, "high": high,
            "ratio": float(first.mean() / second.mean()) if has_ratio else None, "ratio_low": ratio_low, "ratio_high": ratio_high,
            "p": float(p) if p is not None else None}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of a family of p-values (1979): adjusted values, in the given order. None stays None."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = highest
    return adjusted


def cohort_metrics(cohort: Cohort) -> dict[str, object]:
    """One cohort's part of metrics.json."""
    split_by = str(cohort.any_summary["split_by"])
    return {
        "caveat": cohort.any_summary["caveat"], "disease": cohort.any_summary["disease"], "headline": cohort.headline,
        "confidence": cohort.settings.confidence, "labels": list(cohort.labels),
        "unit": "study" if split_by == "session" else "patient", "protocol": cohort.any_summary["protocol"],
        "patch_ceiling": cohort.patch_ceiling, "backbone": cohort.backbone,
        "experiments": {name: experiment_metrics(cohort, name, split_by) for name in cohort.summaries},
        "comparisons": comparisons(cohort, split_by),
    }


def experiment_metrics(cohort: Cohort, name: str, split_by: str) -> dict[str, object]:
    """Means with intervals of one experiment: per label, and per label and site."""
    rows, summary = cohort.cases[cohort.cases.experiment == name], cohort.summaries[name]
    unit = units(rows, split_by)
    columns = metric_names(cohort.cases)
    by_label = {label: {metric: estimate(part, metric, unit, cohort.settings) for metric in columns}
                for label, part in rows.groupby("label", sort=False)}
    sites = {site: {label: {metric: estimate(part, metric, unit, cohort.settings) for metric in ("dice", "ece")}
                    for label, part in of_site.groupby("label", sort=False)} for site, of_site in rows.groupby("site")}
    return {"system": summary["system"], "title": summary["title"], "shots": summary["shots"], "seeds": summary["seeds"], "fits": summary["fits"],
            "cases": int(unit.nunique()), "rows": len(rows), "cost": summary["cost"], "labels": by_label, "sites": sites}


def comparisons(cohort: Cohort, split_by: str) -> dict[str, dict[str, dict[str, object]]]:
    """The headline system against every other at the same shots: "headline-shots vs other" -> label -> metric -> comparison."""
    found: dict[tuple[str, str, str], dict[str, object]] = {}
    for name, summary in cohort.summaries.items():
        rival = cohort.experiment(cohort.headline, summary["shots"])
        if summary["system"] == cohort.headline or rival is None:
            continue
        first, second = cohort.cases[cohort.cases.experiment == rival], cohort.cases[cohort.cases.experiment == name]
        for label in cohort.labels:
            for metric in COMPARED:
                pairs = pair(first[first.label == label], second[second.label == label], metric, split_by)
                found[f"{rival} vs {name}", label, metric] = compare(pairs, cohort.settings)
    for metric in COMPARED:
        family = [key for key in found if key[2] == metric]
        for key, adjusted in zip(family, holm([found[key]["p"] for key in family]), strict=True):
            found[key]["p_holm"] = adjusted
    nested: dict[str, dict[str, dict[str, object]]] = {}
    for (title, label, metric), result in found.items():
        nested.setdefault(title, {}).setdefault(label, {})[metric] = result
    return nested


def all_metrics(cohorts: Sequence[Cohort]) -> Mapping[str, object]:
    """metrics.json: cohort -> its metrics."""
    return {cohort.name: cohort_metrics(cohort) for cohort in cohorts}
