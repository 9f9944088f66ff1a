"""Dense tokens of a frozen vision transformer, small enough to cache, and the backbone made of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from pipelines.backbones.hub.pixels import Preprocessing, brightness, pixels
from pipelines.backbones.precision import PRECISIONS, native_precision

#: Raised whenever the same weights would give other numbers: it is part of the fingerprint, so caches notice.
CODE_VERSION = "1"
#: Pixels a token: slices are enlarged until a patch covers this many. At the 1.5 mm of stage 2 that is 12 mm, and a slice of 160 x 160 has
#: 400 tokens, between the 196 and the 1024 that these models were trained with.
STRIDE = 8
#: Pixels a token of the text space, which is wide (512 ... 1536) and must stay exact: it is kept at half the resolution.
TEXT_STRIDE = 2 * STRIDE
#: Values kept per pixel, all levels together. Tokens may take 8 times the room of the volume in float16 (`pipelines.embed.size`); one of these is
#: left for tokens that reach beyond the image.
BUDGET = 7
#: Slices encoded together.
SLICES_AT_ONCE = {"cpu": 8, "cuda": 64}
#: Texts encoded together.
TEXTS_AT_ONCE = 64
TEXT = "text"


class Tower(Protocol):
    """The image side of a vision-language transformer."""

    patch: int  # edge in pixels
    width: int  # of a token
    dim: int  # of the shared text space
    depth: int  # blocks

    def dense(self, pixels: torch.Tensor, blocks: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """`(N, 3, h * patch, w * patch)` to tokens after each of `blocks` (1 is the first), `(N, width, h, w)`, and tokens in text space,
        `(N, dim, h, w)`, of any length."""


class DenseBackbone:
    """A published model as frozen backbone. See `pipelines.backbones.protocol.Backbone`.

    Levels `block<n>` at stride 8 are the patch tokens after 1/3, 2/3 and all of the blocks, each normalised as what follows reads it (which
    tames the few channels that carry huge values). Wider tokens than the budget allows are projected by a fixed random matrix with orthonormal
    columns, which nearly keeps distances (Johnson and Lindenstrauss 1984) and needs no data; narrower ones are kept whole. Level `text` at
    stride 16 is the tokens in text space, for the zero-shot path.

    On a CUDA device where there is one. Computed in bfloat16 where the machine has it natively, else in float32; `precision` overrides that, and
    is part of the fingerprint, because tokens in one differ from those in the other by about 1 %. What was made with the other one is read with
    `computing_as`.
    """

    def __init__(self, tower: Tower, words: Callable[[list[str]], torch.Tensor], preprocessing: Preprocessing, fingerprint: str,
                 precision: torch.dtype | None = None):
        self.tower, self.words, self.preprocessing, self._fingerprint = tower, words, preprocessing, fingerprint
        self.precision = precision or native_precision()
        self.dim = tower.dim
        self.blocks = tuple(sorted({max(1, round(tower.depth * part / 3)) for part in (1, 2, 3)}))
        channels = affordable(tower.width, tower.dim, len(self.blocks))
        self.levels = {f"block{number}": (channels, STRIDE) for number in self.blocks} | {TEXT: (tower.dim, TEXT_STRIDE)}
        self._projections = [projection(tower.width, channels, number) for number in self.blocks]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._fingerprint} {self.precision}".encode()).hexdigest()

    def computing_as(self, fingerprint: str) -> DenseBackbone:
        """This backbone in the precision that has this fingerprint, slower where the machine lacks it; itself where none has."""
        others = (DenseBackbone(self.tower, self.words, self.preprocessing, self._fingerprint, precision) for precision in PRECISIONS)
        return next((other for other in others if other.fingerprint == fingerprint), self)

    @torch.inference_mode()
    def encode_image(self, volume: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        """Tokens of `(S, H, W)`: `block<n>` `(S, C, ceil(H/8), ceil(W/8))` and `text` `(S, dim, ceil(H/16), ceil(W/16))`, float16.

        `spacing_mm` is not used: a token always covers whole pixels.
        """
        shown = torch.from_numpy(brightness(volume)).to(device())
        batches = [self._encode(batch) for batch in shown.split(SLICES_AT_ONCE[shown.device.type])]
        return {name: torch.cat(parts).numpy() for name, parts in zip(self.levels, zip(*batches, strict=True), strict=True)}

    def _encode(self, shown: torch.Tensor) -> list[torch.Tensor]:
        """All levels of a few slices, in the order of `levels`, float16 on the CPU."""
        image = pixels(shown, STRIDE, self.tower.patch, self.preprocessing)
        with torch.autocast(shown.device.type, self.precision, enabled=self.precision != torch.float32):
            levels, text = self.tower.dense(image, self.blocks)
        kept = [tokens.float() if matrix is None else torch.einsum("nchw,ck->nkhw", tokens.float(), matrix.to(tokens.device))
                for tokens, matrix in zip(levels, self._projections, strict=True)]
        text = functional.avg_pool2d(functional.normalize(text.float(), dim=1), TEXT_STRIDE // STRIDE, ceil_mode=True, count_include_pad=False)
        limit = torch.finfo(torch.float16).max
        return [tokens.clamp(-limit, limit).half().cpu() for tokens in (*kept, text)]

    @torch.inference_mode()
    def align(self, tokens: dict[str, np.ndarray]) -> np.ndarray:
        """Tokens in text space, `(S, h, w, dim)` float32, unit length, at stride 8: those of stride 16 interpolated."""
        text = torch.from_numpy(np.asarray(tokens[TEXT], dtype=np.float32))
        height, width = tokens[f"block{self.blocks[0]}"].shape[-2:]
        fine = functional.interpolate(text, scale_factor=TEXT_STRIDE / STRIDE, mode="bilinear", align_corners=False)[..., :height, :width]
        return functional.normalize(fine, dim=1).permute(0, 2, 3, 1).contiguous().numpy()

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> np.ndarray:
        """`(N, dim)` float32, unit length."""
        parts = [self.words(list(texts[start:start + TEXTS_AT_ONCE])) for start in range(0, len(texts), TEXTS_AT_ONCE)]
        vectors = torch.cat(parts) if parts else torch.zeros(0, self.dim)
        return functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def affordable(width: int, dim: int, levels: int) -> int:
    """Channels that each of `levels` levels of stride 8 may keep within the budget, at most `width`, else a multiple of 8 (at least 8)."""
    rest = (BUDGET - dim / TEXT_STRIDE**2) * STRIDE**2 / levels
    return min(width, max(8, int(rest) // 8 * 8))


def projection(width: int, channels: int, seed: int) -> torch.Tensor | None:
    """`(width, channels)` with orthonormal columns, scaled so that a channel keeps its size on average; None where nothing has to go."""
    if channels >= width:
        return None
    columns, upper = torch.linalg.qr(torch.from_numpy(np.random.default_rng(seed).standard_normal((width, channels))))
    signs = upper.diagonal().sign()  # QR leaves them to the library that computes it
    return (columns * signs * (width / channels)**0.5).float()


def device() -> torch.device:
    """Where models run. cuBLAS is only deterministic, which training insists on, with a workspace fixed before its first use."""
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return torch.device("cuda")
    return torch.device("cpu")
