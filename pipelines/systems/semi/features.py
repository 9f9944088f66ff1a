"""A case as SEMI sees it: tokens of every modality on one grid, filtered intensities, and the class of every region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from pipelines.cohort import Case
from pipelines.systems.filters import derivatives, gaussian, head_box
from pipelines.systems.protocol import Task
from pipelines.systems.semi.params import Params

Box = tuple[slice, slice, slice]
Levels = Mapping[str, np.ndarray | torch.Tensor]
#: Of a token channel; a constant one is left where it is.
SMALLEST_SD = 1e-3


@dataclass(frozen=True)
class View:
    """A case cropped to the head. Half precision where it is large; the grid has `stride` pixels a token."""

    present: torch.Tensor  # (M,) bool
    tokens: torch.Tensor  # (S, h, w, M, D), zeros where the modality is missing
    raw: torch.Tensor  # (S, H, W, M, R), H = stride * h
    mean: torch.Tensor  # (M, D), of the tokens inside the head
    sd: torch.Tensor  # (M, D)
    box: Box  # where the crop lies in the case; reaches beyond it when its size is no multiple of the stride


def raw_width(params: Params) -> int:
    """Raw-intensity features per modality, R."""
    return 1 + 2 * len(params.sigmas) + int(params.asymmetry)


def view_of(case: Case, task: Task, params: Params) -> View:
    """Everything of a case that does not depend on trained weights."""
    stride = params.grid_stride
    box = _on_grid(head_box(case.foreground()), case.foreground().shape, stride)
    tokens, raw = [], []
    for modality in task.modalities:
        if modality in case.images and modality in case.tokens:
            tokens.append(on_grid(case.token_levels(modality), task, stride, box))
            raw.append(_raw_features(case, modality, box, params))
        else:
            tokens.append(None)
            raw.append(None)
    grid = _stack(tokens)
    head = functional.avg_pool2d(torch.from_numpy(_padded(case.foreground(), box)).float(), stride) > 0.5
    sd, mean = torch.std_mean(grid[head if head.any() else ~head].float(), 0, correction=0)
    return View(torch.tensor([value is not None for value in tokens]), grid, _stack(raw), mean, sd.clamp_min(SMALLEST_SD), box)


def alignment_pairs(case: Case, modality: str, task: Task, stride: int, slices: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `(N, D)` and the backbone's own alignment of them `(N, dim)`, from a few evenly spaced slices of one image."""
    levels = case.token_levels(modality)
    count = len(next(iter(levels.values())))
    chosen = np.unique(np.linspace(0, count - 1, slices + 2).round().astype(int)[1:-1])
    levels = {name: np.asarray(values)[chosen] for name, values in levels.items()}
    finest = min(own for _, own in task.backbone.levels.values())
    rows, columns = (-(-size // stride) for size in case.foreground().shape[1:])
    cells = (slice(None), slice(rows), slice(columns))
    aligned = _to_grid(np.moveaxis(task.backbone.align(levels), -1, 1), finest, stride, cells)
    tokens = _one_grid(levels, task, stride, cells)
    return tokens.flatten(0, 2), functional.normalize(aligned, dim=-1).flatten(0, 2)


def on_grid(levels: Levels, task: Task, stride: int, box: Box) -> torch.Tensor:
    """All levels of some slices at the grid of `stride`, cropped to `box` and concatenated, `(S, h, w, D)`."""
    return _one_grid(levels, task, stride, (slice(None), *(slice(part.start // stride, part.stop // stride) for part in box[1:])))


def region_classes(case: Case, box: Box, labels: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Label of every voxel of the crop `(S, H, W)`, and the majority class of every token `(S, h, w)` in the order of `class_names`."""
    label = torch.from_numpy(_padded(case.label(), box).astype(np.int64))
    foreground = torch.from_numpy(_padded(case.foreground(), box))
    voxel_class = torch.where(label > 0, label - 1, torch.where(foreground, labels, labels + 1))
    shares = functional.avg_pool2d(functional.one_hot(voxel_class, labels + 2).movedim(-1, 1).float(), stride)
    return label, shares.argmax(1)


def tokens_near(foreground: np.ndarray, view: View, stride: int) -> torch.Tensor:
    """Tokens `(S, h, w)` that some foreground voxel's logits depend on: their own, the next ones in plane and across slices."""
    inside = torch.from_numpy(_padded(foreground, view.box)).float()
    cells = functional.max_pool2d(inside[:, None], stride)[:, 0]
    return functional.max_pool3d(cells[None], 3, stride=1, padding=1)[0] > 0


def _on_grid(box: Box, shape: tuple[int, ...], stride: int) -> Box:
    """The box grown to whole tokens."""
    parts = [slice(*part.indices(size)) for part, size in zip(box, shape, strict=True)]
    grown = [slice(part.start // stride * stride, -(-part.stop // stride) * stride) for part in parts[1:]]
    return parts[0], grown[0], grown[1]


def _one_grid(levels: Levels, task: Task, stride: int, cells: Box) -> torch.Tensor:
    """All levels at the grid of `stride`, cropped to `cells` and concatenated, `(S, h, w, D)`."""
    return torch.cat([_to_grid(levels[name], own, stride, cells) for name, (_, own) in task.backbone.levels.items()], dim=-1).half()


def _to_grid(level: np.ndarray | torch.Tensor, own: int, stride: int, cells: Box) -> torch.Tensor:
    """`(S, C, h, w)` of stride `own` to `cells` of the grid of `stride`, channels last: interpolated when coarser, averaged when finer."""
    values = torch.as_tensor(level).float()
    if own > stride:
        values = functional.interpolate(values, scale_factor=own // stride, mode="bilinear", align_corners=False)
    elif own < stride:
        values = functional.avg_pool2d(values, stride // own, ceil_mode=True, count_include_pad=False)
    return values.movedim(1, -1)[cells]


def _stack(values: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """`(..., C)` of each modality to `(..., M, C)`, zeros for a missing one; width 0 when none was asked for."""
    known = [value for value in values if value is not None]
    if not known:
        return torch.zeros(0)
    return torch.stack([torch.zeros_like(known[0]) if value is None else value for value in values], dim=-2)


def _padded(volume: np.ndarray, box: Box) -> np.ndarray:
    """The box of a volume, with zeros where the box reaches beyond it."""
    beyond = [(0, max(0, part.stop - size)) for part, size in zip(box, volume.shape, strict=True)]
    return np.pad(volume, beyond)[box]


def _raw_features(case: Case, modality: str, box: Box, params: Params) -> torch.Tensor:
    """Intensity, smoothed intensities, gradient magnitudes and left-right difference, `(S, H, W, R)`."""
    image = _padded(case.image(modality), box)
    smooth = [gaussian(image, sigma) for sigma in params.sigmas]
    edges = [sigma * np.hypot(*derivatives(value)[:2]) for sigma, value in zip(params.sigmas, smooth, strict=True)]
    features = [image, *smooth, *edges]
    if params.asymmetry:
        features.append(_left_right(smooth[len(smooth) // 2] if smooth else image, case, box))
    return torch.from_numpy(np.stack(features, axis=-1)).half()


def _left_right(image: np.ndarray, case: Case, box: Box) -> np.ndarray:
    """Difference from the mirrored half. Arrays are RAS+, so rows run left to right unless slices themselves do (sagittal)."""
    if case.slice_axis == 0:
        return np.zeros_like(image)
    foreground = _padded(case.foreground(), box)
    middle = (np.arange(image.shape[1]) * foreground.sum((0, 2))).sum() / max(1, foreground.sum())
    mirrored = np.clip(np.rint(2 * middle - np.arange(image.shape[1])).astype(int), 0, image.shape[1] - 1)
    return np.where(foreground, image - image[:, mirrored], 0).astype(np.float32)
