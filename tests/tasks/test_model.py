from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import DataError, UsageError
from pipelines.train.fitted import load_fitted


def tensors(case, modalities) -> dict[str, np.ndarray]:
    """A case as the logged model takes it."""
    missing = np.full(case.foreground().shape, np.nan, np.float32)
    images = {name: case.image(name) if name in case.images else missing for name in modalities}
    return images | {"brain": case.foreground().astype(np.float32), "spacing_mm": np.array(case.spacing_mm, np.float32)}


@pytest.fixture
def loaded(recorded, tracking):
    import mlflow

    return mlflow.pyfunc.load_model(recorded["experiments"]["random-forest-1"]["model"])


def test_logged_model_predicts_as_the_stage_does(loaded, project, tiny_task, case_of):
    fitted = load_fitted(project / "data/tiny/models/random-forest-1/A/seed-0", tiny_task)
    for number in (1, 2):
        case = case_of(number)
        predicted = loaded.predict(tensors(case, tiny_task.modalities))
        assert predicted.dtype == np.float32
        assert predicted.shape == (2, *case.foreground().shape)
        np.testing.assert_array_equal(predicted, fitted.predict(case))


def test_a_missing_modality_is_a_volume_of_nan(loaded, project, tiny_task, case_of):
    fitted = load_fitted(project / "data/tiny/models/random-forest-1/A/seed-0", tiny_task)
    case = case_of(1)
    alone = dataclasses.replace(case, subject="alone", images={"FLAIR": case.images["FLAIR"]})
    np.testing.assert_array_equal(loaded.predict(tensors(alone, tiny_task.modalities)), fitted.predict(alone))


def test_without_a_mask_the_head_is_where_volumes_are_not_zero(loaded, tiny_task, case_of):
    case = case_of(1)
    given = tensors(case, tiny_task.modalities)
    found = loaded.predict(given | {"brain": np.full_like(given["brain"], np.nan)})
    np.testing.assert_array_equal(found, loaded.predict(given))


def test_signature_refuses_another_shape(loaded, tiny_task, case_of):
    given = tensors(case_of(1), tiny_task.modalities)
    with pytest.raises(Exception, match="Shape of input"):
        loaded.predict(given | {"spacing_mm": np.ones(2, np.float32)})


def test_nothing_but_nan_is_refused(loaded, tiny_task, case_of):
    given = tensors(case_of(1), tiny_task.modalities)
    with pytest.raises(DataError, match="every modality is missing"):
        loaded.predict({name: np.full_like(value, np.nan) for name, value in given.items()})


def test_absent_backbone_is_a_clear_error(monkeypatch, tmp_path):
    from tasks.model import find_backbone

    monkeypatch.setenv("SEMIFLOW_BACKBONE", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="set SEMIFLOW_BACKBONE to the folder with its weights"):
        find_backbone("atlas:models/atlas", "f" * 64)


def test_another_backbone_is_refused(monkeypatch):
    from tasks.model import find_backbone

    weights = Path(__file__).parents[2] / "models" / "atlas"
    if not (weights / "weights.safetensors").is_file():
        pytest.skip("models/atlas has no weights")
    monkeypatch.setenv("SEMIFLOW_BACKBONE", str(weights))
    with pytest.raises(UsageError, match="this model was trained on ffffffffffff"):
        find_backbone("atlas:models/atlas", "f" * 64)
