"""Label slabs to images of any contrast: the idea of SynthSeg (Billot et al., Medical Image Analysis 2023).

Each tissue gets a random grey level, or one near its order in a real sequence; `artefacts` adds what a scanner adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipelines.backbones.atlas import artefacts
from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.lesions import Painted
from pipelines.backbones.atlas.phrases import modality_index
from pipelines.backbones.atlas.slices import NEIGHBOURS, PARTS, Uniform

#: Typical grey levels (air to white = 0 to 1) per label in the order of `concepts`: how textbook images look, not a measurement.
TYPICAL = {
    "T1": (0.01, 0.95, 0.08, 0.14, 0.47, 0.62, 0.12, 0.15, 0.45, 0.70, 0.30, 0.50, 0.20, 0.45, 0.42, 0.40, 0.42, 0.14, 0.42, 0.42),
    "ceT1": (0.01, 0.95, 0.08, 0.14, 0.47, 0.60, 0.12, 0.15, 0.50, 0.70, 0.95, 0.50, 0.22, 0.95, 0.42, 0.45, 0.44, 0.14, 0.44, 0.80),
    "T2": (0.01, 0.65, 0.06, 0.95, 0.56, 0.42, 0.95, 0.90, 0.30, 0.45, 0.20, 0.65, 0.88, 0.62, 0.80, 0.72, 0.74, 0.95, 0.78, 0.92),
    "FLAIR": (0.01, 0.80, 0.06, 0.14, 0.46, 0.40, 0.08, 0.12, 0.36, 0.45, 0.20, 0.65, 0.50, 0.70, 0.80, 0.75, 0.75, 0.10, 0.78, 0.85),
    "PD": (0.01, 0.75, 0.10, 0.80, 0.70, 0.60, 0.80, 0.80, 0.50, 0.50, 0.35, 0.72, 0.80, 0.78, 0.84, 0.80, 0.80, 0.80, 0.84, 0.85),
    "ADC": (0.02, 0.10, 0.05, 0.95, 0.37, 0.33, 0.95, 0.90, 0.30, 0.10, 0.40, 0.45, 0.75, 0.45, 0.65, 0.55, 0.58, 0.95, 0.14, 0.60),
    "PET": (0.02, 0.20, 0.12, 0.10, 0.40, 0.25, 0.10, 0.12, 0.30, 0.30, 0.45, 0.25, 0.15, 0.90, 0.35, 0.65, 0.35, 0.08, 0.10, 0.35),
    "CBV": (0.02, 0.15, 0.04, 0.15, 0.45, 0.22, 0.12, 0.10, 0.18, 0.10, 0.95, 0.20, 0.10, 0.75, 0.20, 0.45, 0.25, 0.05, 0.06, 0.45),
    "difference": (0.10, 0.18, 0.12, 0.12, 0.16, 0.13, 0.12, 0.12, 0.25, 0.18, 0.95, 0.13, 0.13, 0.85, 0.14, 0.22, 0.20, 0.12, 0.18, 0.70),
}
_TYPICAL = torch.tensor(list(TYPICAL.values()))
_MODALITY = torch.tensor([modality_index(name) for name in TYPICAL])
#: How often each is drawn: the structural sequences most, as most images are.
_WEIGHTS = torch.tensor([4.0, 4.0, 3.0, 5.0, 1.0, 1.0, 1.0, 1.0, 0.7])
RANDOM_SHARE = 0.2
MIN_LESION_CONTRAST = 0.1
#: What images are like unless a phase of the training asks for others: how far lesions differ from white matter, how uneven muscle and mucosa
#: are, and the largest sd of the logarithm of the bias field.
GAIN, FACE, BIAS = (0.5, 1.5), 2.0, 0.22
#: A lesion whose level is this near to white matter's is not taught: nobody could point at it.
INVISIBLE = 0.05
#: Rough texture per label: fat, marrow and lesions are uneven, brain and fluid are not.
_TEXTURE = torch.tensor([0.0, 0.10, 0.05, 0.04, 0.03, 0.025, 0.03, 0.08, 0.12, 0.12, 0.1, 0.05, 0.1, 0.12, 0.07, 0.09, 0.05, 0.04, 0.06, 0.14])


@dataclass(frozen=True)
class Levels:
    """Mean intensity of every label for each image of a batch, `(B, LABELS)` in about 0 to 1.5, and the modality it imitates (0: none)."""

    mean: torch.Tensor
    modality: torch.Tensor

    @property
    def relations(self) -> torch.Tensor:
        """`(B, LABELS)`: whether each label is darker than, similar to or brighter than white matter in that image."""
        gap = self.mean - self.mean[:, c.WHITE, None]
        contrast = 0.08
        return torch.where(gap > contrast, c.BRIGHTER, torch.where(gap < -contrast, c.DARKER, c.SIMILAR))

    @property
    def invisible(self) -> torch.Tensor:
        """`(B, LABELS)`: lesions that are as bright as white matter."""
        hidden = torch.zeros(self.mean.shape, dtype=torch.bool)
        hidden[:, list(c.LESIONS)] = ((self.mean - self.mean[:, c.WHITE, None]).abs() < INVISIBLE)[:, list(c.LESIONS)]
        return hidden


def typical_levels(name: str, size: int) -> Levels:
    """The textbook levels of a modality, for a batch of `size`."""
    return Levels(torch.tensor(TYPICAL[name]).repeat(size, 1), torch.full((size,), modality_index(name)))


def grey_levels(random: Uniform, gain: tuple[float, float] = GAIN) -> Levels:
    """Levels near those of a random modality, for a fifth of the images wholly at random. `gain` scales how far lesions differ from white matter."""
    drawn = torch.multinomial(_WEIGHTS, random.size, replacement=True, generator=random.generator)
    typical = _TYPICAL[drawn] + 0.05 * random.normal(c.LABELS)
    white = typical[:, c.WHITE, None]
    typical[:, [c.GREY]] = white + (_TYPICAL[drawn][:, [c.GREY]] - _TYPICAL[drawn][:, c.WHITE, None]) * random(0.3, 1.3, 1)
    typical[:, c.SCALP] *= random(0.3, 1.7)  # with and without fat suppression
    typical[:, c.MUCOSA] *= random(0.4, 1.5)
    lesions = list(c.LESIONS)
    typical[:, lesions] = white + (typical[:, lesions] - white) * random(*gain, 1)
    free = random(0.0, 1.0, c.LABELS)
    free[:, c.VENTRICLE] = free[:, c.CSF] + 0.03 * random.normal()
    free[:, c.AIR] *= 0.1
    any_contrast = random.chance(RANDOM_SHARE)
    level = torch.where(any_contrast[:, None], free, typical)
    white = level[:, c.WHITE, None]
    gap = level[:, lesions] - white
    visible = random.chance(0.85)[:, None]  # some lesions hardly show in a sequence
    apart = white + torch.where(gap < 0, -1.0, 1.0) * MIN_LESION_CONTRAST
    level[:, lesions] = torch.where(visible & (gap.abs() < MIN_LESION_CONTRAST), apart, level[:, lesions])
    return Levels(level.clamp(0.0, 1.6), torch.where(any_contrast, 0, _MODALITY[drawn]))


def render(painted: Painted, levels: Levels, random: Uniform, face: float = FACE, bias: float = BIAS) -> torch.Tensor:
    """Images `(B, NEIGHBOURS, H, W)` of labels, standardised as the resample stage does. `face` scales the texture of muscle and mucosa."""
    image = _intensity(painted, levels, random, face)
    thick = image.unflatten(1, (NEIGHBOURS, PARTS)).mean(2)
    mask = artefacts.mask(painted.labels, random)
    return artefacts.missing_neighbours(artefacts.standardise(artefacts.scan(thick, random, bias), mask, random), random)


def _intensity(painted: Painted, levels: Levels, random: Uniform, face: float) -> torch.Tensor:
    """Grey level of every sub-slice with texture `(B, D, H, W)`, lesions fading into what lies under them."""
    depth, height, width = painted.labels.shape[1:]
    fine, coarse = (random.smooth(height // cells, height, width, depth) for cells in (3, 9))
    pattern = random(0.0, 0.8)[:, None, None, None] * fine + 0.6 * coarse
    rough = _TEXTURE * random(0.2, 1.4)[:, None]
    rough[:, [c.MUSCLE, c.MUCOSA]] *= face
    rough[:, list(c.LESIONS)] *= random(0.2, 3.0, 1)
    shape, tissue = painted.labels.shape, painted.tissue.flatten(1)
    lesion = torch.where(painted.labels == painted.tissue, painted.outermost[:, None, None, None], painted.labels).flatten(1)
    level = lambda labels: (levels.mean.gather(1, labels).view(shape) + rough.gather(1, labels).view(shape) * pattern)  # noqa: E731
    below = level(tissue)
    return (below + painted.share * (level(lesion) - below)).clamp_min(0.0)
