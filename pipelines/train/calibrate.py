"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599) of any system's probabilities, on cases used for nothing else.

One number per fit: p -> softmax(log p / T). It is fitted where segmentation errors are, in the band around lesions, because the easy
background of a head would drown them. Bounded, and dropped where it does not help on voxels it was not fitted on.

Ours: the cases are few and the voxels of one are wrong together, so a case counts as one observation. Each case's own log T is found, they
are averaged, and the mean is drawn towards T = 1 as if `PRIOR_CASES` further cases had needed none. Otherwise one badly segmented case,
which no temperature can repair, sets the bound for every patient after it. Temperatures keep the order of the classes and so the
segmentation; a bias per class does not, and is left to the systems (docs/calibration.md has what either does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from pipelines.train.band import foreground_band

BOUNDS = (0.25, 4.0)
#: Weight of the prior at T = 1, in cases: the variance of log T between the cases of a fit over its variance between fits' means. Measured on
#: 24 query cases of tcga-lgg with five experiments: 0.45^2 to 0.57^2, which is about a half.
PRIOR_CASES = 0.5
#: Probabilities are clipped here before the logarithm; a forest's are often exactly 0.
EPSILON = 1e-6


@dataclass(frozen=True)
class Temperature:
    """The temperature kept, and the calibration cases' mean negative log-likelihood (nats) without and with it.

    `own`: the temperature that each case would have by itself, before the prior.
    """

    value: float = 1.0
    own: tuple[float, ...] = ()
    nll_before: float | None = None
    nll_after: float | None = None
    voxels: int = 0
    reason: str = "no calibration cases"


@dataclass(frozen=True)
class Sample:
    """Band voxels of one calibration case: log-probabilities `(N, C)`, true class `(N,)`, slice of each voxel `(N,)`."""

    log_p: np.ndarray
    truth: np.ndarray
    slices: np.ndarray

    def part(self, chosen: np.ndarray) -> Sample:
        return Sample(self.log_p[chosen], self.truth[chosen], self.slices[chosen])


def band_sample(probabilities: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], band_mm: float) -> Sample:
    """The calibration voxels of one case. `probabilities`: `(C, S, H, W)`; `truth`: `(S, H, W)`."""
    band = foreground_band(truth > 0, probabilities.argmax(0) > 0, spacing_mm, band_mm)
    log_p = np.log(np.clip(probabilities[:, band].T.astype(np.float64), EPSILON, 1.0))
    return Sample(log_p, truth[band].astype(np.int64), np.nonzero(band)[0])


def nll(samples: Sequence[Sample], temperature: float) -> float:
    """Mean over cases of their voxels' mean negative log-likelihood (nats) at a temperature."""
    return float(np.mean([_nll_and_slope(sample, np.log(temperature))[0] for sample in samples]))


def fit_temperature(samples: Sequence[Sample], prior_cases: float = PRIOR_CASES) -> Temperature:
    """The temperature of calibration cases (one sample each), or 1 where held-out voxels gain nothing by it."""
    samples = [sample for sample in samples if len(sample.truth)]
    if not samples:
        return Temperature(reason="no voxel near a lesion in the calibration cases")
    own = tuple(minimised(sample) for sample in samples)
    before, voxels = nll(samples, 1.0), sum(len(sample.truth) for sample in samples)
    folds = _folds(samples, own)
    held_out = sum(nll([test], _shrunk(others, prior_cases)) for others, test in folds)
    unscaled = sum(nll([test], 1.0) for _, test in folds)
    if not folds or held_out >= unscaled:
        return Temperature(1.0, own, before, before, voxels, "kept at 1: scaling does not lower the held-out loss")
    value = _shrunk(own, prior_cases)
    return Temperature(value, own, before, nll(samples, value), voxels, "fitted")


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T) over axis 0, float32; unchanged at T = 1."""
    if temperature == 1.0:
        return probabilities
    powered = np.clip(probabilities, EPSILON, 1.0) ** np.float32(1.0 / temperature)
    return (powered / powered.sum(0, keepdims=True)).astype(np.float32)


def minimised(sample: Sample) -> float:
    """One case's own temperature, by L-BFGS on log T within `BOUNDS`."""
    result = minimize(lambda log_t: _nll_and_slope(sample, log_t[0]), x0=[0.0], jac=True, method="L-BFGS-B", bounds=[tuple(np.log(BOUNDS))])
    return float(np.clip(np.exp(result.x[0]), *BOUNDS))


def _shrunk(own: Sequence[float], prior_cases: float) -> float:
    """Mean of the cases' log T and of `prior_cases` zeros, as a temperature: the posterior mean where both are normal."""
    return float(np.exp(np.log(own).sum() / (len(own) + prior_cases)))


def _nll_and_slope(sample: Sample, log_t: float) -> tuple[float, np.ndarray]:
    """Mean NLL of softmax(log p / T) and its derivative by log T."""
    inverse = np.exp(-log_t)
    scaled = sample.log_p * inverse
    top = scaled.max(1, keepdims=True)
    exponentials = np.exp(scaled - top)
    total = exponentials.sum(1, keepdims=True)
    rows = np.arange(len(sample.truth))
    loss = (np.log(total) + top)[:, 0] - scaled[rows, sample.truth]
    slope = ((exponentials / total) * sample.log_p).sum(1) - sample.log_p[rows, sample.truth]
    return float(loss.mean()), np.array([-inverse * slope.mean()])


def _folds(samples: Sequence[Sample], own: Sequence[float]) -> list[tuple[list[float], Sample]]:
    """Temperatures of the others, and the case left out; with a single case its even slices against the odd ones, in both directions."""
    if len(samples) > 1:
        return [([value for other, value in enumerate(own) if other != index], sample) for index, sample in enumerate(samples)]
    (only,) = samples
    halves = only.part(only.slices % 2 == 0), only.part(only.slices % 2 == 1)
    if not all(len(half.truth) for half in halves):
        return []
    return [([minimised(fit)], test) for fit, test in (halves, halves[::-1])]
