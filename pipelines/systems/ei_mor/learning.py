"""Staged training: unimodal encoders first, then, with these frozen as references, all modalities together.

Every fusion begins its second stage from copies of the same unimodal encoders and runs it for as long, so that they differ in the fusion alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from pipelines.systems.ei_mor.cases import Group, batches
from pipelines.systems.ei_mor.losses import total
from pipelines.systems.ei_mor.network import Early, Unimodal
from pipelines.systems.ei_mor.params import Params
from pipelines.systems.reproducible import WARM_UP

#: How much worse on unseen cases a modality may count as, at most.
LARGEST_GAP = 5.0
#: Cases encoded together; bounds memory.
AT_ONCE = 32


def unimodal(network: Unimodal, groups: Sequence[Group], params: Params) -> dict[str, float]:
    """Train the encoders one by one in place. Returns each one's gap: its loss on cases kept from it over that on the cases it learned from."""
    gaps = {}
    for name in network.modalities:
        having = [group.of(name) for group in groups if name in group.images]
        rows = [torch.randperm(len(group)) for group in having]
        kept = [round(params.held_out * len(group)) for group in having]
        lessons = [group.part(order[count:]) for group, order, count in zip(having, rows, kept, strict=True)]
        exam = [group.part(order[:count]) for group, order, count in zip(having, rows, kept, strict=True) if count]
        parts = nn.ModuleList([network.towers[name], network.heads[name], network.auxiliary[name]])
        _descend(parts, lessons, params, params.epochs, lambda group: total(network(group.images), group.truth, {}, params.auxiliary, 0))
        gaps[name] = _gap(network, lessons, exam)
    return gaps


def references(network: Unimodal, group: Group) -> dict[str, torch.Tensor]:
    """Class tokens `(N, ways, dim)` of the frozen encoders, of the images in every way they are seen."""
    network.eval()
    ways = [group.turned(way) for way in range(group.ways)]
    with torch.no_grad():
        return {name: torch.stack([torch.cat([network.encode(name, part)[0] for part in way.images[name].split(AT_ONCE)]) for way in ways], 1)
                for name in group.images}


def jointly(network: Unimodal, groups: Sequence[Group], params: Params, gaps: dict[str, float]) -> None:
    """Train a fusion in place; where it wants references, the groups have them."""
    if isinstance(network, Early):
        network.look_at([group.references for group in groups])
    _descend(network, groups, params, params.joint_epochs,
             lambda group: total(network(group.images, group.references), group.truth, gaps, params.auxiliary, params.routing))


def _descend(network: nn.Module, groups: Sequence[Group], params: Params, epochs: int, loss_of: Callable[[Group], torch.Tensor]) -> None:
    learning = [part for part in network.parameters() if part.requires_grad]
    optimiser = torch.optim.AdamW(learning, params.rate, weight_decay=params.weight_decay)
    each = sum(-(-len(group) // params.batch) for group in groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, params.rate, total_steps=epochs * each + 1, pct_start=WARM_UP)
    network.train()
    for _ in range(epochs):
        for index, rows in batches(groups, params.batch):
            optimiser.zero_grad(set_to_none=True)
            group = groups[index].part(rows)
            loss_of(group.turned(torch.randint(group.ways, (len(group),)))).backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimiser.step()
            schedule.step()
    network.eval()


def _gap(network: Unimodal, lessons: Sequence[Group], exam: Sequence[Group]) -> float:
    if not exam:
        return 1.0
    with torch.inference_mode():
        learned, unseen = (torch.cat([functional.cross_entropy(network(group.turned(0).images).joint, group.truth, reduction="none")
                                      for group in some]).mean().item() for some in (lessons, exam))
    return min(max(unseen / max(learned, 1e-3), 1.0), LARGEST_GAP)
