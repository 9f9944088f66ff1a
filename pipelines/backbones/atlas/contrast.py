"""Label slabs to images of any contrast: the idea of SynthSeg (Billot et al., Medical Image Analysis 2023).

Each tissue gets a random grey level, or one near its order in a real sequence; then texture, partial volume across the slab, bias field,
gamma, blur, noise, and the same standardisation as the resample stage: median 0, robust sd 1 inside the head, 0 outside.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.slices import Uniform

#: Typical grey levels (air to white = 0 to 1) per label in the order of `concepts`: how textbook images look, not a measurement.
TYPICAL = {
    "T1": (0.01, 0.85, 0.08, 0.12, 0.45, 0.62, 0.12, 0.15, 0.42, 0.65, 0.30, 0.50, 0.20, 0.45, 0.40, 0.40, 0.42, 0.14),
    "ceT1": (0.01, 0.85, 0.08, 0.12, 0.45, 0.60, 0.12, 0.15, 0.48, 0.65, 0.95, 0.50, 0.22, 0.95, 0.40, 0.45, 0.44, 0.14),
    "T2": (0.01, 0.55, 0.06, 0.95, 0.60, 0.42, 0.95, 0.90, 0.30, 0.45, 0.20, 0.65, 0.88, 0.62, 0.80, 0.72, 0.74, 0.95),
    "FLAIR": (0.01, 0.50, 0.06, 0.08, 0.50, 0.40, 0.08, 0.12, 0.32, 0.38, 0.20, 0.65, 0.50, 0.70, 0.85, 0.78, 0.80, 0.10),
    "PD": (0.01, 0.70, 0.10, 0.80, 0.70, 0.58, 0.80, 0.80, 0.50, 0.50, 0.35, 0.72, 0.80, 0.74, 0.80, 0.78, 0.78, 0.80),
    "ADC": (0.02, 0.10, 0.05, 0.95, 0.38, 0.33, 0.95, 0.90, 0.30, 0.10, 0.40, 0.45, 0.75, 0.45, 0.65, 0.55, 0.58, 0.95),
    "PET": (0.02, 0.20, 0.12, 0.10, 0.40, 0.25, 0.10, 0.12, 0.30, 0.30, 0.45, 0.25, 0.15, 0.90, 0.35, 0.65, 0.35, 0.08),
    "CBV": (0.02, 0.15, 0.04, 0.15, 0.45, 0.22, 0.12, 0.10, 0.18, 0.10, 0.95, 0.20, 0.10, 0.75, 0.20, 0.45, 0.25, 0.05),
}
_TYPICAL = torch.tensor(list(TYPICAL.values()))
#: How often each is drawn: the structural sequences most, as most images are.
_WEIGHTS = torch.tensor([3.0, 3.0, 3.0, 5.0, 1.0, 1.0, 1.0, 1.0])
RANDOM_SHARE = 0.2
MIN_LESION_CONTRAST = 0.1
#: Rough texture per label: fat, marrow and lesions are uneven, brain and fluid are not.
_TEXTURE = torch.tensor([0.0, 0.16, 0.08, 0.05, 0.04, 0.03, 0.03, 0.1, 0.14, 0.12, 0.1, 0.05, 0.1, 0.12, 0.07, 0.09, 0.05, 0.04])


def grey_levels(random: Uniform) -> torch.Tensor:
    """Mean intensity of every label for each image of the batch, `(B, LABELS)` in about 0 to 1."""
    typical = _TYPICAL[torch.multinomial(_WEIGHTS, random.size, replacement=True, generator=random.generator)]
    typical = typical + 0.06 * random.normal(c.LABELS)
    typical[:, c.SCALP] *= random(0.35, 1.2)  # with and without fat suppression
    free = random(0.0, 1.0, c.LABELS)
    free[:, c.VENTRICLE] = free[:, c.CSF] + 0.03 * random.normal()
    free[:, c.AIR] *= 0.1
    level = torch.where(random.chance(RANDOM_SHARE)[:, None], free, typical)
    white = level[:, c.WHITE, None]
    lesions = list(c.LESIONS)
    gap = level[:, lesions] - white
    sign = torch.where(gap < 0, -1.0, 1.0)
    visible = random.chance(0.85)[:, None]  # some lesions hardly show in a sequence
    level[:, lesions] = torch.where(visible & (gap.abs() < MIN_LESION_CONTRAST), white + sign * MIN_LESION_CONTRAST, level[:, lesions])
    return level.clamp(0.0, 1.2)


def relations(level: torch.Tensor) -> torch.Tensor:
    """`(B, LABELS)`: whether each label is darker than, similar to or brighter than white matter in that image."""
    gap = level - level[:, c.WHITE, None]
    contrast = 0.08
    return torch.where(gap > contrast, c.BRIGHTER, torch.where(gap < -contrast, c.DARKER, c.SIMILAR))


def render(slabs: torch.Tensor, level: torch.Tensor, random: Uniform) -> torch.Tensor:
    """Images `(B, H, W)` of label slabs `(B, SLAB, H, W)`, standardised."""
    batch, _, height, width = slabs.shape
    flat = slabs.flatten(1)
    pattern = 0.6 * random.smooth(height // 3, height, width) + 0.6 * random.smooth(height // 9, height, width)
    rough = (_TEXTURE * random(0.2, 1.6)[:, None])[torch.arange(batch)[:, None], flat].view_as(slabs)
    image = (level.gather(1, flat).view_as(slabs) + rough * pattern).mean(1)
    image = image.clamp_min(0.0) * torch.exp(random(0.0, 0.35)[:, None, None] * random.smooth(4, height, width)[:, 0])
    image = image ** random(0.75, 1.35)[:, None, None]
    image = _blur(image, random(0.0, 1.0))
    noise = random(0.0, 0.05)[:, None, None]
    image = torch.hypot(image + noise * random.normal(height, width), noise * random.normal(height, width))  # Rician
    return _standardise(image, _mask(slabs, random), random)


def _blur(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with one sigma (pixels) per image."""
    taps = torch.arange(-2, 3.0)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None].clamp_min(0.1)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    batch = len(image)
    x = functional.pad(image[None], (2, 2, 2, 2), mode="replicate")
    x = functional.conv2d(x, kernel[:, None, :, None], groups=batch)
    return functional.conv2d(x, kernel[:, None, None, :], groups=batch)[0]


