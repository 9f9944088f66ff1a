from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_cohort import tensors

from pipelines.errors import DataError, UsageError
from pipelines.outputs import write_json
from pipelines.prompts.bank import PromptBank
from pipelines.prompts.vectors import write_vectors
from pipelines.train.fitted import load_fitted

ATLAS = Path(__file__).parents[2] / "models" / "atlas"


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
        loaded.predict({name: value if value.ndim == 1 else np.full_like(value, np.nan) for name, value in given.items()})


def test_absent_backbone_is_a_clear_error(monkeypatch, tmp_path):
    from pipelines.backbones import find_backbone

    monkeypatch.setenv("SEMIFLOW_BACKBONE", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="set SEMIFLOW_BACKBONE to the folder with its weights"):
        find_backbone("atlas:models/atlas", "f" * 64)


@pytest.fixture(scope="module")
def atlas():
    """The project's own frozen backbone."""
    if not (ATLAS / "weights.safetensors").is_file():
        pytest.skip("models/atlas has no weights yet; `make pretrain` makes them")
    from pipelines.backbones import load_backbone

    return load_backbone(f"atlas:{ATLAS}")


def test_another_backbone_is_refused(monkeypatch, atlas):
    from pipelines.backbones import find_backbone

    monkeypatch.setenv("SEMIFLOW_BACKBONE", str(ATLAS))
    with pytest.raises(UsageError, match="this model was trained on ffffffffffff"):
        find_backbone("atlas:models/atlas", "f" * 64)


def test_a_system_on_tokens_encodes_a_new_study_itself(atlas, tiny_task, case_of, tmp_path, monkeypatch):
    """SEMI on the real backbone: what the saved model predicts from volumes alone is what the stage predicts from cached tokens."""
    import mlflow

    from pipelines.systems import create, params_model
    from tasks.registry import packed

    def with_tokens(case):
        return dataclasses.replace(case, tokens={name: atlas.encode_image(image, case.spacing_mm) for name, image in case.images.items()})

    texts = tiny_task.prompts.texts()
    vectors = dict(zip(texts, atlas.encode_text(texts), strict=True))
    task = dataclasses.replace(tiny_task, backbone=atlas, prompts=PromptBank(tiny_task.prompts.phrasings, vectors))
    settings = params_model("semi")(steps=3)
    system = create("semi", settings)
    system.fit(task, [with_tokens(case_of(0))], seed=0)
    fit = tmp_path / "fit"
    fit.mkdir()
    system.save(fit)
    write_json(fit / "fit.json", {"system": "semi", "params": settings.model_dump(mode="json"), "shots": 1, "site": "A", "seed": 0,
                                  "temperature": 0.8, "labels": list(task.labels), "modalities": list(task.modalities),
                                  "backbone": atlas.fingerprint})
    write_json(tmp_path / "prompts.json", task.prompts.phrasings)
    write_vectors(tmp_path, atlas.fingerprint, texts, atlas.encode_text(texts))
    with packed(fit, tmp_path, tmp_path, "atlas:models/atlas") as parts:
        mlflow.pyfunc.save_model(tmp_path / "saved", **parts)
    backbone = (ATLAS / "weights.safetensors").read_bytes()
    assert all(path.read_bytes() != backbone for path in (tmp_path / "saved").rglob("*.safetensors")), "the backbone goes by hash, not as a copy"

    monkeypatch.setenv("SEMIFLOW_BACKBONE", str(ATLAS))
    case = case_of(1)
    predicted = mlflow.pyfunc.load_model(str(tmp_path / "saved")).predict(tensors(case, task.modalities))
    np.testing.assert_allclose(predicted, load_fitted(fit, task).predict(with_tokens(case)), atol=1e-6)
