"""What a prediction is worth: overlap, surfaces in millimetres, calibration. Pure functions of one label of one case.

Volumes are `(slices, rows, columns)`; a truth or prediction is boolean, a probability is in 0..1, distances are mm, volumes ml.
Conventions where a definition leaves a choice:

- no truth in the case: Dice, HD95 and NSD do not exist (NaN); the false-positive volume says what the prediction did.
- truth, but nothing predicted: Dice and NSD are 0, HD95 is NaN (an empty set has no distance). Read HD95 beside the number of cases it is over.
- HD95 is the larger of the two directed 95th percentiles over boundary voxels; NSD weighs boundary elements by their area in mm2
  (Nikolov et al. 2021, doi:10.2196/26151), which matters for slices thicker than pixels. Both are MONAI's.
- lesions are counted as `pipelines.evaluate.lesions` says.
- calibration is one-vs-rest: a label's probability against whether the voxel has that label.
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from pipelines.evaluate.lesions import count_lesions
from pipelines.systems.lean import load_monai
from pipelines.train.band import bounding_box, foreground_band

Spacing = tuple[float, float, float]

#: A probability is kept this far from 0 and 1 before its logarithm is taken, as float32 knows nothing finer near 1.
LOG_FLOOR = 1e-7


def dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Dice coefficient; NaN without truth."""
    size = int(truth.sum())
    return 2.0 * int((truth & predicted).sum()) / (size + int(predicted.sum())) if size else math.nan


def surface(truth: np.ndarray, predicted: np.ndarray, spacing_mm: Spacing, tolerance_mm: float) -> tuple[float, float]:
    """95th percentile Hausdorff distance in mm, and normalised surface distance (surface Dice) at a tolerance."""
    if not truth.any():
        return math.nan, math.nan
    if not predicted.any():
        return math.nan, 0.0
    import torch

    load_monai()
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    box = bounding_box(truth | predicted, (1, 1, 1))
    pair = [torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None].float() for mask in (predicted, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 calls its own deprecated argument
        distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing_mm)
        overlap = compute_surface_dice(*pair, class_thresholds=[tolerance_mm], include_background=True, spacing=spacing_mm, use_subvoxels=True)
    return float(distance), float(overlap)


def reliability_bins(probability: np.ndarray, truth: np.ndarray, bins: int) -> np.ndarray:
    """Sums over equal-width bins of probability, `(bins, 3)` float64: voxels, their summed probability, how many have the label.

    Sums, not means, so that bins of several cases add up.
    """
    flat = probability.ravel().astype(np.float64)
    index = np.minimum((flat * bins).astype(np.intp), bins - 1)
    weights = (None, flat, truth.ravel().astype(np.float64))
    return np.stack([np.bincount(index, weight, minlength=bins) for weight in weights], axis=1).astype(np.float64)


def expected_calibration_error(sums: np.ndarray) -> float:
    """ECE of `reliability_bins`: mean |confidence - accuracy| over bins, weighted by voxels (Guo et al. 2017). NaN without voxels."""
    count, confidence, accuracy = sums.T
    return float(np.abs(confidence - accuracy).sum() / count.sum()) if count.sum() else math.nan


def adaptive_calibration_error(probability: np.ndarray, truth: np.ndarray, bins: int) -> float:
    """ACE: the same over bins of equally many voxels (Nixon et al. 2019), which one crowded bin cannot dominate. NaN without voxels."""
    if probability.size == 0:
        return math.nan
    order = np.argsort(probability, axis=None, kind="stable")
    gaps = (probability.ravel()[order] - truth.ravel()[order]).astype(np.float64)
    parts = [part for part in np.array_split(gaps, bins) if part.size]
    return float(np.mean([abs(part.mean()) for part in parts]))


def brier(probability: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared difference of probability and truth. NaN without voxels."""
    return float(np.mean((probability.astype(np.float64) - truth) ** 2)) if probability.size else math.nan


def negative_log_likelihood(probability: np.ndarray, truth: np.ndarray) -> float:
    """Mean binary cross-entropy in nats. NaN without voxels."""
    if probability.size == 0:
        return math.nan
    given = np.where(truth, probability, 1 - probability.astype(np.float64))
    return float(-np.log(np.maximum(given, LOG_FLOOR)).mean())


def millilitres(mask: np.ndarray, spacing_mm: Spacing) -> float:
    """Volume of a mask."""
    return int(mask.sum()) * math.prod(spacing_mm) / 1000


def measure(truth: np.ndarray, predicted: np.ndarray, probability: np.ndarray, brain: np.ndarray, spacing_mm: Spacing, *,
            band_mm: float, tolerance_mm: float, bins: int) -> tuple[dict[str, float], dict[str, np.ndarray], np.ndarray]:
    """Everything about one label of one case: values by name, reliability sums by region ("band", "brain"), and the band.

    `ece`, `ace`, `brier` and `nll` are inside the foreground band, which easy background cannot flatter; the same with `_brain` are inside the
    foreground mask. The band leaves out air that is neither truth nor predicted.
    """
    band = foreground_band(truth, predicted, spacing_mm, band_mm) & (brain | truth | predicted)
    in_band, in_brain = (_calibration(probability[where], truth[where], bins) for where in (band, brain))
    hd95, nsd = surface(truth, predicted, spacing_mm, tolerance_mm)
    lesions = count_lesions(truth, predicted)
    values = {
        "dice": dice(truth, predicted),
        "hd95_mm": hd95,
        "nsd": nsd,
        **in_band[0],
        "false_positive_ml": millilitres(predicted & ~truth, spacing_mm),
        **{f"{name}_brain": value for name, value in in_brain[0].items()},
        "truth_ml": millilitres(truth, spacing_mm),
        "predicted_ml": millilitres(predicted, spacing_mm),
        "lesion_f1": lesions.f1,
        "lesions": lesions.true,
        "lesions_predicted": lesions.predicted,
    }
    return values, {"band": in_band[1], "brain": in_brain[1]}, band


def _calibration(probability: np.ndarray, truth: np.ndarray, bins: int) -> tuple[dict[str, float], np.ndarray]:
    """ECE, ACE, Brier score and NLL of a region's voxels, and their reliability sums."""
    sums = reliability_bins(probability, truth, bins)
    return {"ece": expected_calibration_error(sums), "ace": adaptive_calibration_error(probability, truth, bins),
            "brier": brier(probability, truth), "nll": negative_log_likelihood(probability, truth)}, sums
