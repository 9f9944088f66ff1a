"""How Atlas is trained: pixel-text contrast, one step at a time, every step a function of (seed, step) so that a resumed run is the same run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas import phrases
from pipelines.backbones.atlas.config import AtlasConfig
from pipelines.backbones.atlas.contrast import BIAS, FACE, GAIN, Levels, grey_levels, render
from pipelines.backbones.atlas.image import FINE_STRIDE
from pipelines.backbones.atlas.lesions import LARGE, MODERATE, Families, Painted, paint_lesions
from pipelines.backbones.atlas.model import Towers
from pipelines.backbones.atlas.phrases import Facets, Prompt
from pipelines.backbones.atlas.slices import NEIGHBOURS, PARTS, Anatomy, Slabs, Uniform, label_slabs
from pipelines.backbones.atlas.text import TextEncoder

#: The temperature may not fall below 1/50: with fewer classes than pixels the loss would otherwise only sharpen.
MAX_LOG_SCALE = float(np.log(50.0))


@dataclass(frozen=True)
class Phase:
    """What the slices of a part of the run are like."""

    families: Families = MODERATE
    gain: tuple[float, float] = (0.4, 1.2)  # of lesions, see `contrast.grey_levels`
    healthy: float = 0.0  # see `slices.label_slabs`
    face: float = 1.0  # see `contrast.render`
    bias: float = 0.35  # see `artefacts.scan`
    lesion_weight: float = 1.0  # how much more often tokens of lesions are sampled


#: Most lesions of the first part are of moderate size and leave the cortex free; taught on those alone, the model takes whatever is bright at
#: the surface of the brain for cortex.
HARDER = Phase(LARGE, gain=GAIN, healthy=0.5, face=FACE, bias=BIAS, lesion_weight=1.5)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides the number of steps."""

    seed: int
    first: int = 0  # the step it begins at; more than 0: it goes on from the weights of a finished run of as many steps, with a rate that begins anew
    heads: int = 120
    shares: int = 2  # parts of a batch, each made and learnt from by a thread of its own: two cores are kept busy without waiting in every layer
    batch: int = 8
    contrasts: int = 2  # images of each anatomy in a batch
    size: int = 128
    tokens: int = 8192  # sampled per step, rare labels more often
    phrasings: int = 3  # of every concept, per step
    text_steps: int = 1200  # before the first image
    widen_steps: int = 800  # after those
    rate: float = 2e-3
    warm_up: int = 200
    decay: float = 0.3  # the last share of the steps, over which the rate falls to zero; constant before, so a run can be lengthened
    ema: float = 0.998
    phases: tuple[tuple[int, Phase], ...] = ((0, Phase()), (5207, HARDER))  # from which step
    bfloat16: bool = True  # in the convolutions, faster on processors that have it

    def phase(self, step: int) -> Phase:
        """The phase that `step` belongs to."""
        return next(phase for first, phase in reversed(self.phases) if step >= first)


@dataclass(frozen=True)
class Batch:
    """Images `(B, NEIGHBOURS, size, size)` and what is known at the fine grid, each `(B, size/2, size/2)`."""

    images: torch.Tensor
    facets: Facets
    weight: torch.Tensor  # how often the token is sampled besides its frequency, 0 where nothing is to be said of it
    random: Uniform


@dataclass
class State:
    """A training run at one step."""

    towers: Towers
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    step: int
    losses: list[float]  # one a step, from the run's first


