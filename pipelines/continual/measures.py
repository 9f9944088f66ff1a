"""What a matrix R says, R[i, j] being the Dice on the j-th site of an order after the i-th was learned, and means over chains with intervals.

A chain is one order with one seed. Intervals resample chains, so they say how much a figure moves with other orders and other draws of the same
patients of the same sites, not with other patients. Comparisons are paired by chain: equal order, equal draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pipelines.params import Evaluate
from pipelines.report.resampling import intervals, sign_flip_p

CHAIN = ["order", "seed"]
#: Name -> what it is, for tables.
MEASURES = {"acc": "Dice on all sites at the end", "newest": "Dice on the site just learned", "forgetting": "forgetting",
            "bwt": "backward transfer", "fwt": "forward transfer", "unseen": "Dice on the next site, not seen yet"}


def measures(matrix: np.ndarray, untrained: Sequence[float] | None = None) -> dict[str, float]:
    """The measures of one chain of T sites; `matrix`: `(T, T)`, `untrained`: Dice of each site before anything is learned.

    - `acc`: mean of the last row. `bwt`: mean over j < T of R[T, j] - R[j, j]. `fwt`: mean over j > 1 of R[j - 1, j] - untrained[j], NaN without
      the latter (all three Lopez-Paz and Ranzato 2017, arXiv 1706.08840).
    - `forgetting`: mean over j < T of max over i < T of R[i, j], minus R[T, j] (Chaudhry et al. 2018, arXiv 1801.10112); below 0 where the last
      site still helped the others.
    - `newest`: mean over i > 1 of R[i, i], and `unseen`: mean over j > 1 of R[j - 1, j], ours: what learning a site gives there, and what there
      was before. The first site is left out because every method learns it alike.
    """
    last, before = matrix[-1], matrix[:-1]
    steps = np.arange(1, len(matrix))
    unseen = matrix[steps - 1, steps]
    return {"acc": float(last.mean()), "newest": float(matrix[steps, steps].mean()),
            "forgetting": float((before.max(0) - last)[:-1].mean()), "bwt": float((last - matrix.diagonal())[:-1].mean()),
            "fwt": float((unseen - np.asarray(untrained)[1:]).mean()) if untrained is not None else math.nan, "unseen": float(unseen.mean())}


def matrices(rows: pd.DataFrame) -> dict[tuple[str, int], pd.DataFrame]:
    """R of every chain of one method: (order, seed) -> sites by sites, both in the order in which they were learned."""
    found = {}
    for (order, seed), part in rows.groupby(CHAIN):
        sites = order.split(">")
        found[order, int(seed)] = part.pivot(index="after_site", columns="on_site", values="dice").loc[sites, sites]
    return found


def table(rows: pd.DataFrame, untrained: pd.DataFrame | None = None) -> pd.DataFrame:
    """The measures of every chain of one method: a row a chain, index `CHAIN`. `untrained`: the rows of a method that learns nothing."""
    floors = matrices(untrained) if untrained is not None else {}
    found = {chain: measures(matrix.to_numpy(), floors[chain].to_numpy()[0] if chain in floors else None)
             for chain, matrix in matrices(rows).items()}
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(CHAIN) if found else pd.DataFrame(columns=list(MEASURES))


def described(tables: Mapping[str, pd.DataFrame], against: Sequence[str], settings: Evaluate) -> dict[str, dict]:
    """Every method's measures, and how they differ from those of the methods `against` on the same chains."""
    return {name: {"chains": len(own), "measures": means(own, settings),
                   "minus": {other: differences(own, tables[other], settings) for other in against if other in tables and other != name}}
            for name, own in tables.items()}


def means(own: pd.DataFrame, settings: Evaluate) -> dict[str, dict]:
    """Mean and interval of every measure over chains."""
    known = [name for name in MEASURES if own[name].notna().all()]
    limits = intervals(lambda values: values, [own[known].to_numpy(float)], settings)
    return {name: {"mean": float(own[name].mean()), "low": _known(low), "high": _known(high)}
            for name, (low, high) in zip(known, limits, strict=True)}


def differences(own: pd.DataFrame, other: pd.DataFrame, settings: Evaluate) -> dict[str, dict]:
    """Own minus other, paired by chain, with interval and sign-flip p-value."""
    both = own.index.intersection(other.index)
    known = [name for name in MEASURES if own[name].notna().all() and other[name].notna().all()]
    gaps = (own.loc[both, known] - other.loc[both, known]).to_numpy(float)
    limits = intervals(lambda values: values, [gaps], settings)
    return {name: {"mean": float(gap.mean()), "low": _known(low), "high": _known(high), "p": sign_flip_p(gap)}
            for name, gap, (low, high) in zip(known, gaps.T, limits, strict=True)}


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
