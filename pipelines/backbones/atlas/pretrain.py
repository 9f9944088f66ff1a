"""Train Atlas on synthetic heads: `python -m pipelines.backbones.atlas.pretrain --help`."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts

from pipelines.cli import run
from pipelines.errors import UsageError
from pipelines.outputs import locked, write_json

if TYPE_CHECKING:
    from pipelines.backbones.atlas.config import AtlasConfig
    from pipelines.backbones.atlas.slices import Anatomy
    from pipelines.backbones.atlas.training import Recipe, State

app = cyclopts.App(help="Train the embedded backbone. No real image is ever shown to it.")
CHECKPOINT_SECONDS = 120
EVERY = 50  # steps between two progress lines
FIRST_SNAPSHOT = 500


@app.default
def pretrain(
    out: Path,
    *,
    steps: Annotated[int, cyclopts.Parameter(help="length of the run; about 0.3 s each on two cores")] = 12500,
    seed: int = 2026,
    heads: Annotated[int, cyclopts.Parameter(help="synthetic heads to cut slices from, 3 s each, made once")] = 120,
    supervision: Annotated[Literal["text", "ids"], cyclopts.Parameter(
        help="ids: a free vector for each concept instead of sentences, the control of what text is worth")] = "text",
    start: Annotated[Path | None, cyclopts.Parameter(
        help="folder of a finished run of fewer steps to go on from, with a learning rate that begins anew")] = None,
    snapshots: Annotated[Path | None, cyclopts.Parameter(
        help="also keep the averaged weights after 500, 1000, 2000, 4000 ... steps here, as step-*/ folders, for the learning curve")] = None,
    cache: Annotated[Path | None, cyclopts.Parameter(help="folder for the heads, kept; default: the system's temporary folder")] = None,
) -> None:
    """Train both towers and write weights.safetensors, config.json and metrics.json to OUT.

    A killed run goes on where its last checkpoint was (every two minutes, in a hidden folder beside OUT) when started again with the same
    arguments, and ends with the same weights. Example:

        python -m pipelines.backbones.atlas.pretrain --out models/atlas --steps 12500 --seed 2026
        python -m pipelines.backbones.atlas.pretrain --out models/atlas --start models/atlas --steps 22500
    """
    if steps < 1 or heads < 1:
        raise UsageError(f"--steps is {steps} and --heads is {heads}; both must be at least 1")
    import torch

    from pipelines.backbones.atlas import concepts
    from pipelines.backbones.atlas.config import AtlasConfig
    from pipelines.backbones.atlas.training import Recipe
    from pipelines.backbones.atlas.volumes import label_volumes

    torch.set_num_threads(1)  # the shares of a batch run side by side; more threads inside each would only wait for one another
    cache = cache or Path(tempfile.gettempdir()) / "atlas-heads"
    config = AtlasConfig(classes=len(concepts.CONCEPTS) if supervision == "ids" else 0)
    recipe = Recipe(seed=seed, heads=heads, first=_steps_of(start, steps) if start else 0)
    pretrain_on(label_volumes(heads, seed, cache, _say), Path(out), recipe, config, steps=steps, cache=cache, snapshots=snapshots, start=start)


def pretrain_on(volumes, out: Path, recipe: Recipe, config: AtlasConfig, *, steps: int, cache: Path, snapshots: Path | None = None,
                start: Path | None = None) -> None:
    """The run itself, on label volumes `(N, X, Y, Z)`: resume, go on from `start` or start, train, write, evaluate on heads not seen."""
    from pipelines.backbones.atlas.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
    from pipelines.backbones.atlas.model import Atlas, save_towers
    from pipelines.backbones.atlas.training import continued, new_state, train

    out.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    with locked(out.parent / f".{out.name}.lock"):
        partial.mkdir(exist_ok=True)
        checkpoint = partial / CHECKPOINT
        state = load_checkpoint(checkpoint, recipe, config, steps) if checkpoint.is_file() else None
        if state is None:
            state = continued(recipe, config, Atlas.load(start).towers.state_dict()) if start else new_state(recipe, config)
        _say(f"step {state.step} of {steps}")
        saved = began = time.monotonic()
        first = state.step

        def after_step(now: State) -> None:
            nonlocal saved
            if now.step % EVERY == 0:
                each = (time.monotonic() - began) / (now.step - first)
                left = (steps - now.step) * each / 60
                _say(f"step {now.step} of {steps}, loss {sum(now.losses[-EVERY:]) / EVERY:.4f}, {each:.2f} s a step, {left:.0f} min left")
            if snapshots and _is_snapshot(now.step):
                save_towers(snapshots / f"step-{now.step:06d}", now.average.module, config)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save_checkpoint(checkpoint, now, recipe, config, steps)
                saved = time.monotonic()

        train(state, anatomy_of(volumes), recipe, steps, after_step)
        save_checkpoint(checkpoint, state, recipe, config, steps)  # before the evaluation: a kill there costs no training
        save_towers(out, state.average.module, config)
        write_json(out / "metrics.json", _metrics(out, state, recipe, steps, cache))
        shutil.rmtree(partial)


def anatomy_of(volumes) -> Anatomy:
    """Label volumes (numpy, uint8) with the map of places, as tensors."""
    import torch

    from pipelines.backbones.atlas.slices import Anatomy
    from pipelines.backbones.atlas.volumes import place_map

    return Anatomy(torch.from_numpy(volumes), torch.from_numpy(place_map(volumes.shape[1:])))


def _metrics(out: Path, state: State, recipe: Recipe, steps: int, cache: Path) -> dict:
    from pipelines.backbones.atlas.evaluation import facet_accuracy, zero_shot
    from pipelines.backbones.atlas.model import Atlas

    atlas = Atlas.load(out)
    curve = {str(recipe.first + done): sum(state.losses[done - EVERY : done]) / EVERY for done in range(EVERY, len(state.losses) + 1, EVERY)}
    metrics = {"steps": steps, "seed": recipe.seed, "heads": recipe.heads, "first": recipe.first, "fingerprint": atlas.fingerprint, "loss": curve}
    if not atlas.config.classes:
        metrics |= {"zero_shot_synthetic_dice": zero_shot(atlas, cache, recipe.seed + 1, _say),
                    "facets_synthetic_accuracy": facet_accuracy(atlas, cache, recipe.seed + 1, _say)}
    return metrics


def _steps_of(start: Path, steps: int) -> int:
    """How many steps the finished run in `start` had; they must be fewer than `steps`."""
    path = Path(start) / "metrics.json"
    if not path.is_file():
        raise UsageError(f"--start {start} has no metrics.json; give a folder that this command wrote")
    done = json.loads(path.read_text())["steps"]
    if done >= steps:
        raise UsageError(f"--start {start} has {done} steps already and --steps is {steps}; ask for more")
    return done


def _is_snapshot(step: int) -> bool:
    doublings, rest = divmod(step, FIRST_SNAPSHOT)
    return rest == 0 and doublings & (doublings - 1) == 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run(app)
