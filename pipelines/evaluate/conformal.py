"""Conformal risk control of the false-negative rate (Angelopoulos et al. 2024, "Conformal risk control", arXiv 2208.02814).

A threshold on a label's probability is chosen on labelled cases so that, for a further exchangeable case, the expected share of the lesion
that falls below it is at most alpha; no assumption is made of the model. With FNR(threshold) of n cases, the largest threshold is taken for
which n/(n+1) * mean FNR + 1/(n+1) <= alpha. Its price is the size of the region, which is reported beside it. Nothing below 1/(n+1) can be
promised with n cases, and then nothing is. The guarantee is over draws of the cases too: of one site's few cases, the mean may exceed alpha.

Ours: thresholds are levels of the square root of the probability, so that small probabilities, where missed lesions lie, have steps of
their own. Cases without the label have no FNR and are left out; the promise is for cases that have it. For evaluation, each query case of a
fit takes its turn as the new one, with the fit's other query cases for calibration (`rotations`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.errors import DataError

#: Thresholds looked at. Level k stands for probability (k / LEVELS) ** 2.
LEVELS = 1000
#: The largest possible FNR, B in the paper.
WORST = 1.0
#: Sums of fractions such as 0.1 are compared with this much slack.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Curve:
    """Of one case and label: voxels at or above each level, of the truth and of all, `(LEVELS + 1,)`. Level 0 takes every voxel."""

    truth: np.ndarray
    predicted: np.ndarray

    @property
    def has_truth(self) -> bool:
        return bool(self.truth[0])

    @property
    def fnr(self) -> np.ndarray:
        """Share of the truth below each level, not decreasing, 0 at level 0."""
        return 1 - self.truth / self.truth[0]


def threshold_of(level: int) -> float:
    """The probability that a level stands for."""
    return (level / LEVELS) ** 2


def curve(probability: np.ndarray, truth: np.ndarray) -> Curve:
    """The curve of one label: probabilities in 0..1 and a boolean truth of the same shape."""
    level = (np.sqrt(probability.ravel()) * np.float32(LEVELS)).astype(np.intp)
    counts = (np.bincount(chosen, minlength=LEVELS + 1) for chosen in (level[truth.ravel()], level))
    return Curve(*(values[::-1].cumsum()[::-1] for values in counts))


def reachable_level(n: int) -> float:
    """The smallest alpha that `n` calibration cases can promise."""
    return WORST / (n + 1)


def calibrate_fnr(curves: Sequence[Curve], alpha: float) -> int:
    """The largest level whose corrected FNR on `curves` is at most `alpha`. Raises `DataError` where so few cases cannot promise it."""
    n = len(curves)
    if reachable_level(n) > alpha + ROUNDING:
        needed = int(np.ceil(WORST / alpha - ROUNDING)) - 1
        raise DataError(f"a false-negative rate of at most {alpha:g} cannot be promised with {n} calibration case(s), which reach "
                        f"{reachable_level(n):.2g} at best; label at least {needed} cases or ask for evaluate.conformal_levels of that or more")
    risk = np.mean([one.fnr for one in curves], axis=0) * n / (n + 1) + WORST / (n + 1)
    return int(np.flatnonzero(risk <= alpha + ROUNDING)[-1])


def rotations(curves: Mapping[str, Curve], levels: Sequence[float]) -> list[dict[str, object]]:
    """Each case tested at thresholds set on all others: rows with case, alpha, n_calibration, threshold, fnr, size_ratio, refused.

    `size_ratio` is the region's volume over the true one. Refused rows have no threshold, FNR or size; cases without the label have no rows.
    """
    known = {case: one for case, one in curves.items() if one.has_truth}
    rows = []
    for case, tested in known.items():
        others = [one for other, one in known.items() if other != case]
        for alpha in levels:
            row = {"case": case, "alpha": alpha, "n_calibration": len(others), "threshold": np.nan, "fnr": np.nan, "size_ratio": np.nan}
            refused = reachable_level(len(others)) > alpha + ROUNDING
            if not refused:
                level = calibrate_fnr(others, alpha)
                row |= {"threshold": threshold_of(level), "fnr": float(tested.fnr[level]),
                        "size_ratio": float(tested.predicted[level] / tested.truth[0])}
            rows.append({**row, "refused": refused})
    return rows
