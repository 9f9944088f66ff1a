"""Random label slices in batches: oblique thick slabs through label volumes, with lesions of many sorts painted in.

Everything is torch on batches, so that making a batch costs less than learning from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.volumes import SPACING_MM

SLAB = 4  # sub-slices averaged into one thick slice
PIXEL_MM = (1.0, 2.0)
THICKNESS_MM = (1.0, 7.0)
BEND_MM = 4.0


@dataclass(frozen=True)
class Uniform:
    """Random numbers for a batch of `size`, all from one generator."""

    generator: torch.Generator
    size: int

    def __call__(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(self.size, *shape, generator=self.generator)

    def chance(self, probability: float) -> torch.Tensor:
        return torch.rand(self.size, generator=self.generator) < probability

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(self.size, *shape, generator=self.generator)

    def smooth(self, cells: int, height: int, width: int, channels: int = 1) -> torch.Tensor:
        """A smooth field `(size, channels, height, width)` of about unit sd with `cells` features across."""
        return functional.interpolate(1.3 * self.normal(channels, cells, cells), size=(height, width), mode="bicubic", align_corners=True)


def label_slabs(volumes: torch.Tensor, random: Uniform, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slabs `(B, SLAB, size, size)` of labels cut at random from `volumes` (N, X, Y, Z) uint8, their pixel size and which are axial.

    Mostly near-axial, some coronal and sagittal; rows may run either way, as nothing says how a volume was stored. Half are centred on a
    lesion where the volume has one.
    """
    batch = random.size
    chosen = torch.randint(len(volumes), (batch,), generator=random.generator)
    centre = torch.stack([_centre(volumes[index], random.generator) for index in chosen.tolist()])
    axes, axial = _orientations(random)
    pixel = random(*PIXEL_MM)
    step = random(*THICKNESS_MM) / SLAB
    ramp = torch.arange(size) - (size - 1) / 2
    bend = BEND_MM / pixel[:, None, None, None] * random.smooth(4, size, size, 2)
    row = ramp[None, :, None] + bend[:, 0]
    column = ramp[None, None, :] + bend[:, 1]
    depth = (torch.arange(SLAB) - (SLAB - 1) / 2)[None] * step[:, None]
    plane = pixel[:, None, None, None] * (row[..., None] * axes[:, None, None, 1] + column[..., None] * axes[:, None, None, 2])
    where = plane[:, None] + (depth[..., None] * axes[:, None, 0])[:, :, None, None]  # mm, (B, SLAB, size, size, 3)
    index = (where / SPACING_MM + centre[:, None, None, None]).round().long()
    shape = torch.tensor(volumes.shape[1:])
    inside = ((index >= 0) & (index < shape)).all(-1)
    index = torch.minimum(index.clamp_min(0), shape - 1)
    flat = ((chosen[:, None, None, None] * shape[0] + index[..., 0]) * shape[1] + index[..., 1]) * shape[2] + index[..., 2]
    return volumes.flatten()[flat].long() * inside, pixel, axial


