"""Cases as the networks take them: slices, which modalities there are, and the answer. Grouped so that a batch's cases have the same modalities."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from pipelines.backbones.vit.frames import slices_of
from pipelines.cohort import Case
from pipelines.errors import DataError

#: How far an image is turned, scaled and moved (as a share of the frame) to be seen in another way.
DEGREES, ZOOM, SHIFT = 15.0, 0.1, 0.03
#: Images whose tokens a process keeps, 200 kB each a slice in eight ways; and the tokens, the oldest first.
MOST_KEPT = 2000
_kept: OrderedDict[tuple[str, str, str, int], torch.Tensor] = OrderedDict()


@dataclass(frozen=True)
class Group:
    """Cases that have the same modalities: `images` modality -> `(N, ways, slices, tokens, dim)`, `truth` `(N,)`, -1 where it is not known.

    Images are what enters the transformer's first block, in each of the ways they are seen (`ways_of`); once one is chosen (`turned`), `(N, slices,
    tokens, dim)`. `references`: modality -> class tokens of a frozen encoder, `(N, ways, dim)`, then `(N, dim)`.
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

    @property
    def ways(self) -> int:
        return next(iter(self.images.values())).shape[1]

    def turned(self, way: torch.Tensor | int) -> Group:
        """The cases, each in the one way that `way` `(N,)` has for it; or all in the same."""
        rows = torch.arange(len(self))
        return Group({name: values[rows, way] for name, values in self.images.items()}, self.truth,
                     {name: values[rows, way] for name, values in self.references.items()})


def ways_of(seen: torch.Tensor, case: str, count: int) -> list[torch.Tensor]:
    """Slices `(slices, size, size)` in `count` ways: as they are, mirrored left for right (rows of the stages' arrays run from side to side), and
    from then on laid in the eight ways of a square, turned, scaled and moved a little. All images of a case are treated alike."""
    random, found = torch.Generator().manual_seed(zlib.crc32(case.encode())), []
    for way in range(count):
        laid = seen.flip([axis for axis, bit in ((-2, 1), (-1, 2)) if way & bit])
        laid = laid.transpose(-1, -2) if way & 4 else laid
        found.append(_moved(laid, random) if way > 1 else laid)
    return found


def _moved(slices: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    most = torch.tensor([math.radians(DEGREES), ZOOM, 2 * SHIFT, 2 * SHIFT])
    angle, zoom, down, right = ((2 * torch.rand(4, generator=random) - 1) * most).tolist()
    cosine, sine = (1 + zoom) * math.cos(angle), (1 + zoom) * math.sin(angle)
    grid = functional.affine_grid(torch.tensor([[[cosine, -sine, right], [sine, cosine, down]]]), [1, 1, *slices.shape[1:]], align_corners=False)
    return functional.grid_sample(slices[None], grid, align_corners=False)[0]


def embedded(case: Case, name: str, slices: int, vit: nn.Module, ways: int) -> torch.Tensor:
    """`(ways, slices, tokens, dim)` of one image.

    Kept for the process's further fits, which look at the same images; never to be changed in place.
    """
    seen = slices_of(case, name, slices, vit.size)
    key = vit.fingerprint, case.id, hashlib.sha256(seen.numpy().tobytes()).hexdigest(), ways
    if key not in _kept:
        with torch.no_grad():
            _kept[key] = vit.embed(torch.cat(ways_of(seen, case.id, ways))).unflatten(0, (ways, slices))
        if len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    return _kept[key]


def groups_of(cases: Sequence[Case], modalities: Sequence[str], outcomes: Sequence[str], vit: nn.Module, *, slices: int,
              ways: int) -> list[Group]:
    """The cases by the modalities they have, every image in so many ways. Raises `DataError` for one that has none of them."""
    by_pattern: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        pattern = tuple(name for name in modalities if name in case.images)
        if not pattern:
            raise DataError(f"{case.id} has none of the modalities {', '.join(modalities)}; give the experiment one that every case has")
        by_pattern.setdefault(pattern, []).append(case)
    return [Group({name: torch.stack([embedded(case, name, slices, vit, ways) for case in some]) for name in pattern},
                  torch.tensor([outcomes.index(case.outcome) if case.outcome in outcomes else -1 for case in some]))
            for pattern, some in by_pattern.items()]


def batches(groups: Sequence[Group], size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Every case once, in random order: the group's index and its rows. Uses torch's global generator, which the caller seeds."""
    parts = [(index, rows) for index, group in enumerate(groups) for rows in torch.randperm(len(group)).split(size)]
    for position in torch.randperm(len(parts)).tolist():
        yield parts[position]
