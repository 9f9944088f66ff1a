"""A cohort of the project as its own stages left it: what the benchmarks of systems start from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import DataError, UsageError

if TYPE_CHECKING:
    from pipelines.cohort import Case
    from pipelines.params import Params
    from pipelines.systems.protocol import Task
    from pipelines.train.split import Split


def laid_out(cohort: str, root: Path) -> tuple[Params, Task, list[Case]]:
    """Params, task and cases of a cohort whose resampled images, prompts and embeddings lie under `root`/data."""
    from pipelines.params import load_params
    from pipelines.train.inputs import load_task

    own = root / "cohorts" / cohort / "params.yaml"
    params = load_params(own if own.is_file() else root / "params.yaml")
    if params.cohort.name != cohort:
        raise UsageError(f"{own} does not exist; python -m tasks.lay_out {cohort} makes it")
    data = root / "data" / cohort
    task, cases = load_task(data / "resampled", data / "prompts", data / "embeddings", params)
    return params, task, cases


def draws_at(sites: Sequence[str], cases: Sequence[Case], params: Params, *, shots: int, seeds: int) -> Iterator[tuple[str, int, Split]]:
    """Site, seed and split of every draw; a site with too few cases is left out with a sentence."""
    from pipelines.train.split import draw

    for site in sites:
        for seed in range(seeds):
            try:
                yield site, seed, draw(cases, site, shots, seed, params.protocol, split_by=params.cohort.split_by)
            except DataError as error:
                print(f"left out: {error}", flush=True)
