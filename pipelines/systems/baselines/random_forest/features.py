"""What the forest sees of a voxel: filters of its slice at several scales, for every modality of the task."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from pipelines.cohort import Case
from pipelines.systems.baselines.identity import case_key
from pipelines.systems.filters import derivatives, eigenvalues, gaussian, head_box

#: Values per modality and scale: Gaussian, gradient magnitude, LoG, two Hessian and two structure-tensor eigenvalues.
PER_SCALE = 7


def voxel_features(case: Case, modalities: Sequence[str], sigmas: Sequence[float]) -> np.ndarray:
    """Features of the foreground voxels of `case`, `(N, F)` float16, in the order of `np.nonzero(case.foreground())`.

    For each modality its intensity, `PER_SCALE` filters a scale (derivatives scaled by sigma so that scales compare) and a flag that it is
    there; a missing modality is all zeros.
    """
    foreground = case.foreground()
    box = head_box(foreground)
    voxels = foreground[box]
    width = 2 + PER_SCALE * len(sigmas)
    features = np.zeros((width * len(modalities), int(foreground.sum())), np.float16)  # filter by filter, as they are computed
    for number, modality in enumerate(modalities):
        if modality in case.images:
            image = np.ascontiguousarray(case.image(modality)[box])
            rows = features[number * width:(number + 1) * width]
            rows[0], rows[1] = image[voxels], 1
            for scale, sigma in enumerate(sigmas):
                first = 2 + scale * PER_SCALE
                for row, values in zip(rows[first:first + PER_SCALE], _at_scale(image, voxels, sigma), strict=True):
                    row[:] = values
    return features.T


def _at_scale(image: np.ndarray, voxels: np.ndarray, sigma: float) -> list[np.ndarray]:
    smooth = gaussian(image, sigma)
    by_row, by_column, *second = derivatives(smooth)
    row_row, row_column, column_column = (sigma**2 * value[voxels] for value in second)
    tensor = (sigma**2 * gaussian(product, sigma)[voxels] for product in (by_row**2, by_row * by_column, by_column**2))
    return [smooth[voxels], sigma * np.hypot(by_row[voxels], by_column[voxels]), row_row + column_column,
            *eigenvalues(row_row, row_column, column_column), *eigenvalues(*tensor)]


class FeatureCache:
    """Features of recently seen cases, oldest dropped first when they exceed `limit_mb`.

    Many fits look at the same cases, and computing the filters takes longer than the forest does.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[tuple, tuple[Case, np.ndarray]] = OrderedDict()

    def get(self, case: Case, modalities: Sequence[str], sigmas: Sequence[float], limit_mb: int) -> np.ndarray:
        key = (case_key(case), tuple(modalities), tuple(sigmas))
        if key not in self._held:
            self._held[key] = (case, voxel_features(case, modalities, sigmas))
        self._held.move_to_end(key)
        features = self._held[key][1]
        while len(self._held) > 1 and sum(values.nbytes for _, values in self._held.values()) > limit_mb * 2**20:
            self._held.popitem(last=False)
        return features


CACHE = FeatureCache()
