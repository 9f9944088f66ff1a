"""What a system may be besides a `FewShotSystem`: one that goes on from where it is when the next site's shots arrive.

A protocol of its own, so that a system which cannot go on owes nothing. Who wants to know asks `isinstance(system, Incremental)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pipelines.cohort import Case
from pipelines.systems.protocol import Task


@runtime_checkable
class Incremental(Protocol):
    """`save` and `load` keep everything that `learn_site` needs: a system that was loaded goes on exactly like one that was never saved."""

    def learn_site(self, task: Task, support: Sequence[Case], seed: int) -> None:
        """Learn the next site's shots (each with a label), starting from what was fitted or loaded; from nothing where nothing was.

        Of earlier sites nothing is at hand but the model itself and what it chose to keep. `task` has the labels and modalities of the fit.
        """
