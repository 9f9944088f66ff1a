"""The sweep from end to end: which fits there are, which are missing, making them in worker processes, putting all together."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipelines.outputs import locked, staged_folder
from pipelines.parallel import spread
from pipelines.params import Params
from pipelines.sweep.gather import gather
from pipelines.sweep.keys import Keys
from pipelines.sweep.matrix import LeftOut, expand
from pipelines.sweep.progress import Costs, told
from pipelines.sweep.work import Order, run_orders
from pipelines.systems.lean import load_monai
from pipelines.systems.protocol import Task
from pipelines.train.fitted import RECORD
from pipelines.train.inputs import load_task


def sweep(*, source: Path, prompts: Path, embeddings: Path, out: Path, params: Params, work: Path | None = None, jobs: int | None = None,
          plan: bool = False) -> None:
    """Make every fit of the sweep that is not in `work` yet (default: the folder `sweep` beside `source`), then write `out`.

    `jobs`: fits at a time, by default one per core. `plan`: only tell what would be done. Raises `UsageError` and `DataError` before any fit where
    the matrix is impossible for this cohort.
    """
    task, cases = load_task(source, prompts, embeddings, params)
    fits, left_out = expand(params, cases)
    keys = Keys.read(source, prompts, task, params)
    work, jobs = Path(work or Path(source).parent / "sweep"), jobs or os.cpu_count() or 1
    orders = [Order(fit, work / fit.cell.arm / f"{fit.place}_{keys.of(fit)}") for fit in fits]
    for site in left_out:
        print(f"left out: {site.reason} (protocol {site.protocol})", flush=True)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / ".lock"):
        for left_over in work.glob("*/.*.partial"):  # of a run that was killed
            shutil.rmtree(left_over)
        waiting = [order for order in orders if not (order.folder / RECORD).is_file()]
        print(f"{params.cohort.name}: {len(fits)} fits, {len(fits) - len(waiting)} finished by an earlier run", flush=True)
        costs = Costs()
        costs.read(work)
        if plan:
            _tell_plan(waiting, left_out, costs, jobs)
            return
        if waiting:
            _run(waiting, task, params, costs, jobs)
        with staged_folder(out) as folder:
            gather(folder, orders, left_out, task=task, cases=cases, params=params)
        _drop_superseded(orders)


def in_turn(waiting: Sequence[Order], costs: Costs) -> list[list[Order]]:
    """The fits in the order they are made, those that differ in shots alone together: they share a draw, and what is learnt of the source.

    First a draw of every arm and protocol, quick ones before slow ones, so that there soon is an estimate for all; then the others.
    """
    together: dict[tuple, list[Order]] = {}
    for order in waiting:
        job = order.fit.job
        together.setdefault((order.fit.cell.arm, job.protocol, job.site, job.seed), []).append(order)
    groups = list(together.values())
    first = {(order.fit.cell.arm, order.fit.job.protocol): index for index, (order, *_) in reversed(list(enumerate(groups)))}

    def expected(group: list[Order]) -> tuple[float, int]:
        return sum(costs.of(order.fit.cell) or 0.0 for order in group), sum(order.fit.job.shots + len(order.fit.job.split.source) for order in group)

    pilots = sorted((groups[index] for index in first.values()), key=expected)
    return pilots + [group for index, group in enumerate(groups) if index not in set(first.values())]


def _run(waiting: Sequence[Order], task: Task, params: Params, costs: Costs, jobs: int) -> None:
    """Make the fits, `jobs` groups at a time, telling how far it is and how long it will take."""
    load_monai()  # once, before the processes part
    groups = in_turn(waiting, costs)
    print(_line("begun", 0, groups, costs, jobs), flush=True)
    done = spread(partial(run_orders, task=task, settings=params.evaluate, cohort=params.cohort.name), groups, jobs)
    for count, records in enumerate(done, start=1):
        for record in records:
            costs.add(record)
        last = records[-1]
        what = f"{last['arm']} {last['protocol']}, site {last['site']} seed {last['seed']}, {sum(record['seconds'] for record in records):.0f} s"
        print(_line(what, count, groups, costs, jobs), flush=True)


def _line(what: str, count: int, groups: Sequence[Sequence[Order]], costs: Costs, jobs: int) -> str:
    finished, total = (sum(map(len, part)) for part in (groups[:count], groups))
    left = costs.left((order.fit.cell for group in groups[count:] for order in group), jobs)
    return f"sweep: {finished} of {total} fits ({100 * finished // total} %), {told(*left)}; {what}"


def _tell_plan(waiting: Sequence[Order], left_out: Sequence[LeftOut], costs: Costs, jobs: int) -> None:
    counts: dict[str, int] = {}
    for order in waiting:
        counts[order.fit.cell.name] = counts.get(order.fit.cell.name, 0) + 1
    for name, count in counts.items():
        print(f"{name}: {count} fits to make")
    print(f"{len(waiting)} fits to make, {len(left_out)} site(s) left out, {told(*costs.left((order.fit.cell for order in waiting), jobs))}")


def _drop_superseded(orders: Sequence[Order]) -> None:
    """Remove fits of an earlier state (other code, other images) that this run has made anew. Fits that it did not ask for stay."""
    for order in orders:
        for other in order.folder.parent.glob(f"{glob.escape(order.fit.place)}_*"):
            if other.name != order.folder.name:
                shutil.rmtree(other)
