"""The loss of EI + MoR, one softmax at a time.

The paper's: `CE(y) + sum CE(y_t) + 0.3 sum CE(aux_t) + 0.1 CE(router, argmin_t gap_t * CE_t)`. Its public code takes a softmax before a cross-entropy
that takes another; here every cross-entropy is given logits. How we read `gap_t`, which is ours: how much worse modality t's unimodal model does on
cases kept from it than on those it learned from, so that the router is not taught to trust what merely remembers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from pipelines.systems.ei_mor.network import Scores


def total(scores: Scores, truth: torch.Tensor, gaps: Mapping[str, float], auxiliary: float, routing: float) -> torch.Tensor:
    """The loss of a batch whose classes are `truth` `(B,)`."""
    own = {name: functional.cross_entropy(logits, truth, reduction="none") for name, logits in scores.own.items()}
    loss = functional.cross_entropy(scores.joint, truth) + sum(each.mean() for each in own.values())
    loss = loss + auxiliary * sum(functional.cross_entropy(logits, truth) for logits in scores.auxiliary.values())
    if scores.router is not None and len(own) > 1:
        best = torch.stack([gaps[name] * each.detach() for name, each in own.items()], 1).argmin(1)
        loss = loss + routing * functional.cross_entropy(scores.router, best)
    return loss
