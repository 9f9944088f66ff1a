"""Whether a prediction knows where it is wrong: a voxel uncertainty, and how well it ranks the errors near the lesion.

The uncertainty is the entropy of the calibrated probabilities, 0 to 1. The error-retention curve is the Dice of the case when the most uncertain
share of the foreground band is handed to an expert and only the rest is kept: it starts at 1 (nothing kept) and ends at the case's Dice (all
kept), and its area lies between that of a random and of the ideal order (errors first, missed voxels before false ones, as each of them weighs more).
"""

from __future__ import annotations

import math

import numpy as np

#: Shares of the band's voxels kept, for the table; areas are computed on `FINE`.
RETAINED = np.linspace(0, 1, 11)
FINE = np.linspace(0, 1, 101)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy over axis 0 of `(C, ...)`, over its largest value log C: 0 is certain, 1 knows nothing."""
    from scipy.special import entr

    return entr(probabilities).sum(0) / np.float32(math.log(len(probabilities)))


def rank_errors(uncertainty: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Columns of `cases.csv`, and the retention curve at `RETAINED`, of one label.

    All three are `(N,)` voxels of the foreground band, the last two boolean. Without truth there is no Dice and all is NaN; without an
    error (or without a voxel that is right) the AUROC alone is.
    """
    if not truth.any():
        return dict.fromkeys(("uncertainty_auroc", "retention_auc", "retention_auc_random", "retention_auc_ideal"), math.nan), RETAINED * math.nan
    order = np.argsort(-uncertainty, kind="stable")  # the first are handed over first
    missed, false = (truth & ~predicted)[order], (~truth & predicted)[order]
    n_truth, n_missed, n_false, place = int(truth.sum()), int(missed.sum()), int(false.sum()), np.arange(len(order))
    ideal = place < n_missed, (place >= n_missed) & (place < n_missed + n_false)
    values = {"uncertainty_auroc": auroc(uncertainty, truth != predicted),
              "retention_auc": _area(_retention(missed, false, n_truth, FINE)),
              "retention_auc_random": _area(_dice(n_truth, FINE * n_missed, FINE * n_false)),  # what remains on average
              "retention_auc_ideal": _area(_retention(*ideal, n_truth, FINE))}
    return values, _retention(missed, false, n_truth, RETAINED)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counted half (Mann-Whitney); NaN where there is only one of the two kinds."""
    from scipy.stats import rankdata

    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return math.nan
    return float((rankdata(score)[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def _retention(missed: np.ndarray, false: np.ndarray, n_truth: int, retained: np.ndarray) -> np.ndarray:
    """Dice when the first voxels are replaced by the truth and the share `retained` is kept; errors `(N,)` are in the order of replacement."""
    handed = np.rint((1 - retained) * len(missed)).astype(int)
    left = (int(errors.sum()) - np.concatenate([[0], np.cumsum(errors)])[handed] for errors in (missed, false))
    return _dice(n_truth, *left)


def _dice(n_truth: int, missed: np.ndarray, false: np.ndarray) -> np.ndarray:
    return 2 * (n_truth - missed) / (2 * n_truth - missed + false)


def _area(dices: np.ndarray) -> float:
    return float(np.trapezoid(dices, FINE))
