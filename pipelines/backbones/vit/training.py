"""How the small transformer is trained: on slices of synthetic heads alone, so that it ships with the project and nobody's images are in it.

Three lessons in each step (ours). A patch token says what its patch is made of, as the labels of the slice are known; the class token says the same
of the sixteen parts of the whole slice, so that it has to hold what there is and roughly where, in any contrast; and it says how bright each part is,
its mean and extremes, so that it holds what stands out and where whether or not a label names it. (A contrast between class tokens of two images of
one slice, as SimCLR has it for two views, was tried first: it stayed at chance for the 200 steps it was given, while the patches learned.)

Slices come from `backbones.atlas`: label maps at twice its spacing, so that its slabs of 96 pixels hold a whole head and its lesions in
pixels are scaled here to stay what they are in millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.contrast import grey_levels, render
from pipelines.backbones.atlas.lesions import Families, Painted, paint_lesions
from pipelines.backbones.atlas.slices import NEIGHBOURS, PARTS, Anatomy, Uniform, label_slabs
from pipelines.backbones.vit.config import VitConfig
from pipelines.backbones.vit.frames import MARGIN, box_of, framed
from pipelines.backbones.vit.load import new_vit
from pipelines.backbones.vit.model import CLIP

#: Every how many voxels of a label map are kept along an axis.
COARSER = 2
LESIONS = Families(painted=0.9, ends=(0.0, 0.25, 0.4, 0.65, 0.72, 0.93, 1.0), log_mm=(0.9, 2.9))
CONTRASTS = 2
#: Lesions fill a sixtieth of the patches; they count for more, because they are what cases differ by.
LESION_WEIGHT = 5.0
#: The class token tells the labels of this many by this many parts of the slice, and how bright they are: mean, highest and lowest value.
PARTS_ACROSS = 4
LEVELS = 3
#: Pixels a side that are averaged before extremes are taken, so that noise has no say.
SMOOTHED = 4


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights besides the number of steps."""

    seed: int = 2026
    heads: int = 60
    slabs: int = 16  # in a step, each in two contrasts
    pool: int = 500  # batches that are rendered, once; later steps take them again, turned and mirrored, because rendering is half of the work
    rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 0.05
    whole: float = 1.0  # weight of what the class token says of labels
    bright: float = 1.0  # weight of what it says of brightness
    healthy: float = 0.8  # share of the slabs of heads with a glioma that are taken from the same heads without


@dataclass(frozen=True)
class Batch:
    """Slices `(B, size, size)`; the share of each label in each of their patches and parts, `(B, patches, LABELS)` and `(B, parts, LABELS)`; and how
    bright each part is, `(B, parts, LEVELS)`."""

    slices: torch.Tensor  # or what the frozen stem makes of them, (B, C, h, w)
    patches: torch.Tensor
    parts: torch.Tensor
    levels: torch.Tensor


@dataclass
class State:
    """A run at one step: the network with the two heads that only training needs, its optimiser, the losses of every step."""

    network: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    step: int
    losses: list[tuple[float, ...]]


def new_state(recipe: Recipe, config: VitConfig) -> State:
    torch.manual_seed(recipe.seed)
    network = nn.ModuleDict({"vit": new_vit(config), "patches": nn.Linear(config.dim, c.LABELS),
                             "parts": nn.Linear(config.dim, PARTS_ACROSS**2 * c.LABELS),
                             "levels": nn.Linear(config.dim, PARTS_ACROSS**2 * LEVELS)})
    return State(network, torch.optim.AdamW(learning(network), lr=recipe.rate, weight_decay=recipe.weight_decay), 0, [])


def learning(network: nn.Module) -> list[nn.Parameter]:
    return [part for part in network.parameters() if part.requires_grad]


def identity(recipe: Recipe, config: VitConfig, steps: int) -> dict[str, object]:
    """What two runs must share for one to go on from the other."""
    return {"recipe": asdict(recipe), "config": config.model_dump(), "steps": steps}


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return recipe.rate * min(1.0, (step + 1) / recipe.warm_up) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))


