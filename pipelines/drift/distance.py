"""Do two groups of patients come from one distribution? Energy distance between them, and a permutation test.

The energy distance (Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018) is 0 only where the distributions are equal, needs no bandwidth, and
works on nothing but distances between patients, so that patients with different modalities can be compared by those that they share. Under the
hypothesis that nothing changed, which patients are "recent" is arbitrary; the p-value says how many ways to choose them look as different.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

SEED = 20261
#: Equal sums added in another order may differ by this share; they count as equal.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Test:
    """Outcome of a permutation test. `smallest` is the least p-value that so few patients can give."""

    distance: float
    p: float
    smallest: float


def pairwise(patients: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Distances `(n, n)` between patients, each a mapping modality -> vector `(d,)`.

    Every modality counts alike: its columns are in units of their spread over all patients, its distances in units of their mean; two patients are
    as far apart as they are on average over the modalities that both have, and at the mean, 1, where they share none.
    """
    count, layers = len(patients), []
    for modality in sorted({name for patient in patients for name in patient}):
        having = [index for index, patient in enumerate(patients) if modality in patient]
        if len(having) < 2:
            continue
        vectors = np.stack([patients[index][modality] for index in having]).astype(np.float64)
        spread = vectors.std(axis=0)
        vectors = (vectors - vectors.mean(axis=0))[:, spread > 0] / spread[spread > 0]
        distances = np.sqrt(np.maximum(((vectors[:, None] - vectors[None]) ** 2).sum(axis=-1), 0))
        mean = distances[np.triu_indices(len(having), 1)].mean()
        layer = np.full((count, count), np.nan)
        layer[np.ix_(having, having)] = distances / mean if mean > 0 else distances
        layers.append(layer)
    if not layers:
        return 1.0 - np.eye(count)
    stack = np.stack(layers)
    known = np.isfinite(stack)
    total = np.where(known, stack, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    total[~known.any(axis=0)] = 1.0
    np.fill_diagonal(total, 0.0)
    return total


def energy(distances: np.ndarray, recent: np.ndarray) -> np.ndarray:
    """Energy distance of the patients chosen by each row of `recent` `(k, n)` boolean from the others: `(k,)`, at least 0.

    Means within a group are over all pairs, a patient with itself included (the V-statistic).
    """
    chosen = recent.astype(np.float64)
    left = 1.0 - chosen
    m, n = chosen.sum(axis=1), left.sum(axis=1)
    to_chosen = chosen @ distances
    between, within = (to_chosen * left).sum(axis=1) / (m * n), (to_chosen * chosen).sum(axis=1) / m ** 2
    return 2 * between - within - ((left @ distances) * left).sum(axis=1) / n ** 2


def permutation_test(distances: np.ndarray, recent: np.ndarray, permutations: int) -> Test:
    """Test whether the patients marked in `recent` `(n,)` differ from the others.

    Every way to choose as many is tried where there are at most `permutations`, else that many at random with the observed one counted in (Phipson
    and Smyth 2010, doi:10.2202/1544-6115.1585), so that the p-value never understates. Both groups need a patient.
    """
    count, size = len(recent), int(recent.sum())
    ways = math.comb(count, size)
    observed = energy(distances, recent[None])[0]
    drawn = np.zeros((ways if ways <= permutations else permutations, count), bool)
    if ways <= permutations:
        for row, places in zip(drawn, combinations(range(count), size), strict=True):
            row[list(places)] = True
    else:
        places = np.random.default_rng(SEED).random(drawn.shape).argsort(axis=1)[:, :size]
        np.put_along_axis(drawn, places, True, axis=1)
    extreme = int((energy(distances, drawn) >= observed * (1 - ROUNDING)).sum())
    p = extreme / ways if ways <= permutations else (extreme + 1) / (permutations + 1)
    return Test(float(observed), float(p), 1 / min(ways, permutations + 1))
