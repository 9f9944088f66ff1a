"""A model of a tiny site, made once, and predictions with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_studies import ROOT, Look, make_bundle, settings, write_study


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """A champion of site-b, trained on four of eight tiny studies."""
    return make_bundle(tmp_path_factory.mktemp("model") / "champion")


@pytest.fixture(scope="session")
def backbone():
    from pipelines.backbones import load_backbone

    return load_backbone(f"atlas:{ROOT / 'models' / 'atlas'}")


@pytest.fixture(scope="session")
def model(bundle, backbone):
    from pipelines.predict.bundle import load_model

    return load_model(bundle, backbone)


@pytest.fixture
def predicted(model, tmp_path):
    """A function that writes a study, predicts it and returns (verdict, output folder, study folder)."""
    from pipelines.predict.run import predict_study

    def call(number: int = 20, look: Look | None = None, *, name: str = "study", even_if_withheld: bool = False, **quality: object):
        study = write_study(tmp_path / name, number, look)
        out = tmp_path / f"{name}-out"
        return predict_study(study, out, model, settings(**quality), even_if_withheld=even_if_withheld), out, study

    return call
