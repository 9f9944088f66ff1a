"""How far a sweep is, and how long it will take: from what fits of the same arm, protocol and shots took, now or in an earlier run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

from pipelines.sweep.matrix import Cell
from pipelines.train.fitted import RECORD


class Costs:
    """Seconds of finished fits, by cell."""

    def __init__(self):
        self.seconds: dict[Cell, list[float]] = defaultdict(list)

    def add(self, record: Mapping[str, object]) -> None:
        """`record`: a finished fit's `fit.json`."""
        self.seconds[Cell(record["arm"], record["protocol"], record["shots"])].append(record["seconds"])

    def read(self, work: Path) -> None:
        """Take in every fit in a work folder, those that no longer hold too: the best guess there is."""
        for path in Path(work).glob(f"*/*/{RECORD}"):
            self.add(json.loads(path.read_text()))

    def of(self, cell: Cell) -> float | None:
        """Mean seconds of a fit of this cell; else of its arm, else of any; None where nothing is known."""
        for known in (self.seconds.get(cell), self._some(cell.arm), self._some(None)):
            if known:
                return fmean(known)
        return None

    def left(self, waiting: Iterable[Cell], jobs: int) -> tuple[float | None, int]:
        """Seconds that fits of these cells will take with `jobs` at a time, and of how many arms that is a guess only."""
        cells = list(waiting)
        if not self.seconds:
            return None, len({cell.arm for cell in cells})
        guessed = {cell.arm for cell in cells if not self._some(cell.arm)}
        return sum(self.of(cell) for cell in cells) / jobs, len(guessed)

    def _some(self, arm: str | None) -> list[float]:
        return [value for cell, values in self.seconds.items() if arm in (None, cell.arm) for value in values]


def told(seconds: float | None, guessed: int) -> str:
    """The end of a progress line."""
    if seconds is None:
        return "no estimate yet"
    minutes = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return f"about {minutes} left" + (f" ({guessed} arm(s) not timed yet)" if guessed else "")
