"""The systems by name. Nothing else in the project knows one."""

from __future__ import annotations

from importlib import import_module

from pydantic import BaseModel

from pipelines.cohort import Answers
from pipelines.errors import UsageError
from pipelines.systems.protocol import CaseClassifier, FewShotSystem

REGISTRY = {
    "semi": "pipelines.systems.semi",
    "semi-hyper": "pipelines.systems.semi_hyper",
    "itl": "pipelines.systems.itl",
    "ei-mor": "pipelines.systems.ei_mor",
    "random-forest": "pipelines.systems.baselines.random_forest",
    "unet": "pipelines.systems.baselines.unet",
    "linear-probe": "pipelines.systems.baselines.linear_probe",
    "tip-adapter": "pipelines.systems.baselines.tip_adapter",
    "coop": "pipelines.systems.baselines.coop",
    "hemis": "pipelines.systems.baselines.hemis",
    "case-probe": "pipelines.systems.baselines.case_probe",
}


def _package(name: str) -> str:
    if name not in REGISTRY:
        raise UsageError(f"there is no system {name!r}; known: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]


def params_model(name: str) -> type[BaseModel]:
    """The pydantic model of a system's hyperparameters (light: imports no torch)."""
    return import_module(f"{_package(name)}.params").Params


def answers_of(name: str) -> Answers:
    """What a system says of a case: a label of every voxel, or one outcome of the whole."""
    return getattr(import_module(f"{_package(name)}.system").System, "answers", "voxels")


def create(name: str, params: BaseModel) -> FewShotSystem | CaseClassifier:
    """A system, not yet fitted."""
    return import_module(f"{_package(name)}.system").System(params)
