"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599) of any system's probabilities, on cases used for nothing else.

One number per fit: p -> softmax(log p / T). It is fitted where segmentation errors are, in the band around lesions, because the easy
background of a head would drown them. Bounded, and dropped where it does not help on voxels it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from pipelines.train.band import foreground_band

BOUNDS = (0.25, 4.0)
#: Probabilities are clipped here before the logarithm; a forest's are often exactly 0.
EPSILON = 1e-6


@dataclass(frozen=True)
class Temperature:
    """The temperature kept and the mean negative log-likelihood (nats) of the calibration voxels without and with it."""

    value: float = 1.0
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
    """Mean negative log-likelihood at a temperature, every voxel counted once."""
    return _nll_and_slope(_joined(samples), np.log(temperature))[0]


def fit_temperature(samples: Sequence[Sample]) -> Temperature:
    """The temperature of calibration cases' voxels by L-BFGS on log T within `BOUNDS`, or 1 where held-out voxels gain nothing by it."""
    samples = [sample for sample in samples if len(sample.truth)]
    if not samples:
        return Temperature(reason="no voxel near a lesion in the calibration cases")
    value, before = _minimise(samples), nll(samples, 1.0)
    voxels = sum(len(sample.truth) for sample in samples)
    folds = _folds(samples)
    held_out = sum(nll([test], _minimise(fit)) * len(test.truth) for fit, test in folds)
    unscaled = sum(nll([test], 1.0) * len(test.truth) for _, test in folds)
    if not folds or held_out >= unscaled:
        return Temperature(1.0, before, before, voxels, "kept at 1: scaling does not lower the held-out loss")
    return Temperature(value, before, nll(samples, value), voxels, "fitted")


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T) over axis 0, float32; unchanged at T = 1."""
    if temperature == 1.0:
        return probabilities
    powered = np.clip(probabilities, EPSILON, 1.0) ** np.float32(1.0 / temperature)
    return (powered / powered.sum(0, keepdims=True)).astype(np.float32)


def _joined(samples: Sequence[Sample]) -> Sample:
    return Sample(*(np.concatenate([getattr(sample, name) for sample in samples]) for name in ("log_p", "truth", "slices")))


def _minimise(samples: Sequence[Sample]) -> float:
    joined, bounds = _joined(samples), tuple(np.log(BOUNDS))
    result = minimize(lambda log_t: _nll_and_slope(joined, log_t[0]), x0=[0.0], jac=True, method="L-BFGS-B", bounds=[bounds])
    return float(np.clip(np.exp(result.x[0]), *BOUNDS))


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


def _folds(samples: Sequence[Sample]) -> list[tuple[list[Sample], Sample]]:
    """Leave one case out; with a single case even against odd slices, in both directions."""
    if len(samples) > 1:
        return [([other for other in samples if other is not sample], sample) for sample in samples]
    (only,) = samples
    even, odd = only.part(only.slices % 2 == 0), only.part(only.slices % 2 == 1)
    return [([even], odd), ([odd], even)] if len(even.truth) and len(odd.truth) else []
