"""How good a segmentation drawn token by token could be: the truth itself, quantised to the grid of each of the backbone's levels.

It bounds whatever sees tokens alone, so it says whether a cohort's lesions are large enough for a backbone before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.cohort import read_manifest
from pipelines.errors import DataError

#: A token is given a label that covers at least this share of its voxels.
SHARE = 0.5
#: Figures are rounded to this many digits, so that equal cohorts make equal bytes.
DIGITS = 4


def patch_ceiling(truth: np.ndarray, stride: int) -> float:
    """Dice of `(S, H, W)` with itself quantised to tokens of `stride` x `stride` pixels; NaN where there is no truth.

    A token on the edge of the slice covers fewer pixels and is judged by those.
    """
    truth = truth[truth.any(axis=(1, 2))]  # the other slices add nothing
    if not len(truth):
        return float("nan")
    rows, columns = (np.arange(0, length, stride) for length in truth.shape[1:])
    covered = np.add.reduceat(np.add.reduceat(truth, rows, axis=1, dtype=np.int32), columns, axis=2)
    heights, widths = (np.minimum(stride, length - starts) for length, starts in zip(truth.shape[1:], (rows, columns), strict=True))
    size = heights[:, None] * widths
    kept = covered >= SHARE * size
    return float(2 * covered[kept].sum() / (truth.sum() + (kept * size).sum()))


def cohort_ceilings(source: Path, labels: Sequence[str], levels: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, dict]]:
    """Level -> label -> mean, number of cases with that label, and the same by site, of the labelled cases resampled in `source`.

    `labels` are the names of the label values 1, 2, ...; `levels` are the backbone's (name -> channels, stride).
    """
    rows = read_manifest(source).query("kind == 'label'")
    strides = sorted({stride for _, stride in levels.values()})
    values: dict[tuple[int, str], list[tuple[str, float]]] = {(stride, label): [] for stride in strides for label in labels}
    for row in rows.itertuples():
        volume = _label(Path(source) / row.path, int(row.slice_axis))
        for value, label in enumerate(labels, start=1):
            truth = volume == value
            if truth.any():
                for stride in strides:
                    values[stride, label].append((row.site, patch_ceiling(truth, stride)))
    return {level: {label: _means(values[stride, label]) for label in labels} for level, (_, stride) in levels.items()}


def _means(values: Sequence[tuple[str, float]]) -> dict[str, object]:
    sites = sorted({site for site, _ in values})
    return _mean([value for _, value in values]) | {"sites": {site: _mean([value for where, value in values if where == site]) for site in sites}}


def _mean(values: Sequence[float]) -> dict[str, object]:
    return {"mean": round(float(np.mean(values)), DIGITS) if values else None, "cases": len(values)}


def _label(path: Path, slice_axis: int) -> np.ndarray:
    import nibabel

    try:
        return np.moveaxis(np.asarray(nibabel.load(path).dataobj), slice_axis, 0)
    except Exception as error:  # whatever a damaged file makes a reader raise
        raise DataError(f"{path} cannot be read ({type(error).__name__}); run the resample stage again") from None
