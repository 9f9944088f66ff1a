"""The numbers of the optional tables: lesion sizes, missing modalities, conformal risk control, error retention, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from pipelines.report.collect import Cohort
from pipelines.report.statistics import estimate, estimates, units

SIZES = ("small", "medium", "large")
CONDITION = ["arm", "protocol", "shots"]


def size_edges(cases: pd.DataFrame) -> dict[str, list[float]]:
    """Label -> the two volumes (ml) between thirds of the cohort's cases that have it; labels of fewer than three cases are left out."""
    if "truth_ml" not in cases:
        return {}
    volumes = cases[cases.truth_ml > 0].drop_duplicates(["case", "label"])
    return {label: [float(edge) for edge in np.quantile(part.truth_ml, (1 / 3, 2 / 3))]
            for label, part in volumes.groupby("label") if len(part) >= len(SIZES)}


def sizes(rows: pd.DataFrame, edges: list[float] | None) -> pd.Series:
    """The size group of each row's lesion; none (left out by a groupby) without truth or edges."""
    if edges is None:
        return pd.Series(None, index=rows.index, dtype=object)
    groups = np.array(SIZES, dtype=object)[np.searchsorted(edges, rows.truth_ml.to_numpy(float), side="left")]
    return pd.Series(groups, index=rows.index).where(rows.truth_ml > 0)


def missing(cohort: Cohort) -> list[dict[str, object]]:
    """Per arm, protocol, shots, label and set of modalities: mean Dice, and the drop against all modalities of the same case, fit and label.

    Cases differ in what was acquired, so a drop is over the cases for which the set is a part of what they have; `n` counts them.
    """
    table = cohort.tables.get("missing")
    if table is None:
        return []
    keys = [*CONDITION, "site", "seed", "case", "label"]
    full = table.sort_values("n_modalities").drop_duplicates(keys, keep="last")[[*keys, "dice", "n_modalities"]]
    joined = table.merge(full, on=keys, suffixes=("", "_full"))
    joined["drop"] = (joined.dice - joined.dice_full).where(joined.n_modalities < joined.n_modalities_full)
    rows = []
    for (arm, protocol, shots, label, modalities), part in joined.groupby([*CONDITION, "label", "modalities"]):
        rows.append({"arm": arm, "protocol": protocol, "shots": int(shots), "label": label, "modalities": modalities,
                     "n_modalities": int(part.n_modalities.iloc[0]),
                     **estimates(part, ["dice", "ece", "drop"], cohort.split_by, cohort.settings)})
    return rows


def conformal(cohort: Cohort) -> list[dict[str, object]]:
    """Per experiment, label and level: mean false-negative rate, share of cases within the level, predicted over true volume, refusals."""
    table = cohort.tables.get("conformal")
    if table is None:
        return []
    table = table.assign(refused=table.refused.astype(str).str.lower().isin(("true", "1", "1.0")))
    rows = []
    for (name, label, alpha), part in table.groupby(["experiment", "label", "alpha"]):
        tested = part[~part.refused & part.fnr.notna()]
        within = tested.assign(within=(tested.fnr <= alpha).astype(float))
        rows.append({"experiment": name, **_condition(part), "label": label, "alpha": float(alpha), "tested": len(tested),
                     "refused": int(part.refused.sum()), "fnr": estimate(tested, "fnr", cohort.split_by, cohort.settings),
                     "within": estimate(within, "within", cohort.split_by, cohort.settings)["mean"],
                     "size_ratio": _finite(tested.size_ratio.replace([np.inf, -np.inf], np.nan).median()),
                     "n_calibration": _finite(part.n_calibration.median())})
    return rows


def retention(cohort: Cohort) -> list[dict[str, object]]:
    """Per experiment and label: mean Dice over the share of voxels that the system keeps, the most uncertain ones given up first."""
    table = cohort.tables.get("retention")
    if table is None:
        return []
    table = table.assign(unit=units(table, cohort.split_by)).dropna(subset=["dice"])
    rows = []
    for (name, label), part in table.groupby(["experiment", "label"]):
        curve = part.groupby([part.retained.round(4), "unit"]).dice.mean().groupby(level=0).mean()
        rows.append({"experiment": name, **_condition(part), "label": label, "retained": [float(share) for share in curve.index],
                     "dice": [float(value) for value in curve]})
    return rows


def cost(cohort: Cohort) -> list[dict[str, object]]:
    """Per arm, protocol and shots: medians over fits of seconds, parameters and bytes, and the largest peak memory."""
    table = cohort.tables.get("cost")
    if table is None:
        return []
    per_case = cohort.cases.groupby(CONDITION).predict_seconds.median()
    rows = []
    for (arm, protocol, shots), part in table.groupby(CONDITION):
        rows.append({"arm": arm, "protocol": protocol, "shots": int(shots), "fits": len(part), "train_seconds": _finite(part.train_seconds.median()),
                     "train_seconds_most": _finite(part.train_seconds.max()),
                     "predict_seconds": _finite(per_case.get((arm, protocol, shots), math.nan)), "peak_mb": _finite(part.peak_mb.max()),
                     "parameters": _finite(part.parameters.median()), "model_bytes": _finite(part.model_bytes.median())})
    return rows


def _condition(part: pd.DataFrame) -> dict[str, object]:
    first = part.iloc[0]
    return {"arm": first.arm, "protocol": first.protocol, "shots": int(first.shots)}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


#: Key of metrics.json -> what makes it; a table without rows is left out.
TABLES: Mapping[str, Callable[[Cohort], list[dict[str, object]]]] = {
    "missing": missing, "conformal": conformal, "retention": retention, "cost": cost,
}
