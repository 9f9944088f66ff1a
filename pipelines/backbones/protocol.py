"""What a frozen vision-language model has to offer. Everything else about it stays in its adapter."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Backbone(Protocol):
    """A frozen image encoder and text encoder that share one embedding space."""

    dim: int  # of the shared text space
    levels: dict[str, tuple[int, int]]  # level name -> (channels, stride in pixels), finest first

    @property
    def fingerprint(self) -> str:
        """Hex digest of weights, preprocessing and code version: what a cached embedding depends on besides its image."""

    def encode_image(self, volume: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        """Dense tokens of one image.

        `volume`: `(S, H, W)` float32, standardised as stage 2 does; `spacing_mm` of the same axes.
        Returns level name -> `(S, C, h, w)` float16 with `h = ceil(H / stride)`, `w = ceil(W / stride)`; token (i, j) covers the pixels
        `stride * i ... stride * (i + 1) - 1`.
        """

    def align(self, tokens: dict[str, np.ndarray]) -> np.ndarray:
        """Tokens in text space, `(S, h, w, dim)` float32, unit length, at the finest level's grid: the zero-shot path."""

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """`(N, dim)` float32, unit length."""
