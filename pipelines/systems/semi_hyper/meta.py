"""What is learned before a new modality comes: the shared projector, then the hypernetwork over made-up modalities.

Both are the paper's stages (arXiv 2509.04606, its sections on the projector and on the hypernetwork): the projector is trained on the rich
modalities; then the hypernetwork alone, each step multiplying the vectors of one modality by a random orthogonal matrix, as another encoder
would give them. Ours: the loss is SEMI's contrast of regions against class prompts instead of a caption's likelihood, the projector starts at
the backbone's own alignment, several made-up modalities make a step, and everything is small (seconds on one core).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipelines.cohort import Case
from pipelines.systems.protocol import Task
from pipelines.systems.semi.features import alignment_pairs
from pipelines.systems.semi.learning import optimise
from pipelines.systems.semi.model import Projector
from pipelines.systems.semi_hyper.adapters import Adapters, HyperNetwork, average, project, random_rotation
from pipelines.systems.semi_hyper.pairs import Pool, pools_of
from pipelines.systems.semi_hyper.params import Params

#: Slices of each image on which the shared projector is started at the backbone's alignment.
SLICES_ALIGNED = 2
#: Meta-trainings kept in the process, so that arms share them.
KEPT = 2

_DONE: OrderedDict[tuple, Meta] = OrderedDict()


@dataclass
class Meta:
    """What was learned from the known modalities. Shared between fits: copy before changing."""

    pools: dict[str, Pool]
    projector: Projector
    task: Task  # these two are kept so that what the key names by its address lives as long as the entry
    cases: tuple[Case, ...]
    hypernetwork: HyperNetwork | None = None


def meta_train(task: Task, cases: Sequence[Case], known: Sequence[str], params: Params, seed: int, *, hypernetwork: bool) -> Meta | None:
    """The shared projector of the modalities `known` as these cases show them, and the hypernetwork if wanted; None if they show none.

    From memory where this process has trained the same before: the same objects, params and seed. Torch's generator neither matters nor moves.
    """
    deciding = params.model_dump(exclude={"arm", "new_modality", "text_only", "steps", "pairs"})
    key = (id(task), tuple(map(id, cases)), tuple(known), repr(deciding), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if key not in _DONE:
            pools = pools_of(cases, known, task, params, params.regions)
            if not pools:
                return None
            _DONE[key] = Meta(pools, _shared_projector(pools, cases, task, params), task, tuple(cases))
            while len(_DONE) > KEPT:
                _DONE.popitem(last=False)
        found = _DONE[key]
        _DONE.move_to_end(key)
        if hypernetwork and found.hypernetwork is None:
            torch.manual_seed(seed)  # the same whether the projector came from memory or not
            found.hypernetwork = _hypernetwork(found.projector, found.pools, params)
    return found


def some_of(cases: Sequence[Case], count: int) -> list[Case]:
    """At most `count` of the cases, in their order. Torch's global generator decides which."""
    return [cases[number] for number in sorted(torch.randperm(len(cases))[:count].tolist())]


def alignment_starts(cases: Sequence[Case], pools: Mapping[str, Pool], task: Task, params: Params) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Standardised tokens and the backbone's own alignment of them, from a few slices of every image of the pools' modalities."""
    found = {}
    for modality, pool in pools.items():
        pairs = [alignment_pairs(case, modality, task, params.grid_stride, SLICES_ALIGNED) for case in cases if modality in case.tokens]
        tokens, aligned = (torch.cat(values) for values in zip(*pairs, strict=True))
        found[modality] = (tokens.float() - pool.mean) / pool.sd, aligned
    return found


def generate(meta: Meta, pool: Pool, params: Params) -> Adapters:
    """Adapters for the pool's modality: the mean over chunks of its pairs, each class in every chunk as far as it goes round."""
    with torch.no_grad():
        return average([meta.hypernetwork(pool.regions[chosen], pool.paired[chosen], pool.instruction) for chosen in chunks(pool, params.chunk)])


def chunks(pool: Pool, size: int) -> list[torch.Tensor]:
    """All regions of a pool once, in chunks of about `size` that have the classes in like shares."""
    numbers = torch.arange(len(pool.classes))[torch.randperm(len(pool.classes))]
    by_class = numbers[torch.argsort(pool.classes[numbers], stable=True)]
    count = max(1, round(len(by_class) / size))
    return [by_class[start::count] for start in range(count)]


def _shared_projector(pools: Mapping[str, Pool], cases: Sequence[Case], task: Task, params: Params) -> Projector:
    one = next(iter(pools.values()))
    projector = Projector(one.regions.shape[1], params.projector_width, one.paired.shape[1])
    if params.backbone_alignment:
        tokens, aligned = (torch.cat(values) for values in zip(*alignment_starts(cases, pools, task, params).values(), strict=True))
        projector.start_at(tokens, aligned)

    def loss() -> torch.Tensor:
        chosen = {modality: pool.draw(params.meta_batch) for modality, pool in pools.items()}
        parts = [pool.contrast(projector(pool.varied(chosen[modality], params)), chosen[modality], params.tau) for modality, pool in pools.items()]
        return torch.stack(parts).mean()

    optimise(projector.parameters(), loss, steps=params.projector_steps, rate=params.learning_rate, decay=params.weight_decay)
    return projector.requires_grad_(False).eval()


def _hypernetwork(projector: Projector, pools: Mapping[str, Pool], params: Params) -> HyperNetwork:
    one = next(iter(pools.values()))
    network = HyperNetwork(projector, one.regions.shape[1], one.paired.shape[1], width=params.hyper_width, rank=params.rank, alpha=params.alpha,
                           tokens=params.tokens)
    modalities = list(pools.values())

    def loss() -> torch.Tensor:
        return torch.stack([_episode(network, projector, modalities[int(torch.randint(len(modalities), ()))], params)
                            for _ in range(params.episodes)]).mean()

    optimise(network.parameters(), loss, steps=params.hyper_steps, rate=params.hyper_learning_rate, decay=params.weight_decay)
    return network.requires_grad_(False).eval()


def _episode(network: HyperNetwork, projector: Projector, pool: Pool, params: Params) -> torch.Tensor:
    """Learn a made-up modality from one chunk of pairs, and be judged on other regions of it."""
    drawn = pool.draw(params.chunk + params.meta_batch)
    few, asked = drawn[:params.chunk], drawn[params.chunk:]
    if not len(asked):
        few = asked = drawn  # fewer regions than a chunk
    width = pool.regions.shape[1]
    rotation = random_rotation(width, params.rotation) if torch.rand(()) < params.rotated else torch.eye(width)
    adapters = network(pool.varied(few, params) @ rotation, pool.paired[few], pool.instruction)
    return pool.contrast(project(projector, adapters, pool.varied(asked, params) @ rotation), asked, params.tau)
