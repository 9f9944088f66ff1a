"""Bootstrap intervals and permutation tests of means over patients, in one group or with several sites counted once each.

Every statistic here is a function of group means, so a resample is a row of weights and all metrics of a table are resampled by one matrix
product. SciPy's `bootstrap` and `permutation_test` compute the same (a test holds them together) at 10 ms and 0.8 s a call; a sweep
asks for thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri

from pipelines.params import Evaluate

#: From means `(..., columns)` to what is asked `(..., answers)`.
Statistic = Callable[[np.ndarray], np.ndarray]
BOOTSTRAP_SEED = 20260
PERMUTATIONS = 9999


@lru_cache(maxsize=256)
def _weights(count: int, resamples: int, group: int) -> np.ndarray:
    """`(resamples, count)`: what each of `count` patients weighs in a resample's mean. Groups are resampled independently."""
    drawn = np.random.default_rng([BOOTSTRAP_SEED, group]).integers(0, count, size=(resamples, count))
    rows = np.arange(resamples)[:, None] * count
    return np.bincount((drawn + rows).ravel(), minlength=resamples * count).reshape(resamples, count) / count


def mean_of_means(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Groups `(patients, columns)` -> `(columns,)`: every group counts once."""
    return np.mean([group.mean(axis=0) for group in groups], axis=0)


def intervals(statistic: Statistic, groups: Sequence[np.ndarray], settings: Evaluate) -> np.ndarray:
    """Bias-corrected accelerated bootstrap intervals (Efron 1987) of `statistic` of the mean of group means: `(answers, 2)`.

    Patients are resampled within their group; a group of one has nothing to resample. NaN where no group has two. Where BCa does not exist
    (all values equal, or a statistic at its bound) the percentile interval stands in.
    """
    means = [group.mean(axis=0) for group in groups]
    observed = np.atleast_1d(statistic(np.mean(means, axis=0)))
    if all(len(group) < 2 for group in groups):
        return np.full((len(observed), 2), np.nan)
    drawn = sum(_weights(len(group), settings.bootstrap, index) @ group for index, group in enumerate(groups)) / len(groups)
    with np.errstate(all="ignore"):
        values = statistic(drawn).reshape(settings.bootstrap, -1)
        skew = _acceleration(statistic, groups, means, observed)
        bias = ndtri(((values < observed).mean(axis=0) + (values <= observed).mean(axis=0)) / 2)
        tails = np.array([1 - settings.confidence, 1 + settings.confidence]) / 2
        shifted = bias[:, None] + ndtri(tails)
        levels = ndtr(bias[:, None] + shifted / (1 - skew[:, None] * shifted))
    levels = np.where(np.isfinite(levels).all(axis=1, keepdims=True), levels, tails)
    return np.array([np.quantile(column[np.isfinite(column)], level) if np.isfinite(column).any() else (np.nan, np.nan)
                     for column, level in zip(values.T, levels, strict=True)])


def _acceleration(statistic: Statistic, groups: Sequence[np.ndarray], means: Sequence[np.ndarray], observed: np.ndarray) -> np.ndarray:
    """How fast the statistic's spread changes with its value, from leaving out one patient at a time (Efron and Tibshirani 1993, eq. 14.15)."""
    above, below, total = np.zeros_like(observed), np.zeros_like(observed), np.sum(means, axis=0)
    for group, mean in zip(groups, means, strict=True):
        count = len(group)
        if count < 2:
            continue
        without = (total - mean + (mean * count - group) / (count - 1)) / len(groups)
        left = statistic(without).reshape(count, -1)
        influence = (count - 1) * (left.mean(axis=0) - left)
        above, below = above + (influence ** 3).sum(axis=0) / count ** 3, below + (influence ** 2).sum(axis=0) / count ** 2
    return above / (6 * below ** 1.5)


@lru_cache(maxsize=64)
def _signs(count: int) -> np.ndarray:
    if 2 ** count <= PERMUTATIONS:
        return 1 - 2 * ((np.arange(2 ** count)[:, None] >> np.arange(count)) & 1)
    return np.random.default_rng(BOOTSTRAP_SEED).choice((-1, 1), size=(PERMUTATIONS, count))


def sign_flip_p(differences: np.ndarray) -> float | None:
    """Two-sided p-value of a paired permutation test: how often flipping signs makes a mean at least as far from 0. None where none can differ.

    Exact where there are at most `PERMUTATIONS` patterns of signs, else over that many random ones with the observed one counted in (Phipson
    and Smyth 2010).
    """
    count = len(differences)
    if count < 2 or not differences.any():
        return None
    signs = _signs(count)
    sums, observed = np.abs(signs @ differences), abs(differences.sum())
    extreme = int((sums >= observed - 1e-12 * np.abs(differences).sum()).sum())  # equal sums added in another order are equal
    return extreme / len(signs) if len(signs) == 2 ** count else (extreme + 1) / (len(signs) + 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of a family of p-values (1979): adjusted values, in the given order. None stays None."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = highest
    return adjusted
