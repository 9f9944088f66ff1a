"""A label as one integer array with names, lossless where segments overlap, and two labels as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.labels.grid import place_on_grid
from pipelines.ingest.labels.naming import SEPARATOR

if TYPE_CHECKING:
    from pipelines.ingest.headers import Header
    from pipelines.ingest.split import Part

MAX_VALUE = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class LabelSource:
    """Where a label comes from and which names its segments may bear."""

    item: str
    kind: str  # seg | rtstruct | mask | nifti
    paths: tuple[Path, ...]
    rule: str
    frame: str
    name: str = ""  # of all that is labelled, as one; '' for the source's own segments (of a mask: its integer values)
    names: dict[int, str] = field(default_factory=dict)  # lookup of a label without names of its own
    known: frozenset[str] = frozenset()  # names that params.yaml's labels ask for
    refers_to: str = ""  # item of the image series it was drawn on
    threshold: float = 0.5  # share of a voxel (or probability) from which a fractional label counts it in
    headers: tuple[Header, ...] = ()  # of a mask series: all its files, and
    part: Part | None = None  # the one volume in them; None for a parametric map


class Placeable(Protocol):
    """A label that was read and awaits the grid of its image."""

    def on_grid(self, shape: tuple[int, ...], affine: np.ndarray) -> Segments:
        """The label on the grid `shape`, `affine` (voxel to mm, RAS). Raises `Refused` (`label-grid`) where it does not lie on it."""


@dataclass(frozen=True)
class Segments:
    """An integer label `(i, j, k)`, 0 for background, its affine (mm, RAS), and per value the names of the segments that share those voxels."""

    array: np.ndarray
    affine: np.ndarray
    names: dict[int, tuple[str, ...]]
    note: str = ""

    def on_grid(self, shape: tuple[int, ...], affine: np.ndarray) -> Segments:
        return replace(self, array=place_on_grid(self.array, self.affine, shape, affine), affine=affine)

    def spelled(self) -> dict[int, str]:
        """The name of each value in one string, 'Necrosis & Edema' where segments share it."""
        return {value: SEPARATOR.join(names) for value, names in sorted(self.names.items())}

    def lookup(self) -> str:
        """The table of names as BIDS has it (columns index, name), one line a value."""
        return "index\tname\n" + "".join(f"{value}\t{name}\n" for value, name in self.spelled().items())

    def as_one(self, name: str) -> Segments:
        """Everything labelled as the one segment `name`; the same where `name` is empty."""
        return replace(self, array=(self.array > 0).astype(np.uint16), names={1: (name,)}) if name else self


class Overlay:
    """Segments laid over one another on a grid; a voxel remembers all that hold it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._codes = np.zeros(shape, np.int32)
        self._members: list[frozenset[int]] = [frozenset()]  # code -> segments
        self._code_of: dict[frozenset[int], int] = {frozenset(): 0}

    def add(self, where: tuple[np.ndarray, ...], number: int) -> None:
        """Put segment `number` on the voxels `where` (one index array an axis, no voxel twice)."""
        below, inverse = np.unique(self._codes[where], return_inverse=True)
        above = np.array([self._code(self._members[code] | {number}) for code in below], np.int32)
        self._codes[where] = above[inverse]

    def finish(self, affine: np.ndarray, names: Mapping[int, str], note: str = "") -> Segments:
        """The label: a segment keeps its number, combinations that occur follow, in the order of their numbers."""
        present = np.flatnonzero(np.bincount(self._codes.ravel())).tolist()
        combined = sorted(sorted(self._members[code]) for code in present if len(self._members[code]) > 1)
        first = max(names, default=0) + 1
        check_values(first + len(combined) - 1)
        value_of = {(number,): number for number in names} | {tuple(members): first + index for index, members in enumerate(combined)}
        values = np.zeros(len(self._members), np.uint16)
        for code in filter(None, present):
            values[code] = value_of[tuple(sorted(self._members[code]))]
        called = {value: tuple(dict.fromkeys(names[number] for number in members)) for members, value in value_of.items()}
        return Segments(values[self._codes], affine, called, _joined([note, "" if any(present) else "no voxel is labelled"]))

    def _code(self, members: frozenset[int]) -> int:
        if members not in self._code_of:
            self._code_of[members] = len(self._members)
            self._members.append(members)
        return self._code_of[members]


def merge(first: Segments | None, second: Segments) -> Segments:
    """Two labels on one grid as one; values of the second follow those of the first, and combinations follow both.

    Raises `Refused` (`duplicate-label`) where both have a segment of the same name.
    """
    if first is None:
        return second
    if twice := _single(first.names.values()) & _single(second.names.values()):
        raise Refused("duplicate-label", f"another label of this session has {'the segment' if len(twice) == 1 else 'segments'} "
                      f"{', '.join(sorted(twice))} too", "keep one of them in the source")
    offset = max(first.names, default=0)
    names = first.names | {value + offset: called for value, called in second.names.items()}
    where = np.nonzero(second.array)
    pairs = np.stack([first.array[where], second.array[where]]).astype(np.int64)
    kinds, inverse = np.unique(pairs, axis=1, return_inverse=True)
    values = kinds[1] + offset
    shared = np.flatnonzero(kinds[0])
    values[shared] = max(names, default=0) + 1 + np.arange(len(shared))
    check_values(max([*names, *values.tolist()], default=0))
    names |= {int(values[index]): (*first.names[int(kinds[0, index])], *second.names[int(kinds[1, index])]) for index in shared}
    array = first.array.astype(np.uint16)
    array[where] = values[inverse.ravel()]
    return Segments(array, first.affine, names, _joined([first.note, second.note]))


def check_values(largest: float) -> None:
    """Refuse a label with more values than an unsigned 16-bit integer has."""
    if largest > MAX_VALUE:
        raise Refused("label-values", f"its values, combinations of segments included, reach {largest:g}, and {MAX_VALUE} is the most",
                      "split the segments into several labels, or leave some out")


def _single(names: Iterable[tuple[str, ...]]) -> set[str]:
    return {name for called in names for name in called}


def _joined(notes: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(note for note in notes if note))
