"""The systems by name. Nothing else in the project knows one."""

from __future__ import annotations

from importlib import import_module

from pydantic import BaseModel

from pipelines.errors import UsageError
from pipelines.systems.protocol import FewShotSystem

REGISTRY = {
    "semi": "pipelines.systems.semi",
    "semi-hyper": "pipelines.systems.semi_hyper",
    "random-forest": "pipelines.systems.baselines.random_forest",
    "unet": "pipelines.systems.baselines.unet",
    "linear-probe": "pipelines.systems.baselines.linear_probe",
    "tip-adapter": "pipelines.systems.baselines.tip_adapter",
    "coop": "pipelines.systems.baselines.coop",
    "hemis": "pipelines.systems.baselines.hemis",
}


def _package(name: str) -> str:
    if name not in REGISTRY:
        raise UsageError(f"there is no system {name!r}; known: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]


def params_model(name: str) -> type[BaseModel]:
    """The pydantic model of a system's hyperparameters (light: imports no torch)."""
    return import_module(f"{_package(name)}.params").Params


def create(name: str, params: BaseModel) -> FewShotSystem:
    """A system, not yet fitted."""
    return import_module(f"{_package(name)}.system").System(params)
