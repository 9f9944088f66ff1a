"""The network of HeMIS-style fusion: a branch per modality, the mean and variance over those present, and a network on these alone."""

from __future__ import annotations

import torch
from torch import nn

from pipelines.systems.baselines.hemis.params import Params
from pipelines.systems.lean import load_monai


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.InstanceNorm2d(outputs), nn.PReLU())


class Hemis(nn.Module):
    """Input as the U-Net's: images with neighbouring slices, modality fastest, then a constant flag per modality, `(B, (2 + 2 n) M, H, W)`."""

    def __init__(self, modalities: int, classes: int, params: Params):
        super().__init__()
        load_monai()
        from monai.networks.nets import UNet

        slices = 1 + 2 * params.neighbours
        self.modalities = modalities
        self.branches = nn.ModuleList(nn.Sequential(_layer(slices, params.branch), _layer(params.branch, params.branch)) for _ in range(modalities))
        self.joined = UNet(2, 2 * params.branch, classes, params.channels, (2,) * (len(params.channels) - 1), num_res_units=params.residual_units)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits `(B, classes, H, W)`."""
        images = inputs[:, :-self.modalities].unflatten(1, (-1, self.modalities))
        present = inputs[:, -self.modalities:, :1, :1].unsqueeze(2)  # (B, M, 1, 1, 1)
        maps = torch.stack([branch(images[:, :, m]) for m, branch in enumerate(self.branches)], dim=1)
        count = present.sum(1).clamp_min(1)
        mean = (maps * present).sum(1) / count
        variance = ((maps - mean[:, None]) ** 2 * present).sum(1) / count  # 0 where one modality is left, as in the paper
        return self.joined(torch.cat([mean, variance], dim=1))
