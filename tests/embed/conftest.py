"""A backbone and a cohort of two cases for every test of the embed stage."""

from __future__ import annotations

import pytest
from embed_cohort import add_case, model, write_prompts

from pipelines.backbones.atlas import Atlas


@pytest.fixture(scope="session")
def atlas(tmp_path_factory) -> Atlas:
    return Atlas.load(model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def cohort(tmp_path):
    """Folders of the stages before, of the cache, and the rows of the manifest."""
    source, prompts, rows = tmp_path / "resampled", tmp_path / "prompts", []
    for subject in ("01", "02"):
        add_case(source, rows, subject)
    prompts.mkdir()
    write_prompts(prompts, ["oedema on FLAIR", "normal brain"])
    return source, prompts, tmp_path / "embeddings", rows
