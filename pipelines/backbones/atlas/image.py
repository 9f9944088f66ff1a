"""The image tower: a small U-shaped network over a slice and its two neighbours, whose decoder gives dense tokens at two scales."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

#: Intensities arrive with median 0 and robust sd 1 inside the head; what lies further out than this is fat or an artefact.
CLIP = 6.0
FINE_STRIDE, COARSE_STRIDE = 2, 8
STRIDES = {"fine": FINE_STRIDE, "coarse": COARSE_STRIDE}
#: The slice before, the slice itself and the one after.
NEIGHBOURS = 3
#: Height and width are padded to a multiple of the deepest stride.
DEEPEST_STRIDE = 16


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class Residual(nn.Module):
    """Pre-activation residual block of two 3 x 3 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            _norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            _norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class ImageEncoder(nn.Module):
    """Slices with their neighbours `(N, 3, H, W)` to `{"fine": (N, fine, H/2, W/2), "coarse": (N, coarse, H/8, W/8)}`.

    `forward` needs H and W to be multiples of 16, `encode` does not. `widths` are the channels at strides 2, 4, 8 and 16, `depths` the residual
    blocks there on the way down.
    """

    LAST_BLOCKS = r"(grow\.[12]|up\.[12]\.body\.[25]|fine\.2|coarse\.2)"  # of the decoder, which adapters may tune

    def __init__(self, widths: tuple[int, int, int, int], depths: tuple[int, int, int, int], fine: int, coarse: int, dim: int):
        super().__init__()
        w2, w4, w8, w16 = widths
        self.stem = nn.Sequential(nn.PixelUnshuffle(FINE_STRIDE), nn.Conv2d(NEIGHBOURS * FINE_STRIDE**2, w2, 3, padding=1))
        self.down = nn.ModuleList([nn.Sequential(*(Residual(width) for _ in range(depth))) for width, depth in zip(widths, depths, strict=True)])
        self.shrink = nn.ModuleList([nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)])
        self.grow = nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in ((w16, w8), (w8, w4), (w4, w2))])
        self.up = nn.ModuleList([Residual(width) for width in (w8, w4, w2)])
        self.fine = nn.Sequential(_norm(w2), nn.SiLU(), nn.Conv2d(w2, fine, 1))
        self.coarse = nn.Sequential(_norm(w8), nn.SiLU(), nn.Conv2d(w8, coarse, 1))
        self.aligner = nn.Sequential(nn.Conv2d(fine + coarse, 128, 1), nn.SiLU(), nn.Conv2d(128, dim, 1))

    def forward(self, slices: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(slices.clamp(-CLIP, CLIP) / 2)
        skips = []
        for depth, block in enumerate(self.down):
            x = block(x)
            if depth < len(self.shrink):
                skips.append(x)
                x = self.shrink[depth](x)
        tokens = {}
        for grow, block in zip(self.grow, self.up, strict=True):
            x = functional.interpolate(grow(x), scale_factor=2.0, mode="bilinear", align_corners=False) + skips.pop()
            x = block(x)
            if "coarse" not in tokens:  # the first decoder level has the coarse stride
                tokens["coarse"] = self.coarse(x)
        return {"fine": self.fine(x), "coarse": tokens["coarse"]}

    def encode(self, volume: torch.Tensor, chosen: slice) -> dict[str, torch.Tensor]:
        """Tokens of some slices of `(S, H, W)`, of any size: `(N, channels, ceil(H / stride), ceil(W / stride))`."""
        slices = self.with_neighbours(volume)[chosen]
        height, width = slices.shape[-2:]
        padded = functional.pad(slices, (0, -width % DEEPEST_STRIDE, 0, -height % DEEPEST_STRIDE))
        tokens = self(padded.to(memory_format=torch.channels_last))
        return {name: tokens[name][..., : -(-height // stride), : -(-width // stride)] for name, stride in STRIDES.items()}

    @staticmethod
    def with_neighbours(volume: torch.Tensor) -> torch.Tensor:
        """Slices `(S, H, W)` to `(S, 3, H, W)`; the first and the last stand in for the neighbour they lack."""
        return torch.stack([torch.cat([volume[:1], volume[:-1]]), volume, torch.cat([volume[1:], volume[-1:]])], dim=1)

    def align(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Both levels at the fine grid, in text space: `(N, dim, h, w)`, unit length."""
        return functional.normalize(self.aligner(self.joined(tokens)), dim=1)

    def joined(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Both levels at the fine grid, before they are aligned: `(N, fine + coarse, h, w)`."""
        fine = tokens["fine"]
        ratio = COARSE_STRIDE // FINE_STRIDE
        coarse = functional.interpolate(tokens["coarse"], scale_factor=float(ratio), mode="bilinear", align_corners=False)
        coarse = coarse[..., : fine.shape[-2], : fine.shape[-1]]  # a coarse token may reach beyond an image of odd size
        return torch.cat([fine, coarse], dim=1)