def _centre(volume: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Voxel that the slice is centred on: anywhere in the head, or near the lesion."""
    shape = torch.tensor(volume.shape, dtype=torch.float32)
    low, high = torch.tensor([0.42, 0.4, 0.25]), torch.tensor([0.58, 0.6, 0.9])
    coin, place, pull = torch.rand(1, generator=generator), torch.rand(3, generator=generator), torch.rand(3, generator=generator)
    anywhere = shape * (low + (high - low) * place)
    if coin < 0.6:
        lesion = (volume[::3, ::3, ::3] >= c.NECROSIS).nonzero()
        if len(lesion):
            near = 3.0 * lesion[torch.randint(len(lesion), (1,), generator=generator)[0]]
            return near + 0.5 * pull * (anywhere - near)
    return anywhere


def _orientations(random: Uniform) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, 3, 3)` unit vectors (slice normal, row, column) in volume axes, and whether the slice is near-axial."""
    kind = torch.rand(random.size, generator=random.generator)
    normal_axis = torch.where(kind < 0.8, 2, torch.where(kind < 0.9, 1, 0))
    order = torch.tensor([[0, 2, 1], [1, 2, 0], [2, 1, 0]])[normal_axis]  # an axial slice shows anterior-posterior along rows
    axes = torch.eye(3)[order]
    swap = random.chance(0.6)  # the stages' arrays have left-right along rows
    axes = torch.where(swap[:, None, None], axes[:, [0, 2, 1]], axes)
    axes = axes * torch.where(random(0, 1, 3) < 0.5, -1.0, 1.0)[..., None]
    angles = torch.deg2rad(torch.stack([random(-15, 15), random(-15, 15), random(-25, 25)], 1))
    skew = torch.zeros(random.size, 3, 3)
    for (i, j), angle in zip(((0, 1), (0, 2), (1, 2)), angles.T, strict=True):
        skew[:, i, j], skew[:, j, i] = angle, -angle
    return torch.matrix_exp(skew) @ axes, normal_axis == 2


def paint_lesions(slabs: torch.Tensor, pixel: torch.Tensor, random: Uniform) -> torch.Tensor:
    """Slabs in which some brains without a lesion get one: infiltrating, ring-shaped, focal, multifocal or a cavity."""
    middle = slabs[:, SLAB // 2]
    tissue = (middle == c.GREY) | (middle == c.WHITE) | (middle == c.GLIOSIS)
    wanted = random.chance(0.7) & ~(middle >= c.NECROSIS).flatten(1).any(1) & (tissue.flatten(1).sum(1) > 200)
    kind = torch.rand(random.size, generator=random.generator)
    parts, soft = _fronts(tissue | ((middle >= c.CSF) & (middle <= c.VENTRICLE)), tissue, pixel, random, kind >= 0.75)
    inner, core = random(1.15, 1.7)[:, None, None], random(1.5, 2.5)[:, None, None]
    painted = middle.clone()
    spread = parts > 1

    def paint(where: torch.Tensor, rows: torch.Tensor, label: int) -> None:
        painted[where & rows[:, None, None]] = label

    glioma, ring, infiltrating, cavity, focal = ((kind >= low) & (kind < high) for low, high in pairwise((0.0, 0.25, 0.4, 0.7, 0.75, 1.0)))
    oedema = spread & ((middle == c.WHITE) | (middle == c.GLIOSIS) | (soft > 0.8))
    paint(oedema, glioma & wanted, c.OEDEMA)
    paint(spread & (parts > inner), glioma & wanted, c.ENHANCING)
    paint(spread & (parts > inner * core), glioma & wanted, c.NECROSIS)
    paint(spread, ring & wanted, c.ENHANCING)
    paint(spread & (parts > inner), ring & wanted, c.NECROSIS)
    paint(spread, infiltrating & wanted, c.SOLID)
    paint(spread & (parts > core * 1.3), infiltrating & wanted & random.chance(0.3), c.CAVITY)
    paint(spread & (middle == c.WHITE), focal & wanted, c.FOCAL)
    paint(spread, cavity & wanted, c.CAVITY)
    changed = painted != middle
    return torch.where(changed[:, None], painted[:, None], slabs)


def _fronts(brain, tissue, pixel, random: Uniform, many) -> tuple[torch.Tensor, torch.Tensor]:
    """A ragged bump `(B, size, size)` above 1 where a lesion reaches, zero outside the brain; and a smooth field of the same grid."""
    batch, size = random.size, tissue.shape[-1]
    score = torch.where(tissue.flatten(1), torch.rand(batch, size * size, generator=random.generator), torch.zeros(()))
    seeds = score.topk(8, dim=1).indices  # eight random brain pixels
    radius = torch.where(many, random(1.5, 5.0), torch.exp(random(1.6, 3.5)))  # mm, 5 to 33 for a single one
    used = torch.arange(8)[None] < torch.where(many, 1 + (random(0, 8)).long(), 1)[:, None]
    grid = torch.arange(size)
    dy = (grid[None, None] - (seeds // size)[..., None]) * pixel[:, None, None]
    dx = (grid[None, None] - (seeds % size)[..., None]) * pixel[:, None, None]
    each = radius[:, None] * torch.exp(0.3 * random.normal(8))
    stretch = torch.exp(random(-0.5, 0.5))[:, None, None]
    square = (dy * stretch)[..., :, None] ** 2 + (dx / stretch)[..., None, :] ** 2
    bump = torch.exp(0.7 * (1 - square / each[..., None, None] ** 2)) * used[..., None, None]
    soft = random.smooth(24, size, size)[:, 0]
    ragged = random(0.0, 0.6)[:, None, None] * random.smooth(9, size, size)[:, 0] + random(0.0, 0.3)[:, None, None] * soft
    return bump.amax(1) * torch.exp(ragged) * (brain & (tissue | (soft > 1.5))), soft
