"""SEMI's patches, some of which show a new modality alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.cohort import Case
from pipelines.systems.protocol import Task
from pipelines.systems.semi.batches import PatchSampler
from pipelines.systems.semi_hyper.params import Params


class Patches(PatchSampler):
    """Dropout alone leaves a single modality of five once in two thousand patches; a new one may come alone at test. Ours."""

    def __init__(self, support: Sequence[Case], task: Task, params: Params, source: Sequence[Case], new: Sequence[str]):
        super().__init__(support, task, params, source)
        self.new = torch.tensor([modality in new for modality in task.modalities])

    def _dropped(self, present: torch.Tensor) -> torch.Tensor:
        kept = super()._dropped(present)
        alone = present & self.new & (torch.rand(len(present), 1) < self.params.new_alone)
        return torch.where(alone.any(1, keepdim=True), alone, kept)
