"""From rows per case to statements: means with bootstrap intervals, and paired comparisons.

The unit is the patient (a study where cases are split by study). A unit's value is its mean over the support draws (seeds) in which it was
a query case, so that five seeds of one patient do not count as five patients; intervals resample units. A mean *over sites* counts every
site once, however many patients it has, because the question is what a system does at the next hospital; patients are then resampled
within their site, for the sites are the ones there are and no sample of hospitals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipelines.params import Evaluate
from pipelines.report.resampling import intervals, mean_of_means, sign_flip_p

#: Metrics in every table of means: column -> (name for a reader, +1 where more is better). Surface distances at a tolerance follow by name.
METRICS = {
    "dice": ("Dice", 1), "hd95_mm": ("HD95 (mm)", -1), "ece": ("ECE", -1), "ece_unscaled": ("ECE before temperature", -1),
    "ece_brain": ("ECE in the head", -1), "ace": ("ACE", -1), "brier": ("Brier", -1), "nll": ("NLL", -1),
    "brier_brain": ("Brier in the head", -1), "nll_brain": ("NLL in the head", -1), "ace_brain": ("ACE in the head", -1),
    "lesion_f1": ("Lesion F1", 1), "uncertainty_auroc": ("Uncertainty finds errors (AUROC)", 1), "retention_auc": ("Retention area", 1),
    "retention_auc_random": ("the same, random order", 1), "retention_auc_ideal": ("the same, ideal order", 1),
    "false_positive_ml": ("False positives (ml)", -1), "train_seconds": ("Training (s)", -1), "predict_seconds": ("Prediction (s)", -1),
}
#: What a comparison holds, all None where the two have no case in common.
COMPARISON = ("first", "second", "difference", "low", "high", "ratio", "ratio_low", "ratio_high", "p")
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


def unit_means(rows: pd.DataFrame, columns: Sequence[str], split_by: str) -> pd.DataFrame:
    """Each unit's mean of every column over the rows where it has a value: index (case_site, unit)."""
    site = rows["case_site"] if "case_site" in rows else rows["site"]
    return rows[list(columns)].astype(float).groupby([site.rename("site"), units(rows, split_by).rename("unit")]).mean()


def estimates(rows: pd.DataFrame, columns: Sequence[str], split_by: str, settings: Evaluate, *, over_sites: bool = False) -> dict[str, dict]:
    """Each column's mean over units (or over sites) with its interval.

    `n` units had a value. Over units, `seed_sd` is how much the mean moves between support draws; over sites, `sites` counts them.
    """
    table = unit_means(rows, columns, split_by)
    known = table.notna().to_numpy()
    by_seed = None if over_sites or "seed" not in rows else rows.groupby("seed")[list(columns)].mean()
    found: dict[str, dict] = {}
    for pattern in np.unique(known, axis=1).T:  # columns that the same units have are resampled together
        names = [name for name, has in zip(columns, known.T, strict=True) if np.array_equal(has, pattern)]
        part = table.loc[pattern, names]
        groups = _groups(part, over_sites)
        means = mean_of_means(groups) if groups else np.full(len(names), np.nan)
        limits = intervals(lambda values: values, groups, settings) if groups else np.full((len(names), 2), np.nan)
        for name, mean, (low, high) in zip(names, means, limits, strict=True):
            found[name] = {"mean": _known(mean), "low": _known(low), "high": _known(high), "n": len(part)}
            if over_sites:
                found[name]["sites"] = len(groups)
            else:
                found[name]["seed_sd"] = None if by_seed is None or by_seed[name].count() < 2 else float(by_seed[name].std())
    return {name: found[name] for name in columns}


def estimate(rows: pd.DataFrame, metric: str, split_by: str, settings: Evaluate) -> dict[str, float | int | None]:
    """One column of `estimates`."""
    return estimates(rows, [metric], split_by, settings)[metric]


def pair(first: pd.DataFrame, second: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Both systems' values of the rows they share (same site, draw, case and label): columns "<metric>_first" and "<metric>_second"."""
    sites = ["case_site"] if "case_site" in first else []
    left = first[[*PAIR_KEYS, *sites, *metrics]].rename(columns={name: f"{name}_first" for name in metrics})
    right = second[[*PAIR_KEYS, *metrics]].rename(columns={name: f"{name}_second" for name in metrics})
    return left.merge(right, on=PAIR_KEYS, validate="one_to_one")


def compare(pairs: pd.DataFrame, metric: str, split_by: str, settings: Evaluate, *, over_sites: bool = False) -> dict[str, float | int | None]:
    """First minus second over units (or over sites): both means, difference and ratio with intervals, p-value of a sign-flip permutation test."""
    columns = [f"{metric}_first", f"{metric}_second"]
    rows = pairs.dropna(subset=columns)
    part = unit_means(rows, columns, split_by)
    found = {"n": len(part), "rows": len(rows), **dict.fromkeys(COMPARISON)}
    groups = _groups(part, over_sites)
    if not groups:
        return found
    first, second = mean_of_means(groups)
    limits = intervals(lambda values: np.stack([values[..., 0] - values[..., 1], values[..., 0] / values[..., 1]], axis=-1), groups, settings)
    (low, high), (ratio_low, ratio_high) = limits if second > 0 else (limits[0], (math.nan, math.nan))
    weighted = np.concatenate([(group[:, 0] - group[:, 1]) / len(group) for group in groups])
    return found | {"first": float(first), "second": float(second), "difference": float(first - second), "low": _known(low), "high": _known(high),
                    "ratio": float(first / second) if second > 0 else None, "ratio_low": _known(ratio_low), "ratio_high": _known(ratio_high),
                    "p": sign_flip_p(weighted)} | ({"sites": len(groups)} if over_sites else {})


def _groups(means: pd.DataFrame, over_sites: bool) -> list[np.ndarray]:
    """Units as one group, or a group a site; none where there are no units. A unit with rows at several sites counts at each."""
    if not len(means):
        return []
    return [part.to_numpy(float) for _, part in means.groupby(level=0)] if over_sites else [means.groupby(level=1).mean().to_numpy(float)]


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
