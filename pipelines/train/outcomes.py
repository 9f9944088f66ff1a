"""Temperature scaling of a case's class probabilities, on cases used for nothing else: one number a fit, as for voxels (`calibrate`).

A case is one observation here, so all calibration cases set one temperature together. Ours: its logarithm is drawn towards 0 as if `PRIOR_CASES`
further cases had needed none, and it is dropped where cases that it was not fitted on gain nothing by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.train.calibrate import EPSILON, Sample, Temperature, minimised, nll

#: Weight of the prior at T = 1, in cases; with fewer than `FEWEST` cases there is no telling at all.
PRIOR_CASES = 10
FEWEST = 5


def fit_case_temperature(said: Sequence[tuple[np.ndarray, int]]) -> Temperature:
    """The temperature of calibration cases, each its probabilities `(C,)` and the index of its class."""
    log_p = np.log(np.clip(np.array([probabilities for probabilities, _ in said], np.float64), EPSILON, 1.0))
    sample = Sample(log_p, np.array([truth for _, truth in said]), np.arange(len(said)))
    before = nll([sample], 1.0)
    if len(said) < FEWEST:
        return Temperature(1.0, (), before, before, 0, f"kept at 1: {len(said)} calibration case(s), fewer than {FEWEST}")
    others = (np.arange(len(said)) != left for left in range(len(said)))
    held_out = np.mean([nll([sample.part(~kept)], _shrunk(sample.part(kept))) for kept in others])
    if held_out >= before:
        return Temperature(1.0, (minimised(sample),), before, before, 0, "kept at 1: scaling does not lower the held-out loss")
    value = _shrunk(sample)
    return Temperature(value, (minimised(sample),), before, nll([sample], value), 0, "fitted")


def _shrunk(sample: Sample) -> float:
    count = len(sample.truth)
    return float(minimised(sample) ** (count / (count + PRIOR_CASES)))
