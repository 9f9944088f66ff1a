"""The cache of Tip-Adapter: keys, one-hot values, and the training of the keys."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from pipelines.systems.baselines.cellwise import some_dropped
from pipelines.systems.baselines.tip_adapter.params import Params


class Cache(nn.Module):
    """`keys` `(M, n, D)` of n support positions in M modalities, and what classes they vote for, `values` `(M, n, 1 + K)`."""

    def __init__(self, modalities: int, classes: int, key_width: int, keys: int, *, tau: float, centred: bool):
        super().__init__()
        self.width, self.tau, self.centred = key_width, tau, centred
        self.keys = nn.Parameter(torch.zeros(modalities, keys, key_width))
        self.register_buffer("values", torch.zeros(modalities, keys, classes))
        self.register_buffer("mean", torch.zeros(modalities, key_width))
        self.register_buffer("sd", torch.ones(modalities, key_width))

    def queries(self, features: torch.Tensor) -> torch.Tensor:
        """Unit vectors `(N, M, D)`; tokens are standardised first, because their channels differ in size."""
        key = features[..., :self.width]
        return functional.normalize((key - self.mean) / self.sd if self.centred else key, dim=-1)

    def forward(self, features: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
        """Logits `(N, 1 + K)` of features `(N, M, W)` as in `cellwise.PositionFeatures`, averaged over the modalities present."""
        similarity, present = features[..., self.width:-1] / self.tau, features[..., -1:]
        affinity = (beta * (torch.einsum("nmd,mkd->nmk", self.queries(features), functional.normalize(self.keys, dim=-1)) - 1)).exp()
        logits = alpha * torch.einsum("nmk,mkc->nmc", affinity, self.values) + similarity
        return (logits * present).sum(1) / present.sum(1).clamp_min(1)


def fill(features: torch.Tensor, labels: torch.Tensor, shape: dict[str, int], params: Params) -> Cache:
    """A cache of some positions of each class, drawn with torch's global generator, equally many of each class where it has them."""
    chosen = torch.cat([where[torch.randperm(len(where))[:params.keys_per_class]]
                        for where in (torch.nonzero(labels == value)[:, 0] for value in range(shape["classes"]))])
    cache = Cache(**shape, keys=len(chosen), tau=params.tau, centred=params.space == "tokens")
    present = features[..., -1]
    for m in range(shape["modalities"]):
        own = features[present[:, m] > 0, m, :cache.width]
        if len(own) > 1:
            cache.mean[m], cache.sd[m] = own.mean(0), own.std(0).clamp_min(1e-3)
    votes = functional.one_hot(labels[chosen], shape["classes"]).float()[None] * present[chosen].T[..., None]
    cache.values.copy_(votes / votes.sum(1, keepdim=True).clamp_min(1))
    with torch.no_grad():
        cache.keys.copy_(cache.queries(features[chosen]).transpose(0, 1))
    return cache


def fine_tune(cache: Cache, features: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, params: Params) -> None:
    """Train the keys with cross-entropy (AdamW, cosine schedule, as the paper does), modalities dropped at random."""
    optimiser = torch.optim.AdamW([cache.keys], params.learning_rate, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, params.steps)
    for _ in range(params.steps):
        chosen = torch.randint(len(labels), (params.batch,))
        batch = some_dropped(features[chosen], params.modality_dropout)
        loss = functional.cross_entropy(cache(batch, params.trained_alpha, params.trained_beta), labels[chosen], reduction="none")
        optimiser.zero_grad(set_to_none=True)
        (loss * weights[chosen]).mean().backward()
        optimiser.step()
        schedule.step()
