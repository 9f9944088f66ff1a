"""Slices as the transformer sees them: the head fills a square of its size, whatever grid it came on."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from pipelines.cohort import Case

#: The square is this much larger than the head.
MARGIN = 1.04


def framed(images: torch.Tensor, centre: torch.Tensor, half: torch.Tensor, size: int, mode: str = "bilinear") -> torch.Tensor:
    """`(N, C, H, W)` cut out around `centre` `(N, 2)`, `half` `(N, 2)` pixels (row, column) to either side, as `(N, C, size, size)`."""
    extent = torch.tensor(images.shape[-2:], dtype=torch.float32)
    ramp = (torch.arange(size) + 0.5) / size * 2 - 1
    rows, columns = ((2 * (centre[:, axis, None] + half[:, axis, None] * ramp) + 1) / extent[axis] - 1 for axis in (0, 1))
    grid = torch.stack([columns[:, None].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], -1)
    return functional.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def box_of(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre and half-width (row, column), in pixels, of the box around each of `(N, H, W)` masks; the whole image where a mask is empty."""
    centres, halves = [], []
    for axis in (2, 1):  # any over columns gives rows, and the other way round
        filled = masks.any(axis)
        filled = filled | ~filled.any(1, keepdim=True)
        first = filled.float().argmax(1)
        last = filled.shape[1] - 1 - filled.flip(1).float().argmax(1)
        centres.append((first + last) / 2)
        halves.append((last - first + 1) / 2)
    return torch.stack(centres, 1), torch.stack(halves, 1)


def slices_of(case: Case, modality: str, count: int, size: int) -> torch.Tensor:
    """`count` slices of an image, evenly over the extent of the head, `(count, size, size)` float32; the head's proportions are kept."""
    foreground = case.foreground()
    filled = np.flatnonzero(foreground.any((1, 2))) if foreground.any() else np.arange(len(foreground))
    chosen = filled[((np.arange(count) + 0.5) / count * len(filled)).astype(int)]
    centre, half = box_of(torch.from_numpy(foreground.any(0))[None])
    pixel = torch.tensor(case.spacing_mm[1:])
    side_mm = (half[0] * pixel).max() * MARGIN
    image = torch.from_numpy(case.image(modality)[chosen])[:, None]
    return framed(image, centre.expand(count, -1), (side_mm / pixel).expand(count, -1), size)[:, 0]
