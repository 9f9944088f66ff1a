"""Support cases seen again as another patient on another scanner: moved, mirrored, with other contrast, and encoded anew.

Cached tokens cannot be turned or re-windowed, so a few augmented copies of some slices go through the frozen encoder once per fit. Ours.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from pipelines.cohort import Case
from pipelines.systems.protocol import Task
from pipelines.systems.semi.params import Params


def another_view(case: Case, task: Task, params: Params) -> Case:
    """`params.view_slices` neighbouring slices of `case`, varied, with tokens of their own. Randomness is torch's global generator."""
    window = _window(case, params.view_slices)
    foreground = torch.from_numpy(case.foreground()[window])
    grid = _grid(foreground.shape, params)
    head = _moved(foreground.float(), grid, "nearest") > 0
    images = {}
    for name in (name for name in task.modalities if name in case.images):
        varied = _other_contrast(torch.from_numpy(case.image(name)[window]), foreground, params)
        images[name] = np.where(head, _moved(varied, grid, "bilinear"), 0).astype(np.float32)
    label = _moved(torch.from_numpy(case.label()[window]).float(), grid, "nearest").astype(np.uint8)
    tokens = {name: task.backbone.encode_image(image, case.spacing_mm) for name, image in images.items() if name in case.tokens}
    return replace(case, images=images, brain=head.astype(np.uint8), dseg=label, tokens=tokens)


def _window(case: Case, length: int) -> slice:
    """Neighbouring slices round a labelled one where there is one."""
    total, labelled = len(case.foreground()), np.flatnonzero(case.label().any((1, 2)))
    centre = int(labelled[int(torch.randint(len(labelled), ()))]) if len(labelled) else int(torch.randint(total, ()))
    start = min(max(0, centre - length // 2), max(0, total - length))
    return slice(start, start + length)


def _grid(shape: tuple[int, ...], params: Params) -> torch.Tensor:
    """One sampling grid for all slices: mirrored, turned, scaled about the middle. `(1, H, W, 2)`."""
    _, height, width = shape
    angle = math.radians(params.view_degrees) * _symmetric()
    zoom = math.exp(math.log(params.view_zoom) * _symmetric())
    cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
    mirror_rows, mirror_columns = (1.0 if torch.rand(()) < 0.5 else -1.0 for _ in range(2))
    matrix = torch.tensor([[cosine * mirror_columns, sine * height / width, 0.0], [-sine * width / height, cosine * mirror_rows, 0.0]])
    return functional.affine_grid(matrix[None], [1, 1, height, width], align_corners=False)


def _moved(volume: torch.Tensor, grid: torch.Tensor, mode: str) -> np.ndarray:
    return functional.grid_sample(volume[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0].numpy()


def _other_contrast(image: torch.Tensor, foreground: torch.Tensor, params: Params) -> torch.Tensor:
    """Another gamma, gain and shift inside the head."""
    values = image[foreground]
    if not len(values):
        return image
    low, high = values.min(), values.max()
    span = (high - low).clamp_min(1e-3)
    gamma = math.exp(params.view_contrast * _symmetric())
    gain = math.exp(0.7 * params.view_contrast * _symmetric())
    shift = 0.7 * params.view_contrast * _symmetric()
    varied = ((image - low) / span).clamp(0, 1) ** gamma * span + low
    varied = (varied - varied[foreground].median() + values.median()) * gain + shift  # the standardised median stays near where it was
    return varied * foreground


def _symmetric() -> float:
    return float(2 * torch.rand(()) - 1)
