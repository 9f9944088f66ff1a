"""How Atlas is trained: pixel-text contrast, one step at a time, every step a function of (seed, step) so that a resumed run is the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.config import AtlasConfig
from pipelines.backbones.atlas.contrast import grey_levels, relations, render
from pipelines.backbones.atlas.image import FINE_STRIDE
from pipelines.backbones.atlas.model import Towers
from pipelines.backbones.atlas.slices import SLAB, Uniform, label_slabs, paint_lesions
from pipelines.outputs import staged_file

CHECKPOINT = "checkpoint.safetensors"
#: The temperature may not fall below 1/50: with fewer classes than pixels the loss would otherwise only sharpen.
MAX_LOG_SCALE = float(np.log(50.0))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides the number of steps."""

    seed: int
    heads: int = 80
    batch: int = 8
    size: int = 96
    tokens: int = 6144  # sampled per step, rare labels more often
    phrasings: int = 2  # of every concept, per step
    text_steps: int = 400  # before the first image
    rate: float = 2e-3
    warm_up: int = 100
    decay: float = 0.3  # the last share of the steps, over which the rate falls to zero; constant before, so a run can be lengthened
    ema: float = 0.998
    bfloat16: bool = True  # in the convolutions, a third faster on processors that have it


@dataclass
class State:
    """A training run at one step."""

    towers: Towers
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    step: int
    losses: list[float]  # one a step


