"""What the projector is aligned with: the vectors of class prompts, or, as controls, vectors without language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.prompts.bank import BACKGROUND_CLASSES
from pipelines.systems.protocol import Task

#: The control's vectors are the same for every fit: what is compared is language against none, not one draw against another.
CONTROL_SEED = 7


@dataclass(frozen=True)
class TextTargets:
    """The distinct texts of one modality: unit `vectors` `(N, dim)`, and `positive` `(C, N)`, true where a text names the class."""

    vectors: np.ndarray
    positive: np.ndarray


def class_names(task: Task) -> tuple[str, ...]:
    """Classes of a region, in the order of every array here: the labels, then healthy tissue, then outside the head."""
    return (*task.labels, *BACKGROUND_CLASSES)


def text_targets(task: Task, modality: str, sites: Sequence[str], kind: str) -> TextTargets:
    """Every phrasing of every class of one modality at these sites, each distinct text once."""
    names = class_names(task)
    if kind != "prompts":
        return TextTargets(_control(task, modality, kind), np.eye(len(names), dtype=bool))
    texts = [{text for site in sites for text in task.prompts.phrasings[modality][name][site]} for name in names]
    distinct = sorted(set().union(*texts))
    vectors = np.stack([task.prompts.vectors[text] for text in distinct]).astype(np.float32)
    return TextTargets(vectors, np.array([[text in own for text in distinct] for own in texts]))


def class_vectors(task: Task, modality: str, site: str, kind: str) -> np.ndarray:
    """One unit vector a class, `(C, dim)`, for the similarity maps."""
    if kind != "prompts":
        return _control(task, modality, kind)
    return np.stack([task.prompts.embedding(modality, name, site) for name in class_names(task)])


def _control(task: Task, modality: str, kind: str) -> np.ndarray:
    """Vectors without language, `(C, dim)`: axes of the space, the same for every modality, or random orthonormal ones per modality."""
    count, dim = len(class_names(task)), task.backbone.dim
    if kind == "one-hot":
        return np.eye(count, dim, dtype=np.float32)
    generator = np.random.default_rng([CONTROL_SEED, task.modalities.index(modality)])
    return np.linalg.qr(generator.normal(size=(dim, count)))[0].T.astype(np.float32)
