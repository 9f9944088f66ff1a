"""What a set of answers about whole cases is worth: average precision, AUROC, balanced accuracy, calibration.

Two classes are scored by the probability of the second one, more by each class against the rest, and the mean is taken over classes (the mAP of the
literature). scikit-learn computes the same (a test holds them together) at a millisecond a call; a table with intervals asks for a hundred thousand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

METRICS = ("map", "auroc", "balanced_accuracy", "ece")


def measure_outcomes(scores: np.ndarray, truth: np.ndarray, bins: int) -> dict[str, float]:
    """Of scores `(N, C)` and the index of each case's class `(N,)`: mAP, AUROC, balanced accuracy, and ECE of the class that was said.

    A class that no case has, or all have, has no AP and no AUROC; NaN where none counts.
    """
    classes = range(scores.shape[1]) if scores.shape[1] > 2 else [1]
    said = scores.argmax(1)
    ranked = [ranking(scores[:, one], truth == one) for one in classes if 0 < (truth == one).sum() < len(truth)]
    recalls = [float((said[truth == one] == one).mean()) for one in range(scores.shape[1]) if (truth == one).any()]
    return {"map": _mean([precision for precision, _ in ranked]), "auroc": _mean([area for _, area in ranked]),
            "balanced_accuracy": _mean(recalls) if len(recalls) > 1 else math.nan, "ece": calibration_error(scores.max(1), said == truth, bins)}


def ranking(score: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Average precision and AUROC. Cases of equal score are taken together, so that their order cannot matter."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    hits = positive[order].cumsum()[ends]
    found, misses = np.diff(hits, prepend=0), ends + 1 - hits
    precision = float((found * hits / (ends + 1)).sum() / hits[-1])
    before = misses - np.diff(misses, prepend=0) / 2  # of equal score count half
    return precision, float(1 - (found * before).sum() / (hits[-1] * misses[-1]))


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Mean |confidence - share that is right| over equal-width bins, weighted by their cases (Guo et al. 2017)."""
    index = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    gap = np.bincount(index, confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
