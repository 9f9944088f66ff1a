"""A training run in one file, so that a killed one goes on. Random numbers are a function of seed and step, so they need no state."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, safe_open, save_file

from pipelines.backbones.atlas.config import AtlasConfig
from pipelines.backbones.atlas.training import Recipe, State, decay_start, learning, new_state
from pipelines.outputs import staged_file

CHECKPOINT = "checkpoint.safetensors"


def save_checkpoint(path: Path, state: State, recipe: Recipe, config: AtlasConfig, steps: int) -> None:
    """Weights, their average, the optimiser's moments and the losses so far."""
    tensors = {f"towers.{name}": tensor for name, tensor in state.towers.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.state_dict().items()}
    for index, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in moments.items()}
    tensors["losses"] = torch.tensor(state.losses, dtype=torch.float64)
    with staged_file(path) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary,
                  metadata={"step": str(state.step), "steps": str(steps), "made_by": made_by(recipe, config)})


def made_by(recipe: Recipe, config: AtlasConfig) -> str:
    return json.dumps({"recipe": asdict(recipe), "config": config.model_dump()}, sort_keys=True)


def load_checkpoint(path: Path, recipe: Recipe, config: AtlasConfig, steps: int) -> State | None:
    """The run that `path` holds, or None where it is another one: other recipe, or the rate was falling for another end."""
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    step = int(metadata["step"])
    if metadata["made_by"] != made_by(recipe, config):
        return None
    before = int(metadata["steps"])
    if before != steps and step > min(decay_start(recipe, before), decay_start(recipe, steps)):
        return None
    tensors, state = load_file(path), new_state(recipe, config, warm=False)
    part = lambda prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}  # noqa: E731
    state.towers.load_state_dict(part("towers."))
    state.average.load_state_dict(part("average."))
    parameters, moments = learning(state.towers), {}
    for key, tensor in part("optimiser.").items():
        index, name = key.split(".")
        like = parameters[int(index)] if name != "step" else tensor
        # the fused optimiser walks raw memory, so a moment has to lie in memory as its parameter does
        moments.setdefault(int(index), {})[name] = torch.empty_like(like, requires_grad=False).copy_(tensor)
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})
    state.step, state.losses = step, tensors["losses"].tolist()
    return state
