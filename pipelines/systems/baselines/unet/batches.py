"""Training patches for the U-Net: where they lie, and the augmentation, done on whole batches in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from pipelines.cohort import Case
from pipelines.systems.baselines.unet.params import Params

#: Control points of the elastic deformation along each edge of a patch.
ELASTIC_POINTS = 5


def channels_of(case: Case, modalities: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `(S, M, H, W)`, zero where a modality is missing, and which are there, `(M,)`."""
    empty = np.zeros(case.foreground().shape, np.float32)
    volumes = [case.image(modality) if modality in case.images else empty for modality in modalities]
    return torch.from_numpy(np.stack(volumes, axis=1)), torch.tensor([float(modality in case.images) for modality in modalities])


def with_context(images: torch.Tensor, slices: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Those slices with their neighbours (the outermost repeated), `(B, (1 + 2 neighbours) M, H, W)`, modality fastest."""
    offsets = torch.arange(-neighbours, neighbours + 1)
    chosen = (slices[:, None] + offsets).clamp(0, len(images) - 1)
    return images[chosen].flatten(1, 2)


def with_presence(images: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """A constant channel per modality that says whether it is there. `images` `(B, C, H, W)`, `present` `(B, M)`."""
    return torch.cat([images, present[:, :, None, None].expand(-1, -1, *images.shape[-2:])], dim=1)


class PatchSampler:
    """Draws augmented batches from support cases. Its randomness is torch's global generator, which the caller seeds."""

    def __init__(self, support: Sequence[Case], modalities: Sequence[str], params: Params):
        self.params, self.modalities = params, len(modalities)
        self.cases = []  # images and labels as the network will see them, and where its patches may lie
        for case in support:
            label = torch.from_numpy(case.label().astype(np.int64))
            classes = [torch.nonzero(label == value) for value in torch.unique(label) if value > 0]
            foreground = torch.nonzero(torch.from_numpy(case.foreground()))
            self.cases.append((*channels_of(case, modalities), label, classes, foreground))

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Input `(B, C, patch, patch)` and target `(B, 1, patch, patch)`."""
        images, labels, present = (list(values) for values in zip(*(self._patch() for _ in range(self.params.batch)), strict=True))
        return with_presence(torch.cat(images), torch.stack(present)), torch.cat(labels)

    def _patch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        volume, present, label, classes, foreground = self.cases[_integer(len(self.cases))]
        places = classes[_integer(len(classes))] if classes and torch.rand(()) < self.params.on_lesion else foreground
        z, row, column = places[_integer(len(places))].tolist()
        images = with_context(volume, torch.tensor([z]), self.params.neighbours)
        grid = self._grid(row, column, *images.shape[-2:])
        image = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        target = functional.grid_sample(label[None, None, z].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
        keep = self._kept(present)
        return self._appearance(image, keep), target, keep

    def _grid(self, row: int, column: int, height: int, width: int) -> torch.Tensor:
        """Sampling grid of a patch near (row, column): shifted by up to a quarter patch, rotated, scaled, mirrored."""
        params = self.params
        angle = math.radians(_uniform(-params.rotation_degrees, params.rotation_degrees))
        zoom = math.exp(_uniform(math.log(params.scale[0]), math.log(params.scale[1])))
        flips = [1.0 if torch.rand(()) < 0.5 else -1.0 for _ in range(2)]
        steps = torch.arange(params.patch) - (params.patch - 1) / 2
        down, right = torch.meshgrid(steps * flips[0] / zoom, steps * flips[1] / zoom, indexing="ij")
        y = row + _uniform(-0.25, 0.25) * params.patch + math.cos(angle) * down - math.sin(angle) * right
        x = column + _uniform(-0.25, 0.25) * params.patch + math.sin(angle) * down + math.cos(angle) * right
        if params.elastic:
            coarse = params.elastic * torch.randn(1, 2, ELASTIC_POINTS, ELASTIC_POINTS)
            down, right = functional.interpolate(coarse, size=(params.patch, params.patch), mode="bicubic", align_corners=True)[0]
            y, x = y + down, x + right
        return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)[None]

    def _kept(self, present: torch.Tensor) -> torch.Tensor:
        """Modalities left after dropout: at least one of those present."""
        kept = present * (torch.rand(len(present)) >= self.params.modality_dropout)
        return kept if kept.any() else present

    def _appearance(self, images: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Gamma, contrast, brightness and noise, each modality its own and the same for the neighbouring slices. Air (exactly 0) stays."""
        params, air = self.params, images == 0
        values = images.unflatten(1, (-1, self.modalities))
        low, high = values.amin((1, 3, 4), keepdim=True), values.amax((1, 3, 4), keepdim=True)
        unit = (values - low) / (high - low).clamp_min(1e-3)
        values = unit.clamp(0, 1) ** self._per_modality(*params.gamma) * (high - low) + low
        values = values * self._per_modality(*params.gain) + self._per_modality(-params.shift, params.shift)
        values = values + torch.randn(values.shape) * (torch.rand(()) * params.noise)
        return (values * keep[None, None, :, None, None]).flatten(1, 2).masked_fill(air, 0.0)

    def _per_modality(self, low: float, high: float) -> torch.Tensor:
        return torch.empty(1, 1, self.modalities, 1, 1).uniform_(low, high)


def _integer(below: int) -> int:
    return int(torch.randint(below, ()))


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))
