"""Class vectors that are learned through the text tower, or, where it is a black box, learned themselves.

Learned words before a class's text are CoOp's (Zhou et al., IJCV 2022), vectors moved from where the prompts put them are TaskRes's (Yu et al.,
CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from pipelines.systems.protocol import Task

#: Spread of the context's start, CoOp's.
CONTEXT_SD = 0.02


class LearnedContext(nn.Module):
    """`words` of no language before each class's plainest text, which go through the frozen text tower."""

    def __init__(self, task: Task, names: Sequence[str], sites: Sequence[str], *, words: int, class_specific: bool = True):
        super().__init__()
        self.encode, self.shape = task.backbone.encode_text_with_context, (len(task.modalities), len(names))
        self.texts = [_shortest(task, modality, name, sites) for modality in task.modalities for name in names]
        own = len(names) if class_specific else 1
        self.context = nn.Parameter(CONTEXT_SD * torch.randn(len(task.modalities), own, words, task.backbone.dim))

    def forward(self) -> torch.Tensor:
        """`(M, C, dim)`, unit length."""
        context = self.context.expand(*self.shape, -1, -1).flatten(0, 1)
        return self.encode(self.texts, context).unflatten(0, self.shape)


class LearnedVectors(nn.Module):
    """The class vectors themselves: for text towers that read texts only."""

    def __init__(self, task: Task, names: Sequence[str], sites: Sequence[str]):
        super().__init__()
        vectors = [[sum(torch.from_numpy(task.prompts.embedding(modality, name, site)) for site in sites) for name in names]
                   for modality in task.modalities]
        self.register_buffer("start", functional.normalize(torch.stack([torch.stack(of_one) for of_one in vectors]), dim=-1))
        self.moved = nn.Parameter(torch.zeros_like(self.start))

    def forward(self) -> torch.Tensor:
        """`(M, C, dim)`, unit length."""
        return functional.normalize(self.start + self.moved, dim=-1)


def learned_vectors(task: Task, names: Sequence[str], sites: Sequence[str], *, words: int, class_specific: bool = True) -> nn.Module:
    """What gives the class vectors `(M, C, dim)` during training, as far as the backbone's text tower allows."""
    if hasattr(task.backbone, "encode_text_with_context"):
        return LearnedContext(task, names, sites, words=words, class_specific=class_specific)
    return LearnedVectors(task, names, sites)


def _shortest(task: Task, modality: str, name: str, sites: Sequence[str]) -> str:
    """The plainest phrasing of a class: what comes before the name is to be learned."""
    return min((text for site in sites for text in task.prompts.phrasings[modality][name][site]), key=lambda text: (len(text), text))
