"""The control that takes one modality from another patient: what it tells of *this* patient is gone, everything else about the fit stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.train.split import Split


def shuffled(split: Split, modality: str) -> Split:
    """The split with `modality` of every case that has it replaced by that of the next case of another subject, fitted to its grid.

    Raises `DataError` where fewer than two subjects of the split have the modality.
    """
    groups = {name: getattr(split, name) for name in ("support", "calibration", "query", "source")}
    having = sorted({case.id: case for cases in groups.values() for case in cases if modality in case.images}.values(), key=lambda case: case.id)
    if len({case.subject for case in having}) < 2:
        raise DataError(f"{modality} cannot be shuffled: fewer than two subjects of a draw have it; shuffle another modality, or leave the arm out")
    changed = {case.id: _with(case, _donor(case, having), modality) for case in having}
    return replace(split, **{name: tuple(changed.get(case.id, case) for case in cases) for name, cases in groups.items()})


def _donor(case: Case, having: Sequence[Case]) -> Case:
    start = having.index(case)
    return next(other for other in (*having[start:], *having[:start]) if other.subject != case.subject)


def _with(case: Case, donor: Case, modality: str) -> Case:
    """The case with the donor's image and tokens in place of its own, stretched to its shape; air stays where it was."""
    image = _stretched(donor.image(modality)[:, None], case.foreground().shape)[:, 0] * case.foreground()
    tokens = dict(case.tokens)
    if modality in tokens and modality in donor.tokens:
        own = case.token_levels(modality)
        tokens[modality] = {level: _stretched(values.astype(np.float32), (len(own[level]), *own[level].shape[2:])).astype(np.float16)
                            for level, values in donor.token_levels(modality).items()}
    return replace(case, images={**case.images, modality: image.astype(np.float32)}, tokens=tokens)


def _stretched(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`(S, C, H, W)` at another `(S, H, W)`, linearly."""
    import torch
    from torch.nn import functional

    volume = torch.from_numpy(np.ascontiguousarray(values)).movedim(1, 0)[None]
    return functional.interpolate(volume, size=shape, mode="trilinear", align_corners=False)[0].movedim(0, 1).numpy()
