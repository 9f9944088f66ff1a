"""Lesions of many families painted into label slabs: infiltrating, ring-shaped, focal, multifocal, territorial, cavities."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.slices import NEIGHBOURS, PARTS, Slabs, Uniform

MOST_FOCI = 6


@dataclass(frozen=True)
class Families:
    """How many lesions of which sort are painted, and how large."""

    painted: float = 0.6  # share of the slices without a lesion that get one
    #: Upper ends of the shares of: glioma with oedema, ring, infiltrating, cavity, focal, infarct.
    ends: tuple[float, ...] = (0.0, 0.22, 0.32, 0.62, 0.67, 0.88, 1.0)
    log_mm: tuple[float, float] = (1.6, 3.6)  # radius of a single lesion
    log_mm_infiltrating: tuple[float, float] | None = None  # of an infiltrating one, where it differs
    effaced: float = 0.0  # share of the single lesions that also fill the sulci between what they fill


MODERATE = Families()
#: What large lower-grade gliomas are like: mostly infiltrating, through cortex and white matter up to the surface of the brain.
LARGE = Families(painted=0.75, ends=(0.0, 0.15, 0.22, 0.70, 0.74, 0.88, 1.0), log_mm=(1.6, 3.75), log_mm_infiltrating=(2.3, 3.8), effaced=0.6)


@dataclass(frozen=True)
class Painted:
    """Labels after painting, and how a painted lesion fades into the tissue under it."""

    labels: torch.Tensor  # (B, D, H, W)
    tissue: torch.Tensor  # (B, D, H, W), what was there before
    share: torch.Tensor  # (B, D, H, W), of the lesion in each voxel, 0 to 1; 0.5 at its border
    outermost: torch.Tensor  # (B,), label of the lesion's outer part


def paint_lesions(slabs: Slabs, random: Uniform, sorts: Families = LARGE) -> Painted:
    """Some brains without a lesion get one."""
    labels = slabs.labels
    tissue = (labels == c.GREY) | (labels == c.WHITE) | (labels == c.GLIOSIS)
    fluid = (labels == c.CSF) | (labels == c.VENTRICLE)
    middle = PARTS * (NEIGHBOURS // 2)
    has_one = torch.isin(labels, torch.tensor(c.LESIONS)).flatten(1).any(1)
    wanted = random.chance(sorts.painted) & ~has_one & (tissue[:, middle].flatten(1).sum(1) > 200)
    kind = torch.rand(random.size, generator=random.generator)
    families = [wanted & (kind >= low) & (kind < high) for low, high in pairwise(sorts.ends)]
    glioma, ring, infiltrating, cavity, focal, infarct = families
    soft = random.smooth(24, *labels.shape[-2:])
    front = _front(slabs, tissue[:, middle], random, sorts, families) * torch.exp(_raggedness(soft, random))
    covered = tissue | (fluid & (soft > 1.5))
    if sorts.effaced:
        covered |= (labels == c.CSF) & (random.chance(sorts.effaced) & ~focal)[:, None, None, None]
    front = front * covered * wanted[:, None, None, None]
    inner, core = (random(low, high)[:, None, None, None] for low, high in ((1.15, 1.7), (1.5, 2.5)))
    white = (labels == c.WHITE) | (labels == c.GLIOSIS)
    painted = labels.clone()

    def paint(where: torch.Tensor, rows: torch.Tensor, label: int) -> None:
        painted[where & rows[:, None, None, None]] = label

    spread = front > 1
    paint(spread & (white | (soft > 0.8)), glioma, c.OEDEMA)
    paint(spread & (front > inner), glioma, c.ENHANCING)
    paint(spread & (front > inner * core), glioma, c.NECROSIS)
    paint(spread, ring, c.ENHANCING)
    paint(spread & (front > inner), ring, c.NECROSIS)
    paint(spread, infiltrating, c.SOLID)
    paint(spread & (front > core * 1.3), infiltrating & random.chance(0.25), c.CAVITY)
    paint(spread, cavity, c.CAVITY)
    paint(spread & white, focal, c.FOCAL)
    paint(spread, infarct, c.INFARCT)
    outermost = (torch.stack(families).int() * torch.tensor([c.OEDEMA, c.ENHANCING, c.SOLID, c.CAVITY, c.FOCAL, c.INFARCT])[:, None]).sum(0)
    blur = torch.where(infiltrating, random(0.05, 0.7), random(0.02, 0.25))[:, None, None, None]
    # a voxel that kept its label although the front passed it (cortex in oedema) shows none of the lesion
    kept = spread & (painted == labels)
    return Painted(painted, labels, (((front - 1) / blur + 0.5).clamp(0, 1) * ~kept), outermost)


def _raggedness(soft: torch.Tensor, random: Uniform) -> torch.Tensor:
    coarse = random.smooth(9, *soft.shape[-2:])
    return random(0.0, 0.5)[:, None, None, None] * coarse + random(0.0, 0.25)[:, None, None, None] * soft


def _front(slabs: Slabs, tissue: torch.Tensor, random: Uniform, sorts: Families, families: list[torch.Tensor]) -> torch.Tensor:
    """A bump `(B, D, H, W)` that is above 1 where a lesion reaches: an ellipsoid, several small ones, or a wedge towards the middle."""
    batch, size = random.size, tissue.shape[-1]
    _, _, infiltrating, _, many, sector = families
    score = torch.where(tissue.flatten(1), torch.rand(batch, size * size, generator=random.generator), torch.zeros(()))
    seeds = score.topk(MOST_FOCI, dim=1).indices  # random brain pixels
    radius = torch.where(many, random(1.5, 6.0), torch.exp(random(*sorts.log_mm)))  # mm
    radius = torch.where(sector, random(20, 50), radius)
    if sorts.log_mm_infiltrating:
        radius = torch.where(infiltrating, torch.exp(random(*sorts.log_mm_infiltrating)), radius)
    radius = radius[:, None] * torch.exp(0.3 * random.normal(MOST_FOCI))
    count = torch.where(many, 1 + random(0, MOST_FOCI).long(), 1)
    stretch, lift = torch.exp(random(-0.4, 0.4)), random(-0.7, 0.7, MOST_FOCI)
    grid = torch.arange(size)
    bump = torch.zeros(slabs.labels.shape)
    for focus in range(MOST_FOCI):
        rows = (count > focus).nonzero()[:, 0]
        seed, reach, pixel = seeds[rows, focus], radius[rows, focus, None], slabs.pixel_mm[rows, None]
        down = ((grid - (seed // size)[:, None]) * pixel * stretch[rows, None] / reach) ** 2
        along = ((grid - (seed % size)[:, None]) * pixel / stretch[rows, None] / reach) ** 2
        deep = (slabs.depth_mm[rows] / reach + lift[rows, focus, None]) ** 2
        each = torch.exp(0.7 * (1 - deep[:, :, None, None] - down[:, None, :, None] - along[:, None, None, :]))
        bump[rows] = torch.maximum(bump[rows], each)
    return bump * torch.where(sector[:, None, None], _wedge(seeds[:, 0], size, random), 1.0)[:, None]


def _wedge(seed: torch.Tensor, size: int, random: Uniform) -> torch.Tensor:
    """`(B, size, size)`: about 1.2 within an angle seen from the middle of the image, falling steeply at its sides."""
    ramp = torch.arange(size) - (size - 1) / 2
    angle = torch.atan2(ramp[:, None].expand(size, size), ramp[None].expand(size, size))
    towards = torch.atan2(ramp[seed // size], ramp[seed % size])
    apart = torch.remainder(angle - towards[:, None, None] + torch.pi, 2 * torch.pi) - torch.pi
    return 1.2 * torch.sigmoid(12 * (random(0.25, 0.8)[:, None, None] - apart.abs()))
