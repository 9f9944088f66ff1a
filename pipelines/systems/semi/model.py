"""SEMI's trained part: projectors into text space, linear fusion, and the decoder to voxel logits.

From the method's description: a projector Linear-LayerNorm-GELU-Linear per modality into the text space of a frozen model, linear fusion
over the modalities present, an MLP decoder that sees text-similarity maps; only these are trained. Ours: the projector corrects the
backbone's own alignment, the depthwise convolution across slices that starts as the identity, the multi-scale tokens and the
raw-intensity skip beside the fused embedding, and decoding at full resolution.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    """The shape of the trained part; with its weights, all that a saved fit needs."""

    modalities: int
    labels: int
    token_width: int
    dim: int
    raw_width: int
    projector_width: int
    decoder_width: int
    stride: int
    tau: float
    backbone_alignment: bool

    def as_dict(self) -> dict:
        return asdict(self)


class Projector(nn.Module):
    """Tokens of one modality to unit vectors in text space."""

    def __init__(self, width: int, hidden: int, dim: int, corrects: bool):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, dim))
        if corrects:  # training starts at the backbone's own alignment
            nn.init.zeros_(self.layers[-1].weight)
            nn.init.zeros_(self.layers[-1].bias)

    def forward(self, tokens: torch.Tensor, aligned: torch.Tensor | None) -> torch.Tensor:
        projected = self.layers(tokens)
        return functional.normalize(projected if aligned is None else projected + aligned, dim=-1)


class Semi(nn.Module):
    """The trained part. Everything has channels last; B patches (or one case), Z slices."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width, modalities = sizes.decoder_width, range(sizes.modalities)
        self.sizes = sizes
        self.register_buffer("token_mean", torch.zeros(sizes.modalities, sizes.token_width))
        self.register_buffer("token_sd", torch.ones(sizes.modalities, sizes.token_width))
        self.projectors = nn.ModuleList(
            Projector(sizes.token_width, sizes.projector_width, sizes.dim, sizes.backbone_alignment) for _ in modalities)
        self.fusion = nn.Parameter(torch.zeros(sizes.modalities))
        self.from_tokens = nn.ModuleList(nn.Linear(sizes.token_width, width, bias=False) for _ in modalities)
        self.from_fused = nn.Linear(sizes.dim + sizes.labels + 2, width)
        self.across_slices = nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False)
        nn.init.zeros_(self.across_slices.weight)
        self.across_slices.weight.data[:, :, 1] = 1
        self.from_raw = nn.Linear(sizes.modalities * (sizes.raw_width + 1), width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1 + sizes.labels))

    def standardise(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `(..., M, D)` in units of the support's mean and sd."""
        return (tokens.float() - self.token_mean) / self.token_sd

    def weights(self, present: torch.Tensor) -> torch.Tensor:
        """Fusion weights `(B, M)`: learned, 0 for a missing modality, summing to 1 over those present `(B, M)`."""
        return self.fusion.expand(present.shape).masked_fill(~present, -torch.inf).softmax(-1)

    def regions(self, tokens: torch.Tensor, aligned: torch.Tensor, texts: torch.Tensor, present: torch.Tensor
                ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Decoder input on the token grid `(B, Z, h, w, width)`, and each modality's embeddings `(B, Z, h, w, dim)`.

        tokens: `(B, Z, h, w, M, D)` standardised; aligned: the same with dim; texts: `(B, M, C, dim)`; present: `(B, M)` boolean.
        A modality that no patch has is not computed.
        """
        weights, embeddings, fused, similarity, direct = self.weights(present), {}, 0.0, 0.0, 0.0
        for m in torch.nonzero(present.any(0))[:, 0].tolist():
            embeddings[m] = z = self.projectors[m](tokens[..., m, :], aligned[..., m, :].float() if self.sizes.backbone_alignment else None)
            share = weights[:, m, None, None, None, None]
            fused = fused + share * z
            similarity = similarity + share * torch.einsum("bzhwd,bcd->bzhwc", z, texts[:, m])
            direct = direct + share * self.from_tokens[m](tokens[..., m, :])
        maps = self.from_fused(torch.cat([fused, similarity / self.sizes.tau / 4], dim=-1)) + direct
        return self._join_slices(maps), embeddings

    def _join_slices(self, maps: torch.Tensor) -> torch.Tensor:
        batch, _, height, width, channels = maps.shape
        columns = maps.permute(0, 2, 3, 4, 1).reshape(batch * height * width, channels, -1)
        return self.across_slices(columns).reshape(batch, height, width, channels, -1).permute(0, 4, 1, 2, 3)

    def upsample(self, maps: torch.Tensor) -> torch.Tensor:
        """`(N, h, w, width)` to `(N, H, W, width)`."""
        return functional.interpolate(maps.movedim(-1, 1), scale_factor=self.sizes.stride, mode="bilinear", align_corners=False).movedim(1, -1)

    def decode(self, maps: torch.Tensor, raw: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Logits `(N, 1 + K)` of voxels from upsampled maps `(N, width)`, raw features `(N, M, R)` and presence `(N, M)`."""
        flags = present[..., None].to(maps.dtype)
        return self.head(maps + self.from_raw(torch.cat([raw.to(maps.dtype) * flags, flags], dim=-1).flatten(1)))
