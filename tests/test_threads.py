"""One thread inside the block, the caller's number afterwards, also when the block fails."""

from __future__ import annotations

import numpy  # noqa: F401 (its linear algebra is what is limited)
import pytest
import torch
from threadpoolctl import threadpool_info

from pipelines.threads import one_thread


def test_one_thread_inside_and_the_callers_number_afterwards():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ZeroDivisionError), one_thread():
            assert torch.get_num_threads() == 1
            assert {pool["num_threads"] for pool in threadpool_info()} == {1}
            _ = 1 / 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
