"""The projector of a new modality, learned from a handful of pairs in each of the ways that are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import nn

from pipelines.systems.semi.learning import optimise
from pipelines.systems.semi.model import Projector
from pipelines.systems.semi_hyper.adapters import LowRank, merge, project
from pipelines.systems.semi_hyper.meta import Meta, generate
from pipelines.systems.semi_hyper.pairs import Pool
from pipelines.systems.semi_hyper.params import Params


def needs_hypernetwork(params: Params) -> bool:
    return params.arm.startswith("generated")


def new_projector(meta: Meta, pool: Pool, params: Params, backbone_pairs: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> Projector:
    """The projector of a new modality whose handful of pairs is `pool`. Torch's global generator is the randomness.

    `backbone_pairs` gives the modality's tokens and the backbone's own alignment of them; only `aligned` asks.

    - `shared`: the known modalities' projector as it is.
    - `generated`: with the hypernetwork's adapters merged in. `generated-finetuned`: that, then fine-tuned as a whole (both the paper's).
    - `lora`: adapters of the same rank that start at zero and alone are fine-tuned.
    - `scratch`: a random projector, all of it trained. `aligned`: one that starts at the backbone's own alignment (as SEMI 1a's do).
    """
    projector = copy.deepcopy(meta.projector).requires_grad_(True)
    if params.arm == "shared":
        return projector
    if params.arm.startswith("generated"):
        merge(projector, generate(meta, pool, params))
        if params.arm == "generated":
            return projector
    if params.arm == "lora":
        low = LowRank(projector, params.rank, params.alpha)
        _finetune(low.parameters(), lambda regions: project(meta.projector, low.adapters(), regions), pool, params)
        merge(projector, low.adapters())
        return projector
    if params.arm in ("scratch", "aligned"):
        projector = Projector(pool.regions.shape[1], params.projector_width, pool.paired.shape[1])
    if params.arm == "aligned":
        projector.start_at(*backbone_pairs())
    _finetune(projector.parameters(), projector, pool, params)
    return projector


def _finetune(parameters: Iterable[nn.Parameter], forward: Callable[[torch.Tensor], torch.Tensor], pool: Pool, params: Params) -> None:
    """The same steps on the same pairs, whatever is trained."""
    everything = torch.arange(len(pool.classes))

    def loss() -> torch.Tensor:
        return pool.contrast(forward(pool.varied(everything, params)), everything, params.tau)

    optimise(parameters, loss, steps=params.finetune_steps, rate=params.finetune_learning_rate, decay=params.weight_decay)
