"""What tells two cases apart for as long as a process lives: what is kept for one must not be taken for another of the same name."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from pipelines.cohort import Case, Volume


def case_key(case: Case) -> Hashable:
    """The case's name and where its volumes come from. Whoever keeps it keeps the case too, so that no other array takes the place of one of its."""
    volumes = {**case.images, "brain": case.brain, "label": case.dseg}
    return case.id, case.site, *((name, _identity(volume)) for name, volume in sorted(volumes.items()))


def _identity(volume: Volume | None) -> str | int:
    """The path, or the array itself."""
    return str(volume) if isinstance(volume, Path) else id(volume)
