"""A published ViT, read by transformers, with the interface of the project's own.

Slices have median 0 and robust sd 1 inside the head, and photographs that such models learned from enter them normalised to about 0 +- 1, so a slice
enters as it is (clipped and halved, as it enters ours), the same in each of the three colours.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipelines.backbones.vit.model import CLIP


class PublishedVit(nn.Module):
    """A `transformers.ViTModel`; its weights stay where they are."""

    targets = ("mlp.fc1", "mlp.fc2")

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.size, self.dim = model, model.config.image_size, model.config.hidden_size

    @classmethod
    def load(cls, folder: Path) -> PublishedVit:
        """Read a checkpoint from disk; nothing is downloaded."""
        from transformers import ViTModel

        return cls(ViTModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False))

    def embed(self, slices: torch.Tensor) -> torch.Tensor:
        colours = self.model.config.num_channels
        return self.model.embeddings((slices[:, None].clamp(-CLIP, CLIP) / 2).expand(-1, colours, -1, -1))

    def forward(self, tokens: torch.Tensor, further: torch.Tensor | None = None) -> torch.Tensor:
        x = tokens if further is None else torch.cat([tokens, further], 1)
        for layer in self.model.layers:
            x = layer(x)
        return self.model.layernorm(x)
