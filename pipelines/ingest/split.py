"""Which volumes a series holds: frames sorted into named parts, each of which has one frame at each place.

A part is named after what tells it from the others ('echo-2', 'b-1000_dir-03', 'time-012'). Where the header does not say which frames belong
together, the series is refused: a volume put together of two time points looks like a volume.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.frames import MARKS, Frame
from pipelines.ingest.geometry import EXPORT_AGAIN, Stack, check_stack, check_uniform, places

SPLIT = "split it into one series per volume"
#: Marks that some scanners write per slice, so that they tell volumes apart only when each value is there for every slice. Dropped in this order.
PER_SLICE = ("time", "trigger", "direction", "kind")
#: Marks that must not differ between the slices of one volume: it would have two contrasts.
CONTRAST = {"component": "kinds of value (magnitude, phase, ...)", "echo": "echo times", "inversion": "inversion times", "b_value": "b-values",
            "energy": "tube voltages"}
ECHO_TOL = 0.01  # of the echo time: rounding in headers
WORDS = {"component": "part", "kind": "kind", "echo": "echo", "inversion": "inv", "b_value": "b", "direction": "dir",
         "energy": "kv", "trigger": "trigger", "time": "time", "run": "time"}


@dataclass(frozen=True)
class Part:
    """One volume of a series: its frames, its name ('' where the series is one volume) and its marks; or why it is none."""

    frames: tuple[Frame, ...]
    name: str = ""
    marks: dict[str, object] = field(default_factory=dict)
    refused: Refused | None = None
    stack: Stack | None = None


def split(frames: Sequence[Frame]) -> list[Part]:
    """The volumes of a series, in the order of their acquisition. Raises `Refused` when no volume can be told from the others for certain."""
    if len(stacks := _stacks(frames)) > 1:
        return [part for number, stack in enumerate(stacks, 1) for part in _stack_parts(f"stack-{number}", stack)]
    _check_alike(frames)
    where = places(frames)
    counts = np.bincount(where)
    if counts.max() == 1:
        _check_contrast(frames)
        return [Part(tuple(frames), "", dict(frames[0].marks), stack=check_stack(frames))]
    rounded = [_rounded(frame.marks) for frame in frames]
    varying = [mark for mark in MARKS if len({marks.get(mark) for marks in rounded}) > 1]
    for dropped in range(len(PER_SLICE) + 1):
        used = [mark for mark in varying if mark not in PER_SLICE[:dropped]]
        keys = [tuple(marks.get(mark) for mark in used) for marks in rounded]
        runs = _runs(frames, keys, where)
        if runs is not None:
            return _parts(frames, keys, runs, used)
    return _incomplete(frames, where, rounded, varying)


def _stacks(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames by the stack that their header says they belong to; one group where it does not, or where each would be one slice."""
    groups: dict[object, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[frame.marks.get("stack")].append(frame)
    return list(groups.values()) if min(map(len, groups.values())) > 1 else [list(frames)]


def _stack_parts(name: str, frames: Sequence[Frame]) -> list[Part]:
    try:
        parts = split([replace(frame, marks={mark: value for mark, value in frame.marks.items() if mark != "stack"}) for frame in frames])
    except Refused as refused:
        return [Part(tuple(frames), name, dict(frames[0].marks), refused)]
    return [replace(part, name="_".join(filter(None, [name, part.name]))) for part in parts]


def _check_alike(frames: Sequence[Frame]) -> None:
    """Refuse frames that cannot be slices of one stack."""
    again = "split it into one series per acquisition"
    check_uniform([frame.size for frame in frames], "mixed-matrix", "matrix sizes", again)
    check_uniform([frame.rescaled for frame in frames], "mixed-rescale", "kinds of rescaling, some with a slope and some without", EXPORT_AGAIN)


def _rounded(marks: dict[str, object]) -> dict[str, object]:
    return {**marks, "echo": round(marks["echo"], 1)} if isinstance(marks.get("echo"), float) else marks


def _check_contrast(frames: Sequence[Frame]) -> None:
    """Refuse a stack of which some slices have another contrast than the others."""
    for mark, what in CONTRAST.items():
        values = [frame.marks.get(mark) for frame in frames]
        if mark in ("echo", "inversion") and all(isinstance(value, float) for value in values) and np.ptp(values) <= ECHO_TOL * max(values):
            continue
        check_uniform(values, f"mixed-{mark.replace('_', '-')}", what, SPLIT)


def _runs(frames: Sequence[Frame], keys: Sequence[tuple], where: np.ndarray) -> list[int] | None:
    """For each frame its number among those with the same key at the same place; None unless every key is equally often at every place.

    Frames with one key are told apart by the order of acquisition, which must be volume by volume or place by place.
    """
    groups: dict[tuple, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    runs = [0] * len(frames)
    for members in groups.values():
        counts = np.bincount(where[members], minlength=where.max() + 1)
        if len(set(counts.tolist())) > 1:
            return None
        if counts[0] == 1:
            continue
        seen: Counter = Counter()
        ordered = sorted(members, key=lambda index: frames[index].order)
        for index in ordered:
            runs[index] = seen[where[index]]
            seen[where[index]] += 1
        if not _in_order(frames, ordered, runs, where):
            return None
    return runs


def _in_order(frames: Sequence[Frame], ordered: Sequence[int], runs: Sequence[int], where: np.ndarray) -> bool:
    """Whether frames follow each other volume by volume, or place by place; no two may have the same order."""
    orders = [frames[index].order for index in ordered]
    if len(set(orders)) < len(orders):
        return False
    by_volume = all(runs[one] <= runs[other] for one, other in pairwise(ordered))
    changes = sum(where[one] != where[other] for one, other in pairwise(ordered))
    return by_volume or changes == len(set(where[list(ordered)].tolist())) - 1


def _parts(frames: Sequence[Frame], keys: Sequence[tuple], runs: Sequence[int], used: Sequence[str]) -> list[Part]:
    groups: dict[tuple, list[Frame]] = defaultdict(list)
    for frame, key, run in zip(frames, keys, runs, strict=True):
        groups[*key, run].append(frame)
    names = _names(groups, [*used, "run"])
    return _in_acquisition_order([_part(members, names[key]) for key, members in groups.items()])


def _part(frames: Sequence[Frame], name: str, refused: Refused | None = None) -> Part:
    try:
        if refused is not None:
            raise refused
        return Part(tuple(frames), name, dict(frames[0].marks), stack=check_stack(frames))
    except Refused as error:
        return Part(tuple(frames), name, dict(frames[0].marks), error)


def _in_acquisition_order(parts: Sequence[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: min(frame.order for frame in part.frames))


def _names(groups: dict[tuple, list[Frame]], used: Sequence[str]) -> dict[tuple, str]:
    """A name for each key of `groups`, whose values belong to the marks `used`."""
    began = {key: min(frame.order for frame in members) for key, members in groups.items()}
    words: dict[tuple, list[str]] = {key: [] for key in groups}
    for place, mark in enumerate(used):
        first = {}
        for key in sorted(groups, key=began.__getitem__):
            first.setdefault(key[place], len(first))
        values = [value for value in first if value is not None]
        if len(first) < 2:
            continue
        ranked = values if mark == "direction" else sorted(values)
        for key, said in words.items():
            if (value := key[place]) is not None:
                said.append(f"{WORDS[mark]}-{_spelled(mark, value, ranked)}")
    return {key: "_".join(said) for key, said in words.items()}


def _spelled(mark: str, value: object, ranked: Sequence[object]) -> str:
    """How a mark's value is written in names: kinds and b-values as they are, others by their rank."""
    if mark in ("component", "kind"):
        return str(value)
    if mark in ("b_value", "energy"):
        return f"{value:.0f}"
    return f"{ranked.index(value) + 1:0{len(str(len(ranked)))}d}"


def _incomplete(frames: Sequence[Frame], where: np.ndarray, marks: Sequence[dict], varying: Sequence[str]) -> list[Part]:
    """Some places have more frames than others: whole volumes that the header tells apart are kept, the rest is refused."""
    strong = [mark for mark in varying if mark in CONTRAST]
    groups: dict[tuple, list[int]] = defaultdict(list)
    for index, one in enumerate(marks):
        groups[tuple(one.get(mark) for mark in strong)].append(index)
    whole = {key for key, members in groups.items() if (np.bincount(where[members], minlength=where.max() + 1) == 1).all()}
    if not strong or not whole:
        raise _unequal(frames, where)
    members = {key: [frames[index] for index in indices] for key, indices in groups.items()}
    names, total = _names(members, strong), int(where.max()) + 1
    lacking = {key: None if key in whole else _unequal(members[key], where[groups[key]], total) for key in groups}
    return _in_acquisition_order([_part(members[key], names[key], lacking[key]) for key in groups])


def _unequal(frames: Sequence[Frame], where: np.ndarray, total: int | None = None) -> Refused:
    """The refusal of frames that are not equally many at each place."""
    counts = np.bincount(where, minlength=total or 0)
    kinds = Counter(counts.tolist())
    usual = max(kinds, key=lambda count: (kinds[count], count))
    if len(kinds) == 1:
        same = len({frame.order for frame in frames}) < len(frames)
        why = "two of them have the same instance number" if same else "instance numbers do not follow each other volume by volume or place by place"
        return Refused("several-volumes", f"it holds {usual} images at each of {len(counts)} places (echoes, b-values or time points), and {why}, so "
                       "nothing in its headers says which of them belong together", SPLIT)
    more, fewer = int((counts > usual).sum()), int((counts < usual).sum())
    if usual == 1 and more and not fewer:
        first = int(np.flatnonzero(counts > 1)[0])
        return Refused("duplicate-position", f"{int((counts - 1).sum())} of its {len(frames)} slices lie where another one does, first at place "
                       f"{first + 1} of {len(counts)}", "remove the copies, or split two acquisitions into two series")
    if usual == 1 and not more:
        return Refused("missing-slices", f"{fewer} of {len(counts)} slices missing that other volumes of the series have", f"{EXPORT_AGAIN}, whole")
    missing = int((counts.max() - counts).sum()) if more == 0 else int(np.maximum(usual - counts, 0).sum())
    return Refused("incomplete-volumes", f"it holds {usual} images at most of its {len(counts)} places, but more at {more} and fewer at {fewer}"
                   + (f"; {missing} image(s) are missing" if fewer else ""), f"{EXPORT_AGAIN}, whole")
