"""Work spread over processes that are forked, not started: a started one imports for a second, in which one process reads a whole study."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from pipelines.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(work: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """`work` of each item, in their order; begun when called. In this process where there is little to do, or where forking is not safe."""
    safe = threading.active_count() == 1 and "fork" in multiprocessing.get_all_start_methods()  # a forked copy of a held lock is never freed
    if jobs < 2 or len(items) < 2 or not safe:
        return map(work, items)
    pool = ProcessPoolExecutor(min(jobs, len(items)), mp_context=multiprocessing.get_context("fork"), initializer=_end_with_parent)
    return _drained(pool, pool.map(work, items))


def _end_with_parent() -> None:
    """End this worker when its parent is gone, however it went: it would wait for work for ever and keep the lock that it inherited."""
    def follow() -> None:
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _drained(pool: ProcessPoolExecutor, results: Iterator[Result]) -> Iterator[Result]:
    try:
        with pool:
            yield from results
    except BrokenProcessPool:
        raise DataError("a worker process was killed, most often because memory ran out; run again, with --jobs 1 if it happens again (what is "
                        "finished is kept)") from None
