"""Fixtures of the resample tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from synthetic_heads import Source

from pipelines.params import DEFAULT, Params, load_params


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "bids")


@pytest.fixture
def make_params(tmp_path: Path) -> Callable[..., Params]:
    """The project's params with other labels or resample settings: `make_params(labels=[...], in_plane_mm=2.0)`."""

    def make(labels: list[dict] | None = None, **resample) -> Params:
        content = yaml.safe_load(DEFAULT.read_text())
        content["cohort"]["labels"] = labels or [{"name": "lesion", "segments": ["Lesion"], "text": "lesion"}]
        content["resample"] |= {"in_plane_mm": 3.0} | resample
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_params(path)

    return make