def _mask(slabs: torch.Tensor, random: Uniform) -> torch.Tensor:
    """Foreground `(B, H, W)`: the head, for a quarter of the images the brain alone, with an edge that is never quite right."""
    head = slabs != c.AIR
    brain = (slabs >= c.NECROSIS) | ((slabs >= c.CSF) & (slabs <= c.VENTRICLE)) | (slabs == c.GLIOSIS)
    inside = torch.where(random.chance(0.25)[:, None, None, None], brain, head).float().mean(1)
    inside = functional.avg_pool2d(inside[:, None], 5, stride=1, padding=2)[:, 0]
    edge = random(0.15, 0.75)[:, None, None] + 0.1 * random.smooth(12, *slabs.shape[-2:])[:, 0]
    return (inside > edge.clamp(0.05, 0.95)) | random.chance(0.05)[:, None, None]


def _standardise(image: torch.Tensor, mask: torch.Tensor, random: Uniform) -> torch.Tensor:
    """Median 0 and robust sd 1 inside the mask, 0 outside; jittered, because the stage takes both from the volume and not from a slice."""
    inside = torch.where(mask, image, torch.nan).flatten(1)
    low, middle, high = torch.nanquantile(inside[:, ::3], torch.tensor([0.25, 0.5, 0.75]), dim=1).nan_to_num()
    spread = ((high - low) / 1.349).clamp_min(0.02)
    middle = middle + 0.3 * spread * random.normal()
    spread = spread * torch.exp(0.2 * random.normal())
    return torch.where(mask, (image - middle[:, None, None]) / spread[:, None, None], 0.0)
