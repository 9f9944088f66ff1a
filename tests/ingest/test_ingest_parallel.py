"""Work spread over forked processes comes back in order, and a killed worker is an error with a way out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipelines.ingest.parallel import spread

KILLED = """
import os
from pipelines.errors import DataError
from pipelines.ingest.parallel import spread
try:
    list(spread(os._exit, [9, 9, 9], 2))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_items(jobs):
    assert list(spread(abs, [-3, 2, -1], jobs)) == [3, 2, 1]


def test_killed_worker_is_an_error_that_says_what_to_do():
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}, check=True)
    assert "run again" in done.stdout
