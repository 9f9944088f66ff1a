"""How the next site is learned: by ITL, or by one of the baselines with the same network, the same patches and as many steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from pipelines.cohort import Case
from pipelines.systems.itl.losses import drawn_back, lwf_loss, site_loss
from pipelines.systems.itl.memory import Memory
from pipelines.systems.itl.network import Mixed, folded, frozen
from pipelines.systems.itl.params import Params
from pipelines.systems.protocol import Task
from pipelines.systems.semi.batches import Batch, PatchSampler
from pipelines.systems.semi.learning import loss_of, optimise, start_at_backbone, targets_of, train
from pipelines.systems.semi.model import Semi


def learn(before: Semi | None, memory: Memory, sampler: PatchSampler, cases: Sequence[Case], task: Task) -> Semi:
    """The network after `cases`, which `sampler` draws from, and the network `before` them. Torch's global generator is the randomness.

    `memory` is brought up to date.
    """
    params = sampler.params
    if before is None:
        network = train(sampler, cases, task, params)
    else:
        if params.method == "replay":
            sampler = memory.lend(sampler)
        network = _next(before, memory, sampler, cases, task)
    if params.method == "replay":
        memory.keep(sampler, params.replay_cases)
    if anchored(params):
        memory.measure(network, sampler, targets_of(task, cases, params), params)
    return network


def anchored(params: Params) -> float:
    """The weight of EWC's penalty."""
    return {"ewc": params.ewc, "itl": params.anchor}.get(params.method, 0.0)


def _next(before: Semi, memory: Memory, sampler: PatchSampler, cases: Sequence[Case], task: Task) -> Semi:
    """One-cycle training as at the first site, begun where `before` is; the running mean of the weights is kept."""
    params = sampler.params
    network = Mixed.after(before, params.new_share) if params.method == "itl" else copy.deepcopy(folded(before))
    _make_room(network, sampler, cases, task, params)
    mean = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(params.average))
    loss = _loss(network.train(), frozen(before), memory, memory.targets() | targets_of(task, cases, params), params)
    optimise(network.parameters(), lambda: loss(sampler.batch()), steps=params.steps, rate=params.next_rate, decay=params.weight_decay,
             after=lambda: mean.update_parameters(network))
    return mean.module.eval()


def _loss(network: Semi, before: Semi, memory: Memory, targets, params: Params) -> Callable[[Batch], torch.Tensor]:
    """The method's loss of a batch."""
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    own = {"itl": lambda batch: site_loss(network, before, batch, targets, params),
           "lwf": lambda batch: lwf_loss(network, before, batch, targets, params)}
    loss = own.get(params.method, lambda batch: loss_of(network, batch, targets, params))
    strength = anchored(params)
    return (lambda batch: loss(batch) + drawn_back(network, start, memory.fisher, strength)) if strength else loss


@torch.no_grad()
def _make_room(network: Semi, sampler: PatchSampler, cases: Sequence[Case], task: Task, params: Params) -> None:
    """Give a modality that no earlier site had its statistics and a projector at the backbone's alignment; the others stay as they are."""
    new = sampler.present() & ~network.trained
    if not new.any():
        return
    mean, sd = sampler.statistics()
    network.token_mean[new], network.token_sd[new] = mean[new], sd[new]
    network.trained |= new
    named = [modality for modality, is_new in zip(task.modalities, new.tolist(), strict=True) if is_new]
    if params.backbone_alignment:
        start_at_backbone(network, task, [case.only(named) for case in cases], params)
