"""The small vision transformer: pre-norm blocks over the patches of one slice and a class token (Dosovitskiy et al., ICLR 2021).

Its patches are embedded by the frozen Atlas. With one convolution, as in the paper, 1500 steps did not take it far beyond the labels' frequencies,
and its class token did not know on which side a lesion was; with three (`Convolutions`) 450 steps were little better.

Further tokens may be appended behind the patches, after the position embedding and before the first block: what another modality has to say.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from pipelines.backbones.atlas.image import COARSE_STRIDE, FINE_STRIDE, NEIGHBOURS
from pipelines.backbones.vit.config import VitConfig

#: Intensities arrive with median 0 and robust sd 1 inside the head; what lies further out is fat or an artefact.
CLIP = 6.0


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The two layers of a block that adapters wrap."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.attention, self.mlp = Attention(config.dim, config.heads), Mlp(config.dim, config.mlp * config.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Convolutions(nn.Module):
    """Slices embedded by three convolutions (Xiao et al., NeurIPS 2021). It has no part that is frozen."""

    def __init__(self, config: VitConfig):
        super().__init__()
        widths, last = (config.dim // 4, config.dim // 2), config.patch // 4
        self.body = nn.Sequential(nn.Conv2d(1, widths[0], 3, stride=2, padding=1), nn.GroupNorm(1, widths[0]), nn.GELU(),
                                  nn.Conv2d(*widths, 3, stride=2, padding=1), nn.GroupNorm(1, widths[1]), nn.GELU(),
                                  nn.Conv2d(widths[1], config.dim, last, stride=last))

    def features(self, slices: torch.Tensor) -> torch.Tensor:
        return slices[:, None].clamp(-CLIP, CLIP) / 2

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.body(features)


class FrozenAtlas(nn.Module):
    """Slices embedded by the tokens of the frozen Atlas: a hybrid of a convolutional network and a transformer, as the ViT paper has one.

    Of the fine tokens the largest, smallest and mean values go with each coarse one: rims are told from solid lesions in 95 % of cases by fine
    tokens, in 86 % by coarse ones (linear probe of the simulated pairs, each half of the head pooled alike).
    """

    POOLED = 3

    def __init__(self, config: VitConfig, tower: nn.Module):
        super().__init__()
        self.tower = tower.requires_grad_(False)
        side, channels = config.patch // COARSE_STRIDE, tower.coarse[-1].out_channels + self.POOLED * tower.fine[-1].out_channels
        self.body = nn.Sequential(nn.PixelUnshuffle(side), nn.Conv2d(channels * side**2, config.dim, 1))

    def features(self, slices: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            tokens, step = self.tower(slices[:, None].expand(-1, NEIGHBOURS, -1, -1)), COARSE_STRIDE // FINE_STRIDE
            fine = tokens["fine"]
            pooled = functional.max_pool2d(fine, step), -functional.max_pool2d(-fine, step), functional.avg_pool2d(fine, step)
            return torch.cat([tokens["coarse"], *pooled], 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.body(features)


class Vit(nn.Module):
    """Slices `(N, size, size)` to their tokens. `targets`: the names that the layers adapters wrap end with."""

    targets = ("mlp.fc1", "mlp.fc2")

    def __init__(self, config: VitConfig, atlas: nn.Module | None = None):
        """`atlas`: the image tower that the stem "atlas" wants."""
        super().__init__()
        self.config, self.size, self.dim = config, config.size, config.dim
        self.stem = FrozenAtlas(config, atlas) if config.stem == "atlas" else Convolutions(config)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, config.dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + (config.size // config.patch) ** 2, config.dim))
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.dim)

    def begin(self, features: torch.Tensor) -> torch.Tensor:
        """`(N, 1 + patches, dim)`: what enters the first block, of the stem's `features`. The class token is the first."""
        patches = self.stem(features).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(patches), -1, -1), patches], 1) + self.position

    def embed(self, slices: torch.Tensor) -> torch.Tensor:
        """`begin` of slices `(N, size, size)`: all that a frozen network computes before adapters have a say, so it can be kept."""
        return self.begin(self.stem.features(slices))

    def forward(self, tokens: torch.Tensor, further: torch.Tensor | None = None) -> torch.Tensor:
        """`(N, 1 + patches + K, dim)` of `embed`'s tokens. `further`: `(N, K, dim)`, appended before the first block."""
        x = tokens if further is None else torch.cat([tokens, further], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
