"""Adapters of the linear layers of a frozen transformer, in the manner of peft: MoR, and LoRA with as many trainable numbers.

The paper's (arXiv 2603.17514): MoR adds `sum_k w_k(x) * (alpha_k / r_k) * B_k A_k x` to a layer's answer, for ranks 2, 4 and 8, with w a softmax of
a linear map of the token over four slots, the first of which adds nothing; A begins as Kaiming has it and B at zero, so that an adapted model
begins as the model it adapts. Ours: LoRA's ranks are chosen so that both have the same number of trainable values (the paper compares at its own
settings).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

#: LoRA's alpha over its rank; that of every slot of MoR is the same.
LORA_SCALE = 2.0


class MoR(nn.Module):
    """A frozen linear layer with a mixture of adapters of low, varied ranks."""

    def __init__(self, base: nn.Linear, ranks: Sequence[int] = (2, 4, 8), alphas: Sequence[float] = (4.0, 8.0, 16.0)):
        super().__init__()
        self.base, self.ranks = base, tuple(ranks)
        self.down = nn.Parameter(torch.empty(sum(ranks), base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, sum(ranks)))
        self.router = nn.Linear(base.in_features, 1 + len(ranks))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # its bound looks at the inputs alone, so the ranks may be drawn as one
        scales = [torch.full((rank,), alpha / rank) for rank, alpha in zip(ranks, alphas, strict=True)]
        self.register_buffer("scale", torch.cat(scales), persistent=False)
        self.register_buffer("slot", torch.repeat_interleave(torch.arange(len(ranks)) + 1, torch.tensor(ranks)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.router(x).softmax(-1)[..., self.slot]  # slot 0 is the bypass
        return self.base(x) + (x @ self.down.T * (weight * self.scale)) @ self.up.T


class LoRA(nn.Module):
    """A frozen linear layer with one adapter of low rank (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + LORA_SCALE * (x @ self.down.T) @ self.up.T


def attach(model: nn.Module, targets: Sequence[str], adapter: Literal["mor", "lora"] = "mor", *, ranks: Sequence[int] = (2, 4, 8),
           alphas: Sequence[float] = (4.0, 8.0, 16.0)) -> list[str]:
    """Wrap in place every linear layer of `model` whose name ends with one of `targets`, and freeze the rest. Returns the names of those wrapped.

    Raises `ValueError` where no layer has such a name.
    """
    model.requires_grad_(False)
    found = {name: layer for name, layer in model.named_modules()
             if isinstance(layer, nn.Linear) and any(name == target or name.endswith(f".{target}") for target in targets)}
    if not found:
        raise ValueError(f"no linear layer is called {' or '.join(targets)}; the model's are named like {next(iter(model.named_modules()))[0]!r}")
    lora = dict(zip(found, lora_ranks(list(found.values()), ranks), strict=True))
    for name, layer in found.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, MoR(layer, ranks, alphas) if adapter == "mor" else LoRA(layer, lora[name]))
    return list(found)


def lora_ranks(layers: Sequence[nn.Linear], ranks: Sequence[int]) -> list[int]:
    """The rank of each layer's LoRA with which all together have as many trainable values as MoR with `ranks`, to within half of one more."""
    sizes = [layer.in_features + layer.out_features for layer in layers]
    routers = [(1 + len(ranks)) * (layer.in_features + 1) for layer in layers]
    extra, found = 0.0, []
    for size, router in zip(sizes, routers, strict=True):  # what one layer's rank rounds away, the next one gets
        wanted = sum(ranks) + (router + extra) / size
        found.append(max(1, round(wanted)))
        extra = (wanted - found[-1]) * size
    return found


def tower(model: nn.Module, adapter: Literal["mor", "lora"], **settings) -> nn.Module:
    """An adapted copy of a transformer that shares its frozen weights."""
    own = copy.deepcopy(model, {id(part): part for part in (*model.parameters(), *model.buffers())})
    attach(own, model.targets, adapter, **settings)
    return own


def trainable(model: nn.Module) -> int:
    """The number of values of a model that training changes."""
    return sum(part.numel() for part in model.parameters() if part.requires_grad)
