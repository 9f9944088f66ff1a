"""A cohort of the project as its own stages left it: what the benchmarks of systems start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.cohort import Case
    from pipelines.params import Params
    from pipelines.systems.protocol import Task


def laid_out(cohort: str, root: Path) -> tuple[Params, Task, list[Case]]:
    """Params, task and cases of a cohort whose resampled images, prompts and embeddings lie under `root`/data."""
    from pipelines.params import load_params
    from pipelines.train.inputs import load_task

    own = load_params(root / "params.yaml")
    params = own if cohort == own.cohort.name else load_params(root / "cohorts" / cohort / "params.yaml")
    data = root / "data" / cohort
    task, cases = load_task(data / "resampled", data / "prompts", data / "embeddings", params)
    return params, task, cases