def new_state(recipe: Recipe, config: AtlasConfig, warm: bool = True) -> State:
    """A run before its first step; without `warm` the text tower is left untaught, to be filled from a checkpoint."""
    torch.manual_seed(recipe.seed)
    towers = Towers(config).to(memory_format=torch.channels_last)
    if warm:
        teach_text(towers, recipe)
    towers.text.requires_grad_(False)
    average = AveragedModel(towers, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
    return State(towers, average, torch.optim.AdamW(learning(towers), lr=recipe.rate, weight_decay=1e-4, fused=True), 0, [])


def learning(towers: Towers) -> list[torch.nn.Parameter]:
    """What the contrast trains: the image tower and the temperature. The text tower is locked by then (LiT, Zhai et al., CVPR 2022)."""
    return [parameter for parameter in towers.parameters() if parameter.requires_grad]


def decay_start(recipe: Recipe, steps: int) -> int:
    """The step from which the learning rate falls."""
    return steps - max(1, round(recipe.decay * steps))


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate: linear warm-up, constant, and a linear fall to zero over the last `decay` of the steps."""
    left = (steps - step) / (steps - decay_start(recipe, steps))
    return recipe.rate * min(1.0, (step + 1) / recipe.warm_up, left)


def batch(volumes: torch.Tensor, recipe: Recipe, step: int) -> tuple[torch.Tensor, torch.Tensor, Uniform]:
    """Images `(B, 1, size, size)` and, at the fine grid, rows into `concepts.verdicts()` `(B, size/2, size/2)`."""
    random = Uniform(torch.Generator().manual_seed(int(np.random.SeedSequence([recipe.seed, step]).generate_state(1)[0])), recipe.batch)
    slabs, pixel, _ = label_slabs(volumes, random, recipe.size)
    slabs = paint_lesions(slabs, pixel, random)
    level = grey_levels(random)
    images = render(slabs, level, random)
    # a random pixel of the token's 2 x 2, of one of the two middle sub-slices, stands for it: on average that is the soft label
    part, row, column = (int(torch.randint(n, (1,), generator=random.generator)) for n in (2, FINE_STRIDE, FINE_STRIDE))
    labels = slabs[:, SLAB // 2 - part, row::FINE_STRIDE, column::FINE_STRIDE]
    relation = relations(level).gather(1, labels.flatten(1)).view_as(labels)
    return images[:, None], relation * c.LABELS + labels, random


def loss_of(towers: Towers, images: torch.Tensor, rows: torch.Tensor, random: Uniform, recipe: Recipe) -> torch.Tensor:
    """The contrast between sampled pixels of a batch and random prompts."""
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        tokens = towers.image(images.to(memory_format=torch.channels_last))
    embedded = towers.image.align({name: tensor.float() for name, tensor in tokens.items()}).permute(0, 2, 3, 1).flatten(0, 2)
    flat = rows.flatten()
    frequent = flat.bincount(minlength=c.RELATIONS * c.LABELS).float().clamp_min(1)
    weight = (frequent.rsqrt() * torch.tensor(c.IMPORTANCE).repeat(c.RELATIONS))[flat]
    chosen = torch.multinomial(weight, min(recipe.tokens, len(flat)), generator=random.generator)
    words = np.random.default_rng(int(torch.randint(2**31, (1,), generator=random.generator)))
    return pixel_text_contrast(towers, embedded[chosen], flat[chosen], words, recipe.phrasings)


def pixel_text_contrast(towers: Towers, embedded: torch.Tensor, rows: torch.Tensor, words: np.random.Generator, phrasings: int) -> torch.Tensor:
    """Multi-positive InfoNCE of unit vectors `(T, dim)` of known `rows` of `concepts.verdicts()` against random phrasings of every concept.

    Each true prompt stands against all false ones; neutral ones are left out.
    """
    prompts = [c.phrase(concept, words) for concept in c.CONCEPTS for _ in range(phrasings)]
    verdict = torch.from_numpy(c.verdicts()).repeat_interleave(phrasings, dim=1)[rows]
    similarity = towers.log_scale.exp() * embedded @ towers.text(prompts).T
    false = similarity.masked_fill(verdict != c.NEGATIVE, -torch.inf).logsumexp(1, keepdim=True)
    true = verdict == c.POSITIVE
    each = functional.softplus(false - similarity) * true
    count = true.sum(1)
    return (each.sum(1) / count.clamp_min(1)).sum() / (count > 0).sum()


def teach_text(towers: Towers, recipe: Recipe) -> None:
    """Teach the text tower which phrasings mean the same before any image is shown, with one free vector in place of each label's pixels.

    Trained together from the start, the texts of tissues that the image tower cannot tell apart yet fall together, and then nothing
    makes it learn to: after 350 steps "white matter" and "grey matter" had a cosine of 0.95.
    """
    words, rows = np.random.default_rng([recipe.seed, recipe.text_steps]), torch.arange(c.RELATIONS * c.LABELS)
    labels = torch.nn.Parameter(torch.randn(len(rows), towers.image.aligner[-1].out_channels))
    optimiser = torch.optim.AdamW([labels, *towers.text.parameters()], lr=recipe.rate)
    for _ in range(recipe.text_steps):
        optimiser.zero_grad(set_to_none=True)
        pixel_text_contrast(towers, functional.normalize(labels, dim=1), rows, words, recipe.phrasings).backward()
        optimiser.step()


def train(state: State, volumes: torch.Tensor, recipe: Recipe, steps: int, after_step: Callable[[State], None] = lambda _: None) -> None:
    """Run `state` on to `steps`."""
    with ThreadPoolExecutor(1) as maker:  # the next batch is made while this one is learnt from
        following = maker.submit(batch, volumes, recipe, state.step)
        while state.step < steps:
            made, following = following, maker.submit(batch, volumes, recipe, state.step + 1)
            _step(state, made.result(), recipe, steps)
            after_step(state)


def _step(state: State, made: tuple[torch.Tensor, torch.Tensor, Uniform], recipe: Recipe, steps: int) -> None:
    for group in state.optimiser.param_groups:
        group["lr"] = rate(recipe, state.step, steps)
    loss = loss_of(state.towers, *made, recipe)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learning(state.towers), 1.0)
    state.optimiser.step()
    with torch.no_grad():
        state.towers.log_scale.clamp_(max=MAX_LOG_SCALE)
    state.average.update_parameters(state.towers)
    state.step += 1
    state.losses.append(loss.item())


def save_checkpoint(path: Path, state: State, recipe: Recipe, config: AtlasConfig, steps: int) -> None:
    """One file with everything a resumed run needs (random numbers are a function of seed and step, so they need no state)."""
    tensors = {f"towers.{name}": tensor for name, tensor in state.towers.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.state_dict().items()}
    for index, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in moments.items()}
    tensors["losses"] = torch.tensor(state.losses, dtype=torch.float64)
    with staged_file(path) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary,
                  metadata={"step": str(state.step), "steps": str(steps), "made_by": made_by(recipe, config)})


def made_by(recipe: Recipe, config: AtlasConfig) -> str:
    return json.dumps({"recipe": asdict(recipe), "config": config.model_dump()}, sort_keys=True)


def load_checkpoint(path: Path, recipe: Recipe, config: AtlasConfig, steps: int) -> State | None:
    """The run that `path` holds, or None where it is another one: other recipe, or the rate was falling for another end."""
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    step = int(metadata["step"])
    if metadata["made_by"] != made_by(recipe, config):
        return None
    before = int(metadata["steps"])
    if before != steps and step > min(decay_start(recipe, before), decay_start(recipe, steps)):
        return None
    tensors, state = load_file(path), new_state(recipe, config, warm=False)
    part = lambda prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}  # noqa: E731
    state.towers.load_state_dict(part("towers."))
    state.average.load_state_dict(part("average."))
    parameters, moments = learning(state.towers), {}
    for key, tensor in part("optimiser.").items():
        index, name = key.split(".")
        like = parameters[int(index)] if name != "step" else tensor
        # the fused optimiser walks raw memory, so a moment has to lie in memory as its parameter does
        moments.setdefault(int(index), {})[name] = torch.empty_like(like, requires_grad=False).copy_(tensor)
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})
    state.step, state.losses = step, tensors["losses"].tolist()
    return state
