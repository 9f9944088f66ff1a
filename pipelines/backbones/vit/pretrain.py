"""Train the small vision transformer on synthetic heads: `python -m pipelines.backbones.vit.pretrain --help`."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

from pipelines.cli import run
from pipelines.errors import UsageError
from pipelines.outputs import locked, staged_file, write_json

if TYPE_CHECKING:
    from pipelines.backbones.vit.config import VitConfig
    from pipelines.backbones.vit.training import Recipe, State

app = cyclopts.App(help="Train the small vision transformer that answers whole cases. No real image is ever shown to it.")
CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 60
EVERY = 50  # steps between two progress lines


@app.default
def pretrain(
    out: Path,
    *,
    steps: Annotated[int, cyclopts.Parameter(help="length of the run; about 0.3 s each on one idle core, 0.8 s while they make slices anew")] = 3500,
    seed: int = 2026,
    heads: Annotated[int, cyclopts.Parameter(help="synthetic heads to cut slices from, 3 s each, made once")] = 60,
    start: Annotated[Path | None, cyclopts.Parameter(help="folder of a transformer of this shape to begin from, not from random weights")] = None,
    bright: Annotated[float, cyclopts.Parameter(help="weight of what the class token says of brightness")] = 1.0,
    cache: Annotated[Path | None, cyclopts.Parameter(help="folder for the heads, kept; default: the system's temporary folder")] = None,
) -> None:
    """Write weights.safetensors, config.json and metrics.json to OUT.

    A killed run goes on where its last checkpoint was when started again with the same arguments, and ends with the same weights. Example:

        python -m pipelines.backbones.vit.pretrain --out models/vit
        python -m pipelines.backbones.vit.pretrain --out models/vit --start models/vit --seed 2027 --bright 3 --steps 3000
    """
    if steps < 1 or heads < 1:
        raise UsageError(f"--steps is {steps} and --heads is {heads}; both must be at least 1")
    from pipelines.backbones.atlas.volumes import label_volumes
    from pipelines.backbones.vit.config import VitConfig
    from pipelines.backbones.vit.training import Recipe
    from pipelines.threads import one_thread

    with one_thread():
        cache = cache or Path(tempfile.gettempdir()) / "atlas-heads"
        pretrain_on(label_volumes(heads, seed, cache, _say), Path(out), Recipe(seed=seed, heads=heads, bright=bright), VitConfig(), steps,
                    start=start)


def pretrain_on(volumes, out: Path, recipe: Recipe, config: VitConfig, steps: int, *, start: Path | None = None) -> None:
    """The run itself, on label volumes `(N, X, Y, Z)`: resume or start (`start`: from the weights there), train, write."""
    from pipelines.backbones.atlas.pretrain import anatomy_of
    from pipelines.backbones.vit.load import save_vit
    from pipelines.backbones.vit.training import coarser, identity, new_state, train

    partial = out.parent / f".{out.name}.partial"
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent / f".{out.name}.lock"):
        partial.mkdir(exist_ok=True)
        state, begun = new_state(recipe, config), {}
        if start:
            begun = {"start": begin_at(state, start)}
        run_of = json.dumps(identity(recipe, config, steps) | begun, sort_keys=True)
        resume(partial / CHECKPOINT, state, run_of)
        _say(f"step {state.step} of {steps}")
        saved = began = time.monotonic()
        first = state.step

        def after_step(now: State) -> None:
            nonlocal saved
            if now.step % EVERY == 0:
                each = (time.monotonic() - began) / (now.step - first)
                means = [sum(part) / len(part) for part in zip(*now.losses[-EVERY:], strict=True)]
                said = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(("patches", "parts", "levels"), means, strict=True))
                _say(f"step {now.step} of {steps}, {said}, {each:.2f} s a step, {(steps - now.step) * each / 60:.0f} min left")
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                keep(partial / CHECKPOINT, now, run_of)
                saved = time.monotonic()

        train(state, anatomy_of(coarser(volumes)), recipe, config, steps, after_step=after_step)
        save_vit(out, state.network["vit"], config)
        curve = {str(done): [sum(part) / EVERY for part in zip(*state.losses[done - EVERY:done], strict=True)]
                 for done in range(EVERY, len(state.losses) + 1, EVERY)}
        write_json(out / "metrics.json", {"steps": steps, "seed": recipe.seed, "heads": recipe.heads, "bright": recipe.bright, **begun, "loss": curve,
                                          "loss_is": ["labels of patches", "labels of parts, from the class token",
                                                      "brightness of parts, from the class token"]})
        shutil.rmtree(partial)


def begin_at(state: State, start: Path) -> str:
    """Give a new run the weights in a folder. Returns their fingerprint. Raises `UsageError` where they are of another shape."""
    from pipelines.backbones.vit.load import load_vit

    before, own = load_vit(f"vit:{start}"), state.network["vit"]
    if before.config != own.config:
        raise UsageError(f"--start {start} has another shape ({before.config}); this run makes {own.config}")
    own.load_state_dict(before.state_dict())
    return before.fingerprint


def keep(path: Path, state: State, run_of: str) -> None:
    """Write a run so that `resume` can go on with it."""
    import torch
    from safetensors.torch import save_file

    tensors = {f"network.{name}": value for name, value in state.network.state_dict().items()}
    for index, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in moments.items()}
    tensors["losses"] = torch.tensor(state.losses, dtype=torch.float64)
    with staged_file(path) as temporary:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, temporary, metadata={"run": run_of})


def resume(path: Path, state: State, run_of: str) -> None:
    """Put a new run where the one in `path` was; does nothing where there is none, or it was another run."""
    from safetensors.torch import load_file, safe_open

    if not path.is_file():
        return
    with safe_open(path, "pt") as stored:
        if stored.metadata()["run"] != run_of:
            return
    tensors, moments = load_file(path), {}
    for name in [name for name in tensors if name.startswith("optimiser.")]:
        _, index, moment = name.split(".")
        moments.setdefault(int(index), {})[moment] = tensors.pop(name)
    state.losses = [tuple(pair) for pair in tensors.pop("losses").tolist()]
    state.network.load_state_dict({name.removeprefix("network."): value for name, value in tensors.items()})
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})
    state.step = len(state.losses)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run(app)