def new_state(recipe: Recipe, config: AtlasConfig, warm: bool = True) -> State:
    """A run before its first step; without `warm` the text tower is left untaught, to be filled from a checkpoint."""
    torch.manual_seed(recipe.seed)
    towers = Towers(config).to(memory_format=torch.channels_last)
    if warm and not config.classes:
        teach_text(towers, recipe)
        widen_text(towers.text, recipe)
    towers.text.requires_grad_(False)
    average = AveragedModel(towers, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
    return State(towers, average, torch.optim.AdamW(learning(towers), lr=recipe.rate, weight_decay=1e-4, fused=True), recipe.first, [])


def continued(recipe: Recipe, config: AtlasConfig, weights: Mapping[str, torch.Tensor]) -> State:
    """A run that goes on from finished `weights` at step `recipe.first`."""
    state = new_state(recipe, config, warm=False)
    for towers in (state.towers, state.average.module):
        towers.load_state_dict(weights)
    return state


def learning(towers: Towers) -> list[torch.nn.Parameter]:
    """What the contrast trains: the image tower and the temperature. The text tower is locked by then (LiT, Zhai et al., CVPR 2022)."""
    return [parameter for parameter in towers.parameters() if parameter.requires_grad]


def decay_start(recipe: Recipe, steps: int) -> int:
    """The step from which the learning rate falls."""
    return steps - max(1, round(recipe.decay * (steps - recipe.first)))


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate: linear warm-up, constant, and a linear fall to zero over the last `decay` of the steps."""
    left = (steps - step) / (steps - decay_start(recipe, steps))
    return recipe.rate * min(1.0, (step - recipe.first + 1) / recipe.warm_up, left)


def batch(anatomy: Anatomy, recipe: Recipe, step: int, share: int) -> Batch:
    """One share of the batch of a step: some anatomies, each in several contrasts."""
    seed = int(np.random.SeedSequence([recipe.seed, step, share]).generate_state(1)[0])
    generator, size, phase = torch.Generator().manual_seed(seed), recipe.batch // recipe.shares, recipe.phase(step)
    random = Uniform(generator, size // recipe.contrasts)
    slabs = label_slabs(anatomy, random, recipe.size, phase.healthy)
    painted = paint_lesions(slabs, random, phase.families)
    again = torch.arange(random.size).repeat_interleave(recipe.contrasts)
    painted = Painted(painted.labels[again], painted.tissue[again], painted.share[again], painted.outermost[again])
    random = Uniform(generator, size)
    levels = grey_levels(random, phase.gain)
    images = render(painted, levels, random, phase.face, phase.bias)
    facets, taught = at_tokens(painted.labels, slabs, again, levels, random)
    importance = torch.tensor(c.IMPORTANCE)
    importance[list(c.LESIONS)] *= phase.lesion_weight
    return Batch(images, facets, importance[facets.row % c.LABELS] * taught, random)


def at_tokens(labels: torch.Tensor, slabs: Slabs, again: torch.Tensor, levels: Levels, random: Uniform) -> tuple[Facets, torch.Tensor]:
    """What is known of each token: of a random pixel of its 2 x 2, in a random part of the slice; on average that is the soft label."""
    part, row, column = (int(torch.randint(n, (1,), generator=random.generator)) for n in (PARTS, FINE_STRIDE, FINE_STRIDE))
    rows, columns = slice(row, None, FINE_STRIDE), slice(column, None, FINE_STRIDE)
    label = labels[:, PARTS * (NEIGHBOURS // 2) + part, rows, columns]
    of_label = lambda table: table.gather(1, label.flatten(1)).view_as(label)  # noqa: E731
    in_brain = torch.isin(label, torch.tensor((*c.INTRACRANIAL, c.VESSEL)))
    modality = levels.modality[:, None, None].expand_as(label)
    place, side = (known[again][:, rows, columns] * in_brain for known in (slabs.place, slabs.side))
    return Facets(of_label(levels.relations) * c.LABELS + label, modality, place, side), ~of_label(levels.invisible)


def loss_of(towers: Towers, made: Batch, recipe: Recipe) -> torch.Tensor:
    """The contrast between sampled pixels of a batch and random prompts."""
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        tokens = towers.image(made.images.to(memory_format=torch.channels_last))
    joined = towers.image.joined({name: tensor.float() for name, tensor in tokens.items()}).permute(0, 2, 3, 1).flatten(0, 2)
    flat = Facets(*(known.flatten() for known in (made.facets.row, made.facets.modality, made.facets.place, made.facets.side)))
    frequent = flat.row.bincount(minlength=c.RELATIONS * c.LABELS).float().clamp_min(1)
    weight = frequent.rsqrt()[flat.row] * made.weight.flatten()
    chosen = torch.multinomial(weight, min(recipe.tokens // recipe.shares, int((weight > 0).sum())), generator=made.random.generator)
    # 1 x 1 convolutions, so what is chosen can be aligned alone
    embedded = functional.normalize(towers.image.aligner(joined[chosen].T[None, ..., None]), dim=1)[0, ..., 0].T
    words = np.random.default_rng(int(torch.randint(2**31, (1,), generator=made.random.generator)))
    if towers.classes is not None:
        said = [Prompt(index, "") for index in range(len(c.CONCEPTS))]
        return contrast(towers, embedded, flat[chosen], said, functional.normalize(towers.classes, dim=1))
    present = [index for index in made.facets.modality.unique().tolist() if index]
    said = phrases.prompts(words, recipe.phrasings, present)
    return contrast(towers, embedded, flat[chosen], said, towers.text([prompt.text for prompt in said]))


def contrast(towers: Towers, embedded: torch.Tensor, pixels: Facets, said: list[Prompt], vectors: torch.Tensor) -> torch.Tensor:
    """Multi-positive InfoNCE of unit vectors `(T, dim)` of known pixels against prompts and their vectors.

    Each true prompt stands against all false ones; neutral ones are left out.
    """
    verdict = phrases.verdict_on(said, pixels)
    similarity = towers.log_scale.exp() * embedded @ vectors.T
    false = similarity.masked_fill(verdict != c.NEGATIVE, -torch.inf).logsumexp(1, keepdim=True)
    true = verdict == c.POSITIVE
    each = functional.softplus(false - similarity) * true
    count = true.sum(1)
    return (each.sum(1) / count.clamp_min(1)).sum() / (count > 0).sum()


def teach_text(towers: Towers, recipe: Recipe) -> None:
    """Teach the text tower which sentences mean the same before any image is shown, with free vectors in place of what is known of pixels.

    Trained together from the start, the texts of tissues that the image tower cannot tell apart yet fall together, and then nothing
    makes it learn to: after 350 steps "white matter" and "grey matter" had a cosine of 0.95.
    """
    generator, words = torch.Generator().manual_seed(recipe.seed), np.random.default_rng([recipe.seed, recipe.text_steps])
    sizes = {"row": c.RELATIONS * c.LABELS, "modality": phrases.MODALITY_COUNT, "place": phrases.PLACE_COUNT, "side": phrases.SIDE_COUNT}
    dim = towers.image.aligner[-1].out_channels
    free = {name: torch.nn.Parameter(torch.randn(size, dim, generator=generator)) for name, size in sizes.items()}
    optimiser = torch.optim.AdamW([*free.values(), *towers.text.parameters()], lr=recipe.rate)
    for _ in range(recipe.text_steps):
        drawn = {name: torch.randint(size, (768,), generator=generator) for name, size in sizes.items()}
        embedded = functional.normalize(sum(free[name][index] for name, index in drawn.items()), dim=1)
        said = phrases.prompts(words, recipe.phrasings, [])
        optimiser.zero_grad(set_to_none=True)
        contrast(towers, embedded, Facets(**drawn), said, towers.text([prompt.text for prompt in said])).backward()
        optimiser.step()


def widen_text(text: TextEncoder, recipe: Recipe) -> None:
    """Teach a taught text tower more words: what they say in a sentence goes where sentences of known words with the same meaning are."""
    known, words = copy.deepcopy(text).eval(), np.random.default_rng([recipe.seed, recipe.widen_steps, 1])
    text.requires_grad_(True)
    optimiser = torch.optim.AdamW(text.parameters(), lr=recipe.rate / 2)
    for step in range(recipe.widen_steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate / 2 * (1 - step / recipe.widen_steps)
        said = phrases.prompts(words, recipe.phrasings, [])
        sentences = [[phrases.phrase(c.CONCEPTS[prompt.concept], words, prompt.modality, prompt.place, prompt.side, more=bool(more))
                      for prompt in said] for more in (0, 0, 0, 1)]
        with torch.no_grad():
            meant = functional.normalize(sum(known(known_words) for known_words in sentences[:3]), dim=1)
        optimiser.zero_grad(set_to_none=True)
        (1 - (text(sentences[3]) * meant).sum(1)).mean().backward()
        optimiser.step()
    text.requires_grad_(False)


def train(state: State, anatomy: Anatomy, recipe: Recipe, steps: int, after_step: Callable[[State], None] = lambda _: None) -> None:
    """Run `state` on to `steps`, the shares of each batch side by side."""

    def gradients(share: int) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = loss_of(state.towers, batch(anatomy, recipe, state.step, share), recipe)
        return loss.item(), torch.autograd.grad(loss, learning(state.towers))

    with ThreadPoolExecutor(recipe.shares) as threads:
        while state.step < steps:
            _step(state, list(threads.map(gradients, range(recipe.shares))), recipe, steps)
            after_step(state)


def _step(state: State, shares: list[tuple[float, tuple[torch.Tensor, ...]]], recipe: Recipe, steps: int) -> None:
    for group in state.optimiser.param_groups:
        group["lr"] = rate(recipe, state.step, steps)
    for parameter, *parts in zip(learning(state.towers), *(part for _, part in shares), strict=True):
        parameter.grad = (sum(parts) / len(parts)).contiguous(memory_format=torch.channels_last if parameter.dim() == 4 else torch.contiguous_format)
    torch.nn.utils.clip_grad_norm_(learning(state.towers), 1.0)
    state.optimiser.step()
    with torch.no_grad():
        state.towers.log_scale.clamp_(max=MAX_LOG_SCALE)
    state.average.update_parameters(state.towers)
    state.step += 1
    state.losses.append(sum(loss for loss, _ in shares) / len(shares))
