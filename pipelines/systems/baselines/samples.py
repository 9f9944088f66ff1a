"""The voxels that a classifier of single voxels learns from: as many of each class, and who is left out to judge its settings.

Under the transfer protocol the support and the source cases are drawn from alike, and each half has half the say of every class that both show,
however many more cases the source has: the support is the site that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pipelines.cohort import Case

#: At most so many fits a setting when settings are compared.
FOLDS = 5
#: The features of a case's foreground voxels, of which rows are taken.
FeaturesOf = Callable[[Case], np.ndarray]


@dataclass(frozen=True)
class Samples:
    """N labelled voxels."""

    features: np.ndarray  # (N, F) float16, so that they are the same after they were saved
    labels: np.ndarray  # (N,)
    weights: np.ndarray  # (N,), 1 where there is no source
    case: np.ndarray  # (N,): number of the case; support first
    slices: np.ndarray  # (N,): slice in its case
    target: np.ndarray  # (N,): whether the case is of the support

    def part(self, chosen: np.ndarray) -> Samples:
        """Some of them."""
        return Samples(*(getattr(self, entry.name)[chosen] for entry in fields(self)))


def balanced(cases: Sequence[Case], features_of: FeaturesOf, generator: np.random.Generator, *, targets: int, classes: int, per_class: int
             ) -> tuple[Samples, np.ndarray]:
    """`per_class` voxels of each class from the first `targets` cases together, and as many from the others; and the classes' frequencies.

    A case's share of a class is in proportion to how much of the class it has. Frequencies `(classes,)` are those inside the foreground, the mean
    of both groups where there are two; 0 for a class that nobody shows.
    """
    truths = [case.label()[case.foreground()] for case in cases]
    groups = [group for group in (range(targets), range(targets, len(cases))) if len(group)]
    totals = [np.bincount(np.concatenate([truths[number] for number in group]), minlength=classes) for group in groups]
    parts = []
    for group, total in zip(groups, totals, strict=True):
        for number in group:
            chosen = np.sort(np.concatenate([share(generator, truths[number], value, total[value], per_class) for value in range(classes)]))
            parts.append(_samples(cases[number], features_of, truths[number], chosen, (number, number < targets)))
    frequencies = np.mean([total / total.sum() for total in totals], axis=0)
    return _weighted(_joined(parts)), frequencies


def share(generator: np.random.Generator, truth: np.ndarray, value: int, total: int, per_class: int) -> np.ndarray:
    """A case's share of a class's `per_class` voxels, in proportion to how many of the class's `total` voxels it has."""
    where = np.flatnonzero(truth == value)
    return generator.choice(where, min(len(where), round(per_class * len(where) / total)) if total else 0, replace=False)


def scattered(cases: Sequence[Case], features_of: FeaturesOf, generator: np.random.Generator, *, targets: int, per_case: int) -> Samples:
    """`per_case` voxels anywhere in the foreground of the cases that settings are judged on: on them Dice means what it means on the whole case."""
    parts = []
    for number in judges(targets, len(cases)):
        truth = cases[number].label()[cases[number].foreground()]
        chosen = np.sort(generator.choice(len(truth), min(per_case, len(truth)), replace=False))
        parts.append(_samples(cases[number], features_of, truth, chosen, (number, number < targets)))
    return _joined(parts)


def judges(targets: int, cases: int) -> list[int]:
    """Numbers of the cases that settings are judged on: the support, or without one a few of the source."""
    return list(range(targets)) if targets else list(np.unique(np.linspace(0, cases - 1, FOLDS).round().astype(int)))


def folds(lessons: Samples, judged: Samples) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Masks of what is learned from and what is judged: a case is left out at a time (groups of cases where there are many).

    A single case is cut into blocks of neighbouring slices that hold about as much of it, and each is left out.
    """
    numbers = np.unique(judged.case)
    if len(numbers) > 1:
        for group in np.array_split(numbers, min(FOLDS, len(numbers))):
            yield ~np.isin(lessons.case, group), np.isin(judged.case, group)
        return
    lesion = judged.slices[judged.labels > 0]
    edges = np.unique(np.quantile(lesion if len(lesion) else judged.slices, np.linspace(0, 1, FOLDS)[1:-1]))
    blocks = [np.searchsorted(edges, samples.slices, side="right") for samples in (lessons, judged)]
    for block in np.unique(blocks[1]):
        yield (lessons.case != numbers[0]) | (blocks[0] != block), blocks[1] == block


def save_samples(path: Path, samples: Samples) -> None:
    """Write them as safetensors."""
    from safetensors.numpy import save_file

    save_file({entry.name: np.ascontiguousarray(getattr(samples, entry.name)) for entry in fields(samples)}, path)


def load_samples(path: Path) -> Samples:
    """What `save_samples` wrote."""
    from safetensors.numpy import load_file

    return Samples(**load_file(path))


def sampled_dice(truth: np.ndarray, predicted: np.ndarray, labels: int) -> float:
    """Dice on sampled voxels, averaged over the labels that they show; NaN where they show none."""
    values = [2 * ((truth == value) & (predicted == value)).sum() / ((truth == value).sum() + (predicted == value).sum())
              for value in range(1, labels + 1) if (truth == value).any()]
    return float(np.mean(values)) if values else float("nan")


def _samples(case: Case, features_of: FeaturesOf, truth: np.ndarray, chosen: np.ndarray, whose: tuple[int, bool]) -> Samples:
    number, target = whose
    features = np.asarray(features_of(case)[chosen], np.float16)
    return Samples(features, truth[chosen].astype(np.int64), np.ones(len(chosen)), np.full(len(chosen), number),
                   np.nonzero(case.foreground())[0][chosen], np.full(len(chosen), target))


def _joined(parts: Sequence[Samples]) -> Samples:
    return Samples(*(np.concatenate([getattr(part, entry.name) for part in parts]) for entry in fields(Samples)))


def _weighted(samples: Samples) -> Samples:
    """Half the say of a class to each group that shows it."""
    weights = samples.weights.copy()
    for value in np.unique(samples.labels):
        groups = [(samples.labels == value) & (samples.target == target) for target in (True, False)]
        if all(group.any() for group in groups):
            for group in groups:
                weights[group] = sum(other.sum() for other in groups) / (2 * group.sum())
    return Samples(samples.features, samples.labels, weights, samples.case, samples.slices, samples.target)
