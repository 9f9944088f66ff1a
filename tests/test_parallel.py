"""Work spread over forked processes comes back in order, and a killed worker is an error with a way out."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time

import pytest

from pipelines.parallel import spread

KILLED = """
import os
from pipelines.errors import DataError
from pipelines.parallel import spread
try:
    list(spread(os._exit, [9, 9, 9], 2))
except DataError as error:
    print(error)
"""

LONG = """
import sys, time
from pathlib import Path
from pipelines.parallel import spread
from pipelines.outputs import locked
def work(seconds):
    print("begun", flush=True)
    time.sleep(seconds)
with locked(Path(sys.argv[1])):
    list(spread(work, [600, 600, 600], 2))
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_items(jobs):
    assert list(spread(abs, [-3, 2, -1], jobs)) == [3, 2, 1]


def test_killed_worker_is_an_error_that_says_what_to_do():
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}, check=True)
    assert "run again" in done.stdout


def test_workers_end_with_a_killed_parent_and_give_its_lock_back(tmp_path):
    lock = tmp_path / "lock"
    parent = subprocess.Popen([sys.executable, "-c", LONG, str(lock)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."})
    with parent:
        assert [parent.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        parent.kill()
    with lock.open("w") as handle:
        for _ in range(300):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)
    pytest.fail("a worker still holds the lock")
