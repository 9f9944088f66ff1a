"""What of an image is compared: the frozen encoder's tokens pooled over the head, and the shape of the histogram.

Both are of the resampled images, whose intensities are standardised to about 0 +- 1 inside the head: the scanner's arbitrary gain is gone, which
differs from one patient to the next on one scanner too; contrast, noise and blur, which a model feels, are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipelines.cohort import Case

#: Shares of the head's voxels below the quantiles that stand for a histogram.
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def pooled_tokens(case: Case, modality: str) -> np.ndarray:
    """Mean and standard deviation of the tokens inside the head, level after level: `(2 * channels of all levels,)` float64."""
    head, parts = case.foreground(), []
    for _, tokens in sorted(case.token_levels(modality).items()):
        inside = np.moveaxis(tokens.astype(np.float64), 1, -1)[_on_grid(head, tokens.shape[2:])]
        parts += [inside.mean(axis=0), inside.std(axis=0)]
    return np.concatenate(parts)


def _on_grid(mask: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """A mask `(S, H, W)` at the tokens' grid `(S, h, w)`: a token counts where its middle pixel does; all count where none would."""
    rows, columns = (np.minimum(((np.arange(size) + 0.5) * -(-full // size)).astype(int), full - 1)
                     for size, full in zip(grid, mask.shape[1:], strict=True))
    found = mask[:, rows][:, :, columns]
    return found if found.any() else np.ones_like(found)


def histogram(case: Case, modality: str) -> np.ndarray:
    """Quantiles of the intensities inside the head, and their grain: the median step between neighbours of a row. `(len(QUANTILES) + 1,)`."""
    image, head = case.image(modality), case.foreground()
    steps = np.abs(np.diff(image, axis=2))[head[:, :, 1:] & head[:, :, :-1]]
    inside = image[head] if head.any() else image.ravel()
    return np.append(np.quantile(inside, QUANTILES), np.median(steps) if steps.size else 0.0).astype(np.float64)


def by_patient(cases: Sequence[Case], describe: Callable[[Case, str], np.ndarray]) -> dict[str, Mapping[str, np.ndarray]]:
    """Subject -> modality -> mean description over the subject's cases: sessions of one patient are not independent. Only embedded images count."""
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for case in cases:
        for modality in case.tokens:
            found.setdefault(case.subject, {}).setdefault(modality, []).append(describe(case, modality))
    return {subject: {modality: np.mean(vectors, axis=0) for modality, vectors in of.items()} for subject, of in found.items()}
