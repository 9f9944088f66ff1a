"""Cases as the networks take them: slices, which modalities there are, and the answer. Grouped so that a batch's cases have the same modalities."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from pipelines.backbones.vit.frames import slices_of
from pipelines.cohort import Case
from pipelines.errors import DataError

#: Images whose tokens a process keeps, 100 kB each a slice; and the tokens, the oldest first.
MOST_KEPT = 2000
_kept: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()


@dataclass(frozen=True)
class Group:
    """Cases that have the same modalities: `images` modality -> `(N, 2, slices, tokens, dim)`, `truth` `(N,)`, -1 where it is not known.

    Images are what enters the transformer's first block, as they are and mirrored; once one of both is chosen (`turned`), `(N, slices, tokens, dim)`.
    `references`: modality -> class tokens of a frozen encoder, `(N, 2, dim)`, then `(N, dim)`.
    """

    images: dict[str, torch.Tensor]
    truth: torch.Tensor
    references: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.truth)

    def part(self, rows: torch.Tensor) -> Group:
        return Group({name: values[rows] for name, values in self.images.items()}, self.truth[rows],
                     {name: values[rows] for name, values in self.references.items()})

    def of(self, name: str) -> Group:
        return Group({name: self.images[name]}, self.truth)

    def turned(self, which: torch.Tensor) -> Group:
        """The cases as they are, or mirrored where `which` `(N,)` is true."""
        rows, way = torch.arange(len(self)), which.long()
        return Group({name: values[rows, way] for name, values in self.images.items()}, self.truth,
                     {name: values[rows, way] for name, values in self.references.items()})


def embedded(case: Case, name: str, slices: int, vit: nn.Module) -> torch.Tensor:
    """`(2, slices, tokens, dim)` of one image, as it is and mirrored left for right (rows of the stages' arrays run from side to side).

    Kept for the process's further fits, which look at the same images; never to be changed in place.
    """
    seen = slices_of(case, name, slices, vit.size)
    key = vit.fingerprint, hashlib.sha256(seen.numpy().tobytes()).hexdigest()
    if key not in _kept:
        with torch.no_grad():
            _kept[key] = torch.stack([vit.embed(seen), vit.embed(seen.flip(-2))])
        if len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    return _kept[key]


def groups_of(cases: Sequence[Case], modalities: Sequence[str], outcomes: Sequence[str], slices: int, vit: nn.Module) -> list[Group]:
    """The cases by the modalities they have. Raises `DataError` for one that has none of them."""
    by_pattern: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        pattern = tuple(name for name in modalities if name in case.images)
        if not pattern:
            raise DataError(f"{case.id} has none of the modalities {', '.join(modalities)}; give the experiment one that every case has")
        by_pattern.setdefault(pattern, []).append(case)
    return [Group({name: torch.stack([embedded(case, name, slices, vit) for case in some]) for name in pattern},
                  torch.tensor([outcomes.index(case.outcome) if case.outcome in outcomes else -1 for case in some]))
            for pattern, some in by_pattern.items()]


def batches(groups: Sequence[Group], size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Every case once, in random order: the group's index and its rows. Uses torch's global generator, which the caller seeds."""
    parts = [(index, rows) for index, group in enumerate(groups) for rows in torch.randperm(len(group)).split(size)]
    for position in torch.randperm(len(parts)).tolist():
        yield parts[position]
