"""The training loop of the networks that see images, and what they learned from other sites, kept for the next fit."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn

from pipelines.cohort import Case
from pipelines.systems.baselines.identity import case_key
from pipelines.systems.baselines.unet.batches import PatchSampler
from pipelines.systems.baselines.unet.params import Params
from pipelines.systems.lean import load_monai
from pipelines.systems.reproducible import WARM_UP

#: Networks trained on other sites that a process keeps: fits of 0, 1 and 4 shots share one.
KEPT = 4


def train(network: nn.Module, sampler: PatchSampler, params: Params, steps: int, learning_rate: float) -> nn.Module:
    """Train in place with DiceCE, AdamW and one cycle of the learning rate; returns a copy with the running mean of the weights.

    Randomness is torch's global generator, which the caller seeds.
    """
    load_monai()
    from monai.losses import DiceCELoss

    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    mean = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(params.average))
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=params.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=WARM_UP)
    network.train()
    for _ in range(steps):
        images, labels = sampler.batch()
        optimiser.zero_grad(set_to_none=True)
        loss(network(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        mean.update_parameters(network)
    return mean.module.eval()


class SourceModels:
    """Networks trained on source cases, by everything their weights depend on. The cases are kept with them, so that a key stays theirs alone."""

    def __init__(self) -> None:
        self._held: OrderedDict[Hashable, tuple[tuple[Case, ...], nn.Module]] = OrderedDict()

    def get(self, key: Hashable, source: Sequence[Case], make: Callable[[], nn.Module]) -> nn.Module:
        """A copy of the network of this key and these very cases, made if it is not there."""
        whole = (key, *(case_key(case) for case in source))
        if whole not in self._held:
            self._held[whole] = (tuple(source), make())
        self._held.move_to_end(whole)
        while len(self._held) > KEPT:
            self._held.popitem(last=False)
        return copy.deepcopy(self._held[whole][1])


SOURCE_MODELS = SourceModels()
