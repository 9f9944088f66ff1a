"""Random label slices in batches: three neighbouring oblique thick slices cut through label volumes.

Everything is torch on batches, so that making a batch costs less than learning from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.image import NEIGHBOURS
from pipelines.backbones.atlas.volumes import SPACING_MM

PARTS = 2  # sub-slices averaged into one thick slice
PIXEL_MM = (0.9, 2.0)
THICKNESS_MM = (1.0, 7.0)
#: Smooth displacement on top of each head's own shape: (features across, mm).
BENDS = ((4, 3.5), (14, 0.8))


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


@dataclass(frozen=True)
class Anatomy:
    """The label volumes `(N, X, Y, Z)` uint8 that slices are cut from, and the part of the brain at each of their voxels `(X, Y, Z)`."""

    volumes: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class Slabs:
    """Labels `(B, NEIGHBOURS * PARTS, H, W)` in order of depth, and what is known of them."""

    labels: torch.Tensor
    depth_mm: torch.Tensor  # (B, NEIGHBOURS * PARTS), of each sub-slice from the middle
    pixel_mm: torch.Tensor  # (B,)
    place: torch.Tensor  # (B, H, W), part of the brain, at the middle
    side: torch.Tensor  # (B, H, W), 1 where rows are few ("left": arrays are stored right-anterior-superior), 2 where many, 0 unknown


def label_slabs(anatomy: Anatomy, random: Uniform, size: int, healthy: float = 0.0) -> Slabs:
    """Slices cut at random. Mostly near-axial and stored as the stages store them; some coronal, sagittal, mirrored or transposed.

    Half are of heads with a glioma, of which a share `healthy` is exchanged for the same heads without.
    """
    volumes = anatomy.volumes
    chosen = torch.randint(len(volumes), (random.size,), generator=random.generator)
    if healthy:
        chosen = torch.where(random.chance(healthy), chosen - chosen % 2, chosen)  # each head comes first without
    centre = torch.stack([_centre(volumes[index], random.generator) for index in chosen.tolist()])
    axes, sideways = _orientations(random)
    pixel = random(*PIXEL_MM)
    depth = _depths(random)
    plane = _plane(axes, pixel, random, size)
    where = plane[:, None] + (depth[..., None] * axes[:, None, 0])[:, :, None, None]  # mm, (B, depths, size, size, 3)
    index = (where / SPACING_MM + centre[:, None, None, None]).round_().int()
    shape = torch.tensor(volumes.shape[1:], dtype=torch.int32)
    inside = ((index >= 0) & (index < shape)).all(-1)
    index = torch.minimum(index.clamp_min_(0), shape - 1)
    voxel = ((index[..., 0] * int(shape[1])) + index[..., 1]) * int(shape[2]) + index[..., 2]
    flat = voxel + (chosen * int(shape.prod()))[:, None, None, None]
    labels = volumes.flatten()[flat].long() * inside
    middle = PARTS * (NEIGHBOURS // 2)
    across = (index[:, middle, ..., 0] - (int(shape[0]) - 1) / 2) * sideways[:, None, None]  # in voxels from the middle plane
    side = torch.where(across < -3, 1, torch.where(across > 3, 2, 0)) * (sideways != 0)[:, None, None]
    return Slabs(labels, depth, pixel, anatomy.places.flatten()[voxel[:, middle]].long(), side)


def _plane(axes: torch.Tensor, pixel: torch.Tensor, random: Uniform, size: int) -> torch.Tensor:
    """Where the pixels of the middle slice lie, mm from its centre, bent: `(B, size, size, 3)`."""
    ramp = torch.arange(size) - (size - 1) / 2
    bend = sum(mm * random.smooth(cells, size, size, 2) for cells, mm in BENDS) * random(0.3, 1.2)[:, None, None, None]
    row = pixel[:, None, None] * ramp[None, :, None] + bend[:, 0]
    column = pixel[:, None, None] * ramp[None, None, :] + bend[:, 1]
    return row[..., None] * axes[:, None, None, 1] + column[..., None] * axes[:, None, None, 2]


def _depths(random: Uniform) -> torch.Tensor:
    """Depth of every sub-slice, mm `(B, NEIGHBOURS * PARTS)`: slices with a gap of up to a third of their thickness."""
    thick = random(*THICKNESS_MM)
    slices = (torch.arange(NEIGHBOURS) - NEIGHBOURS // 2) * (thick * random(1.0, 1.3))[:, None]
    parts = ((torch.arange(PARTS) + 0.5) / PARTS - 0.5) * thick[:, None]
    return (slices[..., None] + parts[:, None]).flatten(1)


def _centre(volume: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Voxel that the slice is centred on: anywhere in the head, or near the lesion."""
    shape = torch.tensor(volume.shape, dtype=torch.float32)
    low, high = torch.tensor([0.42, 0.4, 0.05]), torch.tensor([0.58, 0.6, 0.92])
    coin, place, pull = torch.rand(1, generator=generator), torch.rand(3, generator=generator), torch.rand(3, generator=generator)
    anywhere = shape * (low + (high - low) * place)
    if coin < 0.5:
        coarse = volume[::3, ::3, ::3]
        lesion = ((coarse >= c.NECROSIS) & (coarse <= c.OEDEMA)).nonzero()
        if len(lesion):
            near = 3.0 * lesion[torch.randint(len(lesion), (1,), generator=generator)[0]]
            return near + 0.7 * pull * (anywhere - near)
    return anywhere


def _orientations(random: Uniform) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, 3, 3)` unit vectors (slice normal, row, column) in volume axes; and +1 or -1 where rows run along the first axis, else 0."""
    kind = torch.rand(random.size, generator=random.generator)
    normal_axis = torch.where(kind < 0.8, 2, torch.where(kind < 0.9, 1, 0))
    order = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 0, 1]])[normal_axis]
    axes = torch.eye(3)[order]
    swap = random.chance(0.25)
    axes = torch.where(swap[:, None, None], axes[:, [0, 2, 1]], axes)
    signs = torch.where(random(0, 1, 3) < 0.5, -1.0, 1.0)
    signs = torch.where(random.chance(0.5)[:, None], 1.0, signs)
    axes = axes * signs[..., None]
    sideways = torch.where(~swap & (normal_axis != 0), signs[:, 1], 0.0)
    angles = torch.deg2rad(torch.stack([random(-12, 12), random(-12, 12), 8 * random.normal()], 1))
    skew = torch.zeros(random.size, 3, 3)
    for (i, j), angle in zip(((0, 1), (0, 2), (1, 2)), angles.T, strict=True):
        skew[:, i, j], skew[:, j, i] = angle, -angle
    return torch.matrix_exp(skew) @ axes, sideways
