"""What a scanner and the resample stage make of ideal slices: bias field, blur, ghosts, noise, an imperfect mask, standardisation."""

from __future__ import annotations

import torch
from torch.nn import functional

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.slices import NEIGHBOURS, PARTS, Uniform


def scan(image: torch.Tensor, random: Uniform, bias: float) -> torch.Tensor:
    """`(B, NEIGHBOURS, H, W)` of grey levels as a scanner would give them; `bias` is the largest sd of the logarithm of the bias field."""
    height, width = image.shape[-2:]
    each = lambda values: values[:, None, None, None]  # noqa: E731
    image = image * torch.exp(each(random(0.0, bias)) * random.smooth(4, height, width))
    image = image ** each(random(0.75, 1.35))
    image = image + each(random(-0.06, 0.06)) * torch.sin(each(random(4.0, 9.0)) * image)  # a histogram that is not quite monotone
    image = _blur(image.clamp_min(0.0), random(0.2, 1.1), random(0.2, 1.1))
    ghost = torch.roll(image, int(torch.randint(height // 6, height // 2, (1,), generator=random.generator)), dims=2)
    image = image + each(random.chance(0.1) * random(0.0, 0.12)) * ghost
    noise = each(random(0.0, 1.0) ** 2 * 0.06)
    return torch.hypot(image + noise * random.normal(NEIGHBOURS, height, width), noise * random.normal(NEIGHBOURS, height, width))  # Rician


def _blur(image: torch.Tensor, down: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with a sigma (pixels) per image and direction."""
    taps = torch.arange(-2, 3.0)
    kernels = [torch.exp(-0.5 * (taps / sigma[:, None]) ** 2) for sigma in (down, along)]
    down, along = (torch.repeat_interleave(kernel / kernel.sum(1, keepdim=True), NEIGHBOURS, 0)[:, None] for kernel in kernels)
    planes = functional.pad(image.flatten(0, 1)[None], (2, 2, 2, 2), mode="replicate")
    planes = functional.conv2d(planes, down[..., None], groups=planes.shape[1])
    return functional.conv2d(planes, along[:, :, None], groups=planes.shape[1])[0].view_as(image)


def mask(labels: torch.Tensor, random: Uniform) -> torch.Tensor:
    """Foreground `(B, NEIGHBOURS, H, W)`: the head, for a quarter of the images the brain alone, with an edge that is never quite right."""
    head = labels != c.AIR
    brain = torch.isin(labels, torch.tensor(c.INTRACRANIAL))
    inside = torch.where(random.chance(0.25)[:, None, None, None], brain, head).unflatten(1, (NEIGHBOURS, PARTS)).float().mean(2)
    inside = functional.avg_pool2d(inside, 5, stride=1, padding=2)
    edge = random(0.15, 0.75)[:, None, None, None] + 0.1 * random.smooth(12, *labels.shape[-2:])
    return (inside > edge.clamp(0.05, 0.95)) | random.chance(0.05)[:, None, None, None]


def standardise(image: torch.Tensor, mask: torch.Tensor, random: Uniform) -> torch.Tensor:
    """Median 0 and robust sd 1 inside the mask, 0 outside; jittered, because the stage takes both from the volume and not from three slices."""
    inside = torch.where(mask, image, torch.nan).flatten(1)
    low, middle, high = torch.nanquantile(inside[:, ::7], torch.tensor([0.25, 0.5, 0.75]), dim=1).nan_to_num()[..., None, None, None]
    spread = ((high - low) / 1.349).clamp_min(0.02)
    middle = middle + 0.3 * spread * random.normal(1, 1, 1)
    spread = spread * torch.exp(0.25 * random.normal(1, 1, 1))
    return torch.where(mask, (image - middle) / spread, 0.0)


def missing_neighbours(image: torch.Tensor, random: Uniform) -> torch.Tensor:
    """The first and the last slice of a volume have a neighbour on one side only; the slice itself stands in for the other."""
    before, middle, after = image.unbind(1)
    before = torch.where(random.chance(0.1)[:, None, None], middle, before)
    after = torch.where(random.chance(0.1)[:, None, None], middle, after)
    return torch.stack([before, middle, after], 1)
