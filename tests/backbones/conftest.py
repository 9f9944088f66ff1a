"""Fixtures of the tests that load published models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import FAMILIES, build


@pytest.fixture(scope="module")
def on_the_cpu():
    """Where the library's own numbers are computed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: build(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders["siglip"], tmp_path / "model"))
