"""An Atlas small enough to run in a test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_atlas(tmp_path_factory) -> Path:
    """The folder of an Atlas with few channels and weights that were never trained."""
    import torch

    from pipelines.backbones.atlas.config import AtlasConfig
    from pipelines.backbones.atlas.model import Towers, save_towers

    folder = tmp_path_factory.mktemp("atlas")
    config = AtlasConfig(widths=(8, 8, 8, 8), fine=8, coarse=8, dim=16, text_buckets=64, text_layers=1, text_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_towers(folder, Towers(config), config)
    return folder
