"""Put a fitted system into MLflow as a model that runs elsewhere: weights, prompts and code, and the frozen backbone by hash only."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

import pipelines
from tasks.reported import Experiment, Reported

#: What a loaded model imports. Given by hand, because MLflow's own search takes 9 s a model.
REQUIREMENTS = ("mlflow", "monai", "nibabel", "numpy", "pandas", "pandera", "pydantic", "PyYAML", "safetensors", "scikit-learn",
                "scipy", "skops", "torch")
PACKAGE = Path(pipelines.__file__).parent  # the code goes with the model: weights outlive the version that made them
EXAMPLE_SHAPE = (2, 16, 16)
EXAMPLE_SPACING_MM = (5.0, 1.5, 1.5)
ALIAS = "challenger"


def log_model(reported: Reported, experiment: Experiment, register: bool) -> str:
    """Log the experiment's first fit (first site, first seed) to the active run; returns the model's address."""
    import mlflow

    from pipelines.train.fitted import fits_of

    name = f"semiflow-{reported.cohort}-{experiment.name}"
    fit, backbone = fits_of(experiment.models)[0], experiment.summary["backbone"]["name"]
    with packed(fit, reported.data / "prompts", reported.data / "embeddings", backbone) as parts:
        logged = log_packed(parts, registered_model_name=name if register else None)
    if register:
        mlflow.MlflowClient().set_registered_model_alias(name, ALIAS, str(logged.registered_model_version))
    return logged.model_uri


def log_packed(parts: dict, **options):
    """`mlflow.pyfunc.log_model` of what `packed` gives, for the active run, without trying the input example on the model it has just logged.

    That trial needs torch in a process that has no other use for it, takes seconds, and its failure would be no more than a warning.
    """
    import mlflow

    class Untried(mlflow.models.Model):
        def get_serving_input(self, path: str) -> None:
            """Nothing to try; the example itself is stored with the model."""

    return Untried.log(artifact_path=None, name="model", flavor=mlflow.pyfunc, **parts, **options)


@contextlib.contextmanager
def packed(fit: Path, prompts: Path, embeddings: Path, backbone: str) -> Iterator[dict]:
    """A fit as the arguments of `log_packed` or `mlflow.pyfunc.save_model`, while the block lasts. `backbone`: its name in params."""
    from pipelines.train.fitted import RECORD

    config = model_config(json.loads((fit / RECORD).read_text()), backbone)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = make_bundle(Path(temporary) / "fit", fit, prompts, embeddings)
        yield {"python_model": str(Path(__file__).with_name("model.py")), "artifacts": {"fit": str(bundle)}, "model_config": config,
               "code_paths": [str(PACKAGE)], "signature": signature(config), "input_example": input_example(config),
               "pip_requirements": [f"{package}=={version(package)}" for package in REQUIREMENTS],
               "metadata": {key: config[key] for key in ("system", "site", "seed", "shots", "backbone", "backbone_fingerprint")}}


def model_config(record: dict, backbone: str) -> dict:
    """What the loaded model has to know beside its files."""
    from pipelines.systems import create, params_model

    system = create(record["system"], params_model(record["system"])(**record["params"]))
    return {key: record[key] for key in ("system", "site", "seed", "shots", "labels", "modalities")} | {
        "outcomes": record.get("outcomes", []),
        "backbone": backbone, "backbone_fingerprint": record["backbone"], "uses_tokens": bool(system.uses_tokens)}


def make_bundle(bundle: Path, fit: Path, prompts: Path, embeddings: Path) -> Path:
    """Everything that `tasks.model` reads, in one folder: `weights/` (the fit) and `text/` (prompts and their embeddings)."""
    shutil.copytree(fit, bundle / "weights", ignore=shutil.ignore_patterns(".*"))
    (bundle / "text").mkdir()
    for path in (prompts / "prompts.json", embeddings / "text.json", embeddings / "text.safetensors"):
        shutil.copyfile(path, bundle / "text" / path.name)
    return bundle


def signature(config: dict):
    """Named tensors in, one tensor out (see `tasks.model.SemiflowModel`)."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    volume, number = (-1, -1, -1), np.dtype(np.float32)
    inputs = [TensorSpec(number, volume, name) for name in (*config["modalities"], "brain")]
    inputs += [TensorSpec(number, (3,), "spacing_mm"), TensorSpec(np.dtype(np.int64), (1,), "slice_axis")]
    output = (len(config["outcomes"]),) if config["outcomes"] else (1 + len(config["labels"]), *volume)
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([TensorSpec(number, output)]))


def input_example(config: dict) -> dict[str, np.ndarray]:
    """A tiny study with every modality, of noise: it shows names, types and shapes."""
    random = np.random.default_rng(0)
    example = {name: random.standard_normal(EXAMPLE_SHAPE).astype(np.float32).round(2) for name in config["modalities"]}
    return example | {"brain": np.ones(EXAMPLE_SHAPE, np.float32), "spacing_mm": np.array(EXAMPLE_SPACING_MM, np.float32),
                      "slice_axis": np.array([2])}
