"""What a system is: something that learns from a few labelled cases and predicts, for another case, label probabilities or the class of the whole.

A new system is one folder with `params.py` (a light pydantic model called `Params`) and `system.py` (a class called `System`),
and one line in `pipelines.systems.REGISTRY`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from pipelines.backbones.protocol import Backbone
from pipelines.cohort import Case
from pipelines.prompts.bank import PromptBank


@dataclass(frozen=True)
class Task:
    """What is to be learned, the same for every system."""

    labels: tuple[str, ...]  # target classes; class i has value i + 1 in a label volume
    modalities: tuple[str, ...]  # every modality that may occur, in a fixed order; any may be missing for a case
    prompts: PromptBank  # text embeddings per modality x class x site, from the frozen text encoder
    backbone: Backbone
    outcomes: tuple[str, ...] = ()  # classes of a whole case; empty where the cohort has none


class FewShotSystem(Protocol):
    """Learns from support cases. Deterministic per seed; temperature scaling and calibration are the train stage's, not its own."""

    uses_tokens: bool  # whether it reads Case.token_levels, so that prediction on a new study knows to encode it

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        """Learn from `support` (each with a label). `source`: labelled cases of other sites, under the transfer protocol; `support` is then the
        site that counts, and may be empty."""

    def predict(self, task: Task, case: Case) -> np.ndarray:
        """Probabilities `(1 + len(task.labels), S, H, W)` float32 summing to 1; channel 0 is background."""

    def save(self, folder: Path) -> None:
        """Write what `load` needs (safetensors and JSON, or skops for scikit-learn; never pickle)."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""


class CaseClassifier(Protocol):
    """As `FewShotSystem`, but what it learns and says is the outcome of a whole case (`Case.outcome`, `Task.outcomes`). It says so by `answers`."""

    answers: Literal["case"]  # a system without it answers "voxels"
    uses_tokens: bool

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        """Learn from cases with an outcome. Under transfer without shots, `support` is empty and `source` teaches."""

    def predict(self, task: Task, case: Case) -> np.ndarray:
        """Probabilities `(len(task.outcomes),)` float32 summing to 1."""

    def save(self, folder: Path) -> None:
        """As `FewShotSystem.save`."""

    def load(self, folder: Path) -> None:
        """As `FewShotSystem.load`."""
