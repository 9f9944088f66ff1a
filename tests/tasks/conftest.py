"""A reported project in small: real fits on two tiny cases, and the files that the evaluate and report stages leave of them."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipelines.cohort import Case, bids_path, write_manifest
from pipelines.outputs import sha256, write_json
from pipelines.prompts.bank import PromptBank
from pipelines.systems.protocol import Task

ROOT = Path(__file__).parents[2]
LABELS = ("tumour",)
MODALITIES = ("FLAIR", "T1w")
SHAPE = (4, 24, 20)
FINGERPRINT = "f" * 64
EXPERIMENTS = {"random-forest-1": 1, "random-forest-2": 2}


def tiny_case(number: int) -> Case:
    """A ball that is bright on FLAIR, in a noisy head."""
    random = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij"))
    head, ball = np.sum(grid[1:] ** 2, axis=0) < 0.9, np.sum((grid - 0.1 * number) ** 2, axis=0) < 0.25
    images = {name: ((random.normal(0, 0.3, SHAPE) + 2 * ball * (name == "FLAIR")) * head).astype(np.float32) for name in MODALITIES}
    return Case(f"{number:03d}x{uuid.uuid4().hex}", "", "A", (5.0, 1.5, 1.5), 2, images, head.astype(np.uint8), ball.astype(np.uint8))


def tiny_prompts() -> tuple[dict, dict[str, np.ndarray]]:
    phrasings = {modality: {name: {"A": [f"{name} on {modality}"]} for name in (*LABELS, "healthy", "outside")} for modality in MODALITIES}
    texts = sorted(f"{name} on {modality}" for name in (*LABELS, "healthy", "outside") for modality in MODALITIES)
    return phrasings, dict(zip(texts, np.eye(len(texts), 8, dtype=np.float32), strict=True))


@pytest.fixture(scope="session")
def tiny_task() -> Task:
    return Task(LABELS, MODALITIES, PromptBank(*tiny_prompts()), backbone=None)  # a forest looks at no tokens


@pytest.fixture(scope="session")
def project(tmp_path_factory, tiny_task) -> Path:
    """A project's folder after its report stage: `data/`, `reports/`, params.yaml and dvc.lock. Do not change it, copy it."""
    folder = tmp_path_factory.mktemp("project")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["cohort"] |= {"name": "tiny", "source": "data/tiny/dicom"}
    params["experiments"] = {name: {"system": "random-forest", "shots": shots} for name, shots in EXPERIMENTS.items()}
    params["evaluate"]["headline"] = "random-forest"
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.lock").write_text("schema: '2.0'\n")
    write_data(folder / "data" / "tiny", tiny_task)
    for name, shots in EXPERIMENTS.items():
        write_evaluated(folder / "reports" / "cohorts" / "tiny" / name, name, shots)
    write_reported(folder / "reports")
    return folder


def write_data(data: Path, task: Task) -> None:
    """What stages 2 to 5 leave: manifest, prompts, text embeddings, fits."""
    import nibabel

    from pipelines.prompts.vectors import write_vectors

    phrasings, vectors = tiny_prompts()
    write_json(data / "prompts" / "prompts.json", phrasings)
    write_vectors(data / "embeddings", FINGERPRINT, list(vectors), np.stack(list(vectors.values())))
    rows = []
    for number in range(3):
        path = bids_path(f"{number:03d}", "", "anat", "FLAIR")
        (data / "resampled" / path).parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(tiny_case(number).image("FLAIR"), np.eye(4)), data / "resampled" / path)
        rows.append({"subject": f"{number:03d}", "site": "A", "kind": "image", "modality": "FLAIR", "path": str(path), "slice_axis": 0,
                     "shape": "4x24x20", "spacing_mm": "5x1.5x1.5", "sha256": sha256(data / "resampled" / path), "tr_ms": 9000.0,
                     "source_kind": "dicom"})
    write_manifest(data / "resampled", rows)
    for name, shots in EXPERIMENTS.items():
        write_fit(data / "models" / name / "A" / "seed-0", name, shots, task)


