"""Class vectors that are learned through the text tower, or, where it is a black box, learned themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from pipelines.systems.baselines.cellwise import BACKGROUND, prompts_of
from pipelines.systems.baselines.coop.params import Params
from pipelines.systems.protocol import Task

#: Spread of the context's start, the paper's.
CONTEXT_SD = 0.02


class Classifier(nn.Module):
    """Similarity of positions in text space to class vectors `(M, 1 + K, dim)`, averaged over modalities, with a scale for each and an offset."""

    def __init__(self, modalities: int, classes: int, key_width: int, tau: float):
        super().__init__()
        self.tau = tau
        self.register_buffer("vectors", torch.zeros(modalities, classes, key_width))
        self.log_scale = nn.Parameter(torch.zeros(modalities))
        self.offset = nn.Parameter(torch.zeros(classes))

    def forward(self, features: torch.Tensor, vectors: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `(N, 1 + K)` of features `(N, M, W)` as in `cellwise.PositionFeatures`."""
        vectors = self.vectors if vectors is None else vectors
        share = features[..., -1:] * self.log_scale.exp()[:, None]
        similarity = torch.einsum("nmd,mcd->nmc", features[..., :vectors.shape[-1]], vectors) / self.tau
        return (similarity * share).sum(1) / features[..., -1:].sum(1).clamp_min(1) + self.offset


class LearnedContext(nn.Module):
    """CoOp itself: words of no language before each class's text, which go through the frozen text tower."""

    def __init__(self, task: Task, sites: Sequence[str], params: Params):
        super().__init__()
        names = (BACKGROUND, *task.labels)
        self.encode, self.shape = task.backbone.encode_text_with_context, (len(task.modalities), len(names))
        self.texts = [_shortest(task, modality, name, sites) for modality in task.modalities for name in names]
        own = len(names) if params.class_specific else 1
        self.context = nn.Parameter(CONTEXT_SD * torch.randn(len(task.modalities), own, params.context, task.backbone.dim))

    def forward(self) -> torch.Tensor:
        context = self.context.expand(*self.shape, -1, -1).flatten(0, 1)
        return self.encode(self.texts, context).unflatten(0, self.shape)


class LearnedVectors(nn.Module):
    """The class vectors themselves, moved from where the prompts put them (TaskRes, Yu et al., CVPR 2023): for text towers that read texts only."""

    def __init__(self, task: Task, sites: Sequence[str], _params: Params):
        super().__init__()
        vectors = [sum(torch.from_numpy(prompts_of(task, modality, site)) for site in sites) for modality in task.modalities]
        self.register_buffer("start", functional.normalize(torch.stack(vectors), dim=-1))
        self.moved = nn.Parameter(torch.zeros_like(self.start))

    def forward(self) -> torch.Tensor:
        return functional.normalize(self.start + self.moved, dim=-1)


def learned_vectors(task: Task, sites: Sequence[str], params: Params) -> nn.Module:
    """What gives the class vectors `(M, 1 + K, dim)` during training, as far as the backbone's text tower allows."""
    return (LearnedContext if hasattr(task.backbone, "encode_text_with_context") else LearnedVectors)(task, sites, params)


def _shortest(task: Task, modality: str, name: str, sites: Sequence[str]) -> str:
    """The plainest phrasing of a class: what comes before the name is to be learned."""
    return min((text for site in sites for text in task.prompts.phrasings[modality][name][site]), key=lambda text: (len(text), text))
