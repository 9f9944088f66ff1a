"""How tokens are stored: as float16, or as int8 with one scale per channel, which takes half the space."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipelines.errors import UsageError

FLOAT16, INT8 = "float16", "int8"
PRECISIONS = (FLOAT16, INT8)
#: A level stored as int8 is followed by this tensor, `(C,)` float32.
SCALE = ".scale"
LARGEST = 127


def pack(tokens: Mapping[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Levels `(S, C, h, w)` float16 as they are stored.

    int8 rounds to 1/127 of a channel's largest magnitude in this image, so the error is at most half of that.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"the precision of tokens is {precision!r}; it is one of {', '.join(PRECISIONS)}")
    if precision == FLOAT16:
        return dict(tokens)
    packed = {}
    for name, values in tokens.items():
        scale = np.abs(values).max(axis=(0, 2, 3)).astype(np.float32) / LARGEST
        steps = np.divide(values, scale[:, None, None], out=np.zeros(values.shape, np.float32), where=scale[:, None, None] > 0)
        packed |= {name: np.rint(steps).astype(np.int8), name + SCALE: scale}
    return packed


def unpack(stored: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """A stored level, or some slices of it, as float16."""
    return stored if scale is None else (stored * scale[:, None, None]).astype(np.float16)


def item_bytes(precision: str) -> int:
    """Bytes of one stored number."""
    return 2 if precision == FLOAT16 else 1
