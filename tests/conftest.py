"""What tests share: where real images may lie, and fixtures that several folders use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Stages compute on one thread a process, because sums in another order differ in the last bit; so do tests that compare with them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or a skip with the reason."""
    folder = Path(os.environ.get("SEMIFLOW_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder.name}/ (set SEMIFLOW_DATA to a folder that holds them)")
    return folder
