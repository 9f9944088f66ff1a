"""Image towers block by block: dense tokens, and their way into text space without mixing over positions.

A model pools its patches before text sees them, so patches themselves were never compared with text. MaskCLIP's reading (Zhou et al. 2022,
arXiv 2112.01071): in the last attention let every patch attend to itself only, which leaves value and output projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class BlockTower:
    """What the families share. A family says how pixels become tokens, which norm reads them, and how they come to text space."""

    special = 0  # tokens before the first patch

    def __init__(self, layers: Sequence[nn.Module], patch: int, width: int, dim: int):
        self.layers, self.patch, self.width, self.dim, self.depth = layers, patch, width, dim, len(layers)

    def dense(self, pixels: torch.Tensor, blocks: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """See `pipelines.backbones.hub.dense.Tower`. Blocks are called one after another, not through hooks, which threads would share."""
        levels, after = [], self.embedded(pixels)
        for number, layer in enumerate(self.layers, start=1):
            before = after
            after = self.through(layer, before)
            if number in blocks:
                levels.append(self.norm_after(number)(after))
        rows = pixels.shape[-2] // self.patch
        maps = [tokens[:, self.special:].transpose(1, 2).unflatten(2, (rows, -1)) for tokens in (*levels, self.in_text_space(before, after))]
        return maps[:-1], maps[-1]

    def through(self, layer: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        return layer(tokens)

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels to the first block's input `(N, special + h * w, width)`, positions interpolated to the grid at hand."""
        raise NotImplementedError

    def norm_after(self, number: int) -> nn.Module:
        """The norm that reads what block `number` (1 is the first) gives."""
        raise NotImplementedError

    def in_text_space(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Tokens before and after the last block to `(N, tokens, dim)`, each token for itself."""
        raise NotImplementedError


def values_of(attention: nn.MultiheadAttention, tokens: torch.Tensor) -> torch.Tensor:
    """What torch's attention gives each of `tokens` that looks at itself only."""
    weight, bias = (part.chunk(3)[2] for part in (attention.in_proj_weight, attention.in_proj_bias))
    return attention.out_proj(functional.linear(tokens, weight, bias))


class _TransformersTower(BlockTower):
    """A model of `transformers`."""

    def __init__(self, model: nn.Module):
        self.model, self.vision = model, model.vision_model
        config = self.vision.config
        super().__init__(self.vision.encoder.layers, config.patch_size, config.hidden_size, config.hidden_size)

    def through(self, layer: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        return layer(tokens, attention_mask=None)

    def norm_after(self, number: int) -> nn.Module:
        return self.vision.post_layernorm if number == self.depth else self.layers[number].layer_norm1


class ClipTower(_TransformersTower):
    """CLIP and PubMedCLIP (`CLIPModel`). The class token keeps its own position, those of patches are interpolated (bicubic)."""

    special = 1

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.dim = model.config.projection_dim

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vision.pre_layrnorm(self.vision.embeddings(pixels, interpolate_pos_encoding=True))

    def in_text_space(self, before: torch.Tensor, _after: torch.Tensor) -> torch.Tensor:
        """Value and output projection of the last block, its residual and MLP left out, then what the class token would go through."""
        last = self.layers[-1]
        values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(before)))
        return self.model.visual_projection(self.vision.post_layernorm(values))


class SiglipTower(_TransformersTower):
    """SigLIP, MedSigLIP and the SigLIP 2 checkpoints of one resolution (`SiglipModel`): no class token, positions interpolated (bicubic)."""

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vision.embeddings(pixels, interpolate_pos_encoding=True)

    def in_text_space(self, _before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The attention-pooling head for each token alone: with one key its attention is 1 whatever the probe asks."""
        head = self.vision.head
        pooled = values_of(head.attention, self.vision.post_layernorm(after))
        return pooled + head.mlp(head.layernorm(pooled))


class NaflexTower(SiglipTower):
    """SigLIP 2 of any resolution (`Siglip2Model`), which takes an image as a list of patches and resizes positions itself (bilinear)."""

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = pixels.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch)).permute(0, 2, 4, 3, 5, 1)
        shapes = torch.tensor(patches.shape[1:3]).expand(len(pixels), 2)
        return self.vision.embeddings(patches.flatten(3).flatten(1, 2), shapes)


TOWERS = {"clip": ClipTower, "siglip": SiglipTower, "siglip2": NaflexTower}
