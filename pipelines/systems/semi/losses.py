"""SEMI's two losses. (DiceCE is written out here: importing MONAI takes longer than a whole fit.)"""

from __future__ import annotations

import torch
from torch.nn import functional


def region_infonce(regions: torch.Tensor, classes: torch.Tensor, texts: torch.Tensor, positive: torch.Tensor, tau: float) -> torch.Tensor:
    """Multi-positive contrast of regions against class prompts, classes weighted equally.

    For a region i of class c with embedding z_i, over the *distinct* texts j:
    `L_i = -1/|P(c)| * sum_{p in P(c)} log( exp(z_i.t_p / tau) / sum_j exp(z_i.t_j / tau) )`.

    regions: `(N, dim)`, unit length. classes: `(N,)`. texts: `(T, dim)`, unit length, distinct. positive: `(C, T)` boolean.
    The text-anchored contrast is the method's; several positives, and the mean over the classes at hand instead of over regions, are ours:
    healthy tissue would outvote a small lesion a hundred to one.
    """
    log_p = functional.log_softmax(regions @ texts.T / tau, dim=1)
    target = positive.to(log_p.dtype)
    target = target / target.sum(1, keepdim=True)
    loss = -(log_p * target[classes]).sum(1)
    counts = torch.bincount(classes, minlength=len(positive)).to(log_p.dtype)
    weights = 1 / counts[classes]
    return (loss * weights).sum() / weights.sum()


def dice_ce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Soft Dice of the foreground classes over the whole batch, plus cross-entropy. logits: `(N, 1 + K)`; labels: `(N,)`."""
    probabilities = logits.softmax(1)[:, 1:]
    truth = functional.one_hot(labels, logits.shape[1])[:, 1:].to(logits.dtype)
    overlap = 2 * (probabilities * truth).sum(0) + 1
    dice = overlap / (probabilities.sum(0) + truth.sum(0) + 1)
    return 1 - dice.mean() + functional.cross_entropy(logits, labels)