def batch(anatomy: Anatomy, recipe: Recipe, config: VitConfig, step: int) -> Batch:
    """The slices of a step, a function of the seed and the step alone."""
    seed = int(np.random.SeedSequence([recipe.seed, step]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    slabs = label_slabs(anatomy, Uniform(generator, recipe.slabs), config.size, recipe.healthy)
    painted = paint_lesions(slabs, Uniform(generator, recipe.slabs), LESIONS)
    again = torch.arange(recipe.slabs).repeat_interleave(CONTRASTS)
    painted = Painted(*(getattr(painted, name)[again] for name in ("labels", "tissue", "share", "outermost")))
    random = Uniform(generator, len(again))
    images = render(painted, grey_levels(random), random)[:, NEIGHBOURS // 2]
    labels = painted.labels[:, PARTS * (NEIGHBOURS // 2)]
    centre, half = box_of(labels != c.AIR)
    half = half.amax(1, keepdim=True).expand(-1, 2) * MARGIN * random(0.95, 1.1, 1)
    centre = centre + half * random(-0.04, 0.04, 2)
    slices = framed(images[:, None], centre, half, config.size)[:, 0]
    named = framed(labels[:, None].float(), centre, half, config.size, mode="nearest")[:, 0].long()
    one_hot = functional.one_hot(named, c.LABELS).permute(0, 3, 1, 2).float()
    patches, parts = (functional.avg_pool2d(one_hot, side).flatten(2).transpose(1, 2) for side in (config.patch, config.size // PARTS_ACROSS))
    return Batch(slices, patches, parts, levels_of(slices))


def levels_of(slices: torch.Tensor) -> torch.Tensor:
    """Mean, highest and lowest value of each part of slices `(B, size, size)`: `(B, parts, LEVELS)`."""
    smooth = functional.avg_pool2d(slices[:, None].clamp(-CLIP, CLIP), SMOOTHED)
    side = smooth.shape[-1] // PARTS_ACROSS
    pooled = functional.avg_pool2d(smooth, side), functional.max_pool2d(smooth, side), -functional.max_pool2d(-smooth, side)
    return torch.cat(pooled, 1).flatten(2).transpose(1, 2)


def turned(made: Batch, way: int) -> Batch:
    """The batch in one of the eight ways to lay a square."""

    def lay(grid: torch.Tensor) -> torch.Tensor:
        grid = grid.transpose(-1, -2) if way & 4 else grid
        return grid.flip([axis for axis, bit in ((-2, 1), (-1, 2)) if way & bit])

    def laid(shares: torch.Tensor) -> torch.Tensor:
        side = math.isqrt(shares.shape[1])
        return lay(shares.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)

    return Batch(lay(made.slices), laid(made.patches), laid(made.parts), laid(made.levels))


def losses(network: nn.ModuleDict, made: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted cross-entropy of the labels of patches, and of parts from the class token; and the squared error of the parts' brightness."""
    vit = network["vit"]
    tokens, weight = vit(vit.begin(made.slices)), torch.tensor(c.IMPORTANCE)
    weight[list(c.LESIONS)] *= LESION_WEIGHT
    of_patches = network["patches"](tokens[:, 1:]).log_softmax(-1)
    of_parts = network["parts"](tokens[:, 0]).unflatten(-1, (PARTS_ACROSS**2, c.LABELS)).log_softmax(-1)
    levels = network["levels"](tokens[:, 0]).unflatten(-1, (PARTS_ACROSS**2, LEVELS))
    return (-(made.patches * weight * of_patches).sum(-1).mean(), -(made.parts * weight * of_parts).sum(-1).mean(),
            functional.mse_loss(levels, made.levels))


def train(state: State, anatomy: Anatomy, recipe: Recipe, config: VitConfig, steps: int, *, after_step: Callable[[State], None]) -> None:
    """Run `state` on to `steps`."""
    pool: dict[int, Batch] = {}
    while state.step < steps:
        for group in state.optimiser.param_groups:
            group["lr"] = rate(recipe, state.step, steps)
        which, again = state.step % recipe.pool, state.step // recipe.pool
        if which not in pool:
            fresh = batch(anatomy, recipe, config, which)
            pool[which] = replace(fresh, slices=state.network["vit"].stem.features(fresh.slices))
        patches, parts, levels = losses(state.network, turned(pool[which], (again + which) % 8 if again else 0))
        state.optimiser.zero_grad(set_to_none=True)
        (patches + recipe.whole * parts + recipe.bright * levels).backward()
        nn.utils.clip_grad_norm_(learning(state.network), 1.0)
        state.optimiser.step()
        state.step += 1
        state.losses.append((patches.item(), parts.item(), levels.item()))
        after_step(state)


def coarser(volumes: np.ndarray) -> np.ndarray:
    """Label maps `(N, X, Y, Z)` at `COARSER` times their spacing."""
    return np.ascontiguousarray(volumes[:, ::COARSER, ::COARSER, ::COARSER])
