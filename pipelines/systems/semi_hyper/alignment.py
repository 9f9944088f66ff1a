"""How well a projector puts the regions of one image beside the right words, without any decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.cohort import Case
from pipelines.systems.protocol import Task
from pipelines.systems.semi.model import Semi
from pipelines.systems.semi.texts import class_vectors
from pipelines.systems.semi_hyper.pairs import image_regions
from pipelines.systems.semi_hyper.params import Params


def retrieval(vectors: torch.Tensor, classes: torch.Tensor, texts: torch.Tensor) -> float:
    """Share of regions whose nearest class vector is their own class's, averaged over the classes at hand (chance: 1 / number of texts).

    vectors: `(N, dim)`; classes: `(N,)`; texts: `(C, dim)`.
    """
    right = (vectors @ texts.T).argmax(1) == classes
    return float(torch.stack([right[classes == name].float().mean() for name in classes.unique()]).mean())


def region_accuracy(networks: Sequence[Semi], case: Case, modality: str, task: Task, params: Params) -> list[float]:
    """`retrieval` of every region of one image by each of several fitted systems' networks."""
    m = task.modalities.index(modality)
    tokens, classes = image_regions(case, modality, task, params)
    texts = torch.from_numpy(class_vectors(task, modality, case.site, params.text))
    with torch.inference_mode():
        return [retrieval(network.projectors[m]((tokens.float() - network.token_mean[m]) / network.token_sd[m]), classes, texts)
                for network in networks]