def write_fit(folder: Path, experiment: str, shots: int, task: Task) -> None:
    """A real forest, as the train stage keeps it."""
    from pipelines.systems import create, params_model

    settings = params_model("random-forest")(trees=5, max_depth=4, sigmas=(0.7, 1.6), voxels_per_class=200)
    system = create("random-forest", settings)
    system.fit(task, [tiny_case(number) for number in range(shots)], seed=0)
    folder.mkdir(parents=True)
    system.save(folder)
    write_json(folder / "fit.json", {
        "experiment": experiment, "system": "random-forest", "params": settings.model_dump(mode="json"), "shots": shots, "site": "A", "seed": 0,
        "labels": list(task.labels), "modalities": list(task.modalities), "temperature": 1.3, "train_seconds": 0.1, "backbone": FINGERPRINT})


def write_evaluated(folder: Path, experiment: str, shots: int) -> None:
    folder.mkdir(parents=True)
    facts = {"cohort": "tiny", "experiment": experiment, "system": "random-forest", "shots": shots, "site": "A"}
    pd.DataFrame([{**facts, "seed": 0, "case": "sub-002", "label": "tumour", "dice": 0.5 + shots / 10}]).to_csv(folder / "cases.csv", index=False)
    pd.DataFrame([{**facts, "label": "tumour", "region": "band", "bin": 0, "confidence": 0.1, "accuracy": 0.2, "count": 9}]).to_csv(
        folder / "reliability.csv", index=False)
    write_json(folder / "summary.json", {
        **facts, "title": "Random forest", "caveat": "two tiny cases", "sites": ["A"], "seeds": [0], "protocol": "within", "params": {},
        "modalities": list(MODALITIES), "backbone": {"name": "atlas:models/atlas", "fingerprint": FINGERPRINT},
        "evaluate": {"headline": "random-forest"}})


def write_reported(reports: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = [pd.read_csv(path) for path in sorted((reports / "cohorts").glob("*/*/cases.csv"))]
    pd.concat(tables).to_csv(reports / "results.csv", index=False)
    entries = {name: {"shots": shots, "labels": {"tumour": {"dice": {"mean": 0.5 + shots / 10, "low": 0.4, "high": None, "n": 1}}},
                      "sites": {"A": {"tumour": {"dice": {"mean": 0.5 + shots / 10}}}}, "cost": {"train_seconds": 0.1}}
               for name, shots in EXPERIMENTS.items()}
    write_json(reports / "metrics.json", {"tiny": {"experiments": entries}})
    (reports / "index.html").write_text("<!doctype html><title>tiny</title><p>A report.</p>")
    (reports / "figures").mkdir()
    for file in ("tiny_sites.png", *(f"tiny_{name}_overlay.png" for name in EXPERIMENTS)):
        pyplot.imsave(reports / "figures" / file, tiny_case(0).image("FLAIR")[2], cmap="gray")


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """The folder of an MLflow store that the whole session shares (migrating a fresh database takes seconds)."""
    return tmp_path_factory.mktemp("mlruns")


@pytest.fixture
def tracking(store, monkeypatch):
    """MLflow pointed at the session's store."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    mlflow.set_registry_uri(f"sqlite:///{store / 'mlflow.db'}")  # else the one that an earlier test of this process has set
    return mlflow.MlflowClient()


@pytest.fixture
def recorded(project, tracking) -> dict:
    """runs.json of the tiny project (recorded once a session: recording again finds it)."""
    from tasks.record import record

    return record(project / "reports", project)["tiny"]


@pytest.fixture
def own_project(project, tmp_path) -> Path:
    """A copy of the project to change."""
    return Path(shutil.copytree(project, tmp_path / "project"))


@pytest.fixture(scope="session")
def case_of():
    """Number -> a tiny case."""
    return tiny_case
