"""CoOp's classifier of positions in text space."""

from __future__ import annotations

import torch
from torch import nn


class Classifier(nn.Module):
    """Similarity of positions in text space to class vectors `(M, 1 + K, dim)`, averaged over modalities, with a scale for each and an offset."""

    def __init__(self, modalities: int, classes: int, key_width: int, tau: float):
        super().__init__()
        self.tau = tau
        self.register_buffer("vectors", torch.zeros(modalities, classes, key_width))
        self.log_scale = nn.Parameter(torch.zeros(modalities))
        self.offset = nn.Parameter(torch.zeros(classes))

    def forward(self, features: torch.Tensor, vectors: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `(N, 1 + K)` of features `(N, M, W)` as in `cellwise.PositionFeatures`."""
        vectors = self.vectors if vectors is None else vectors
        share = features[..., -1:] * self.log_scale.exp()[:, None]
        similarity = torch.einsum("nmd,mcd->nmc", features[..., :vectors.shape[-1]], vectors) / self.tau
        return (similarity * share).sum(1) / features[..., -1:].sum(1).clamp_min(1) + self.offset
