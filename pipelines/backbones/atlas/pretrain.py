"""Train Atlas on synthetic heads: `python -m pipelines.backbones.atlas.pretrain --help`."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import cyclopts

from pipelines.cli import run
from pipelines.errors import UsageError
from pipelines.outputs import locked, write_json

app = cyclopts.App(help="Train the embedded backbone. No real image is ever shown to it.")
CHECKPOINT_SECONDS = 120
EVERY = 50  # steps between two progress lines


@app.default
def pretrain(
    out: Path,
    steps: Annotated[int, cyclopts.Parameter(help="length of the run; about 0.7 s each on one core")] = 2400,
    seed: int = 2026,
    heads: Annotated[int, cyclopts.Parameter(help="synthetic heads to cut slices from, 3 s each, made once")] = 80,
    cache: Annotated[Path | None, cyclopts.Parameter(help="folder for the heads, kept; default: the system's temporary folder")] = None,
) -> None:
    """Train both towers and write weights.safetensors, config.json and metrics.json to OUT.

    A killed run goes on where its last checkpoint was (every two minutes, in a hidden folder beside OUT) when started again with the same
    arguments, and ends with the same weights. Example:

        python -m pipelines.backbones.atlas.pretrain --out models/atlas --steps 2400 --seed 2026
    """
    if steps < 1 or heads < 1:
        raise UsageError(f"--steps is {steps} and --heads is {heads}; both must be at least 1")
    import torch

    from pipelines.backbones.atlas.config import AtlasConfig
    from pipelines.backbones.atlas.training import Recipe
    from pipelines.backbones.atlas.volumes import label_volumes

    cache = cache or Path(tempfile.gettempdir()) / "atlas-heads"
    volumes = torch.from_numpy(label_volumes(heads, seed, cache, _say))
    pretrain_on(volumes, Path(out), Recipe(seed=seed, heads=heads), AtlasConfig(), steps=steps, cache=cache)


def pretrain_on(volumes, out: Path, recipe, config, *, steps: int, cache: Path) -> None:
    """The run itself, on label volumes `(N, X, Y, Z)`: resume or start, train, write, evaluate on heads not seen."""
    from pipelines.backbones.atlas.evaluation import zero_shot
    from pipelines.backbones.atlas.model import Atlas, save_towers
    from pipelines.backbones.atlas.training import CHECKPOINT, load_checkpoint, new_state, save_checkpoint, train

    out.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    with locked(out.parent / f".{out.name}.lock"):
        partial.mkdir(exist_ok=True)
        checkpoint = partial / CHECKPOINT
        state = load_checkpoint(checkpoint, recipe, config, steps) if checkpoint.is_file() else None
        state = state or new_state(recipe, config)
        _say(f"step {state.step} of {steps}")
        saved = began = time.monotonic()
        first = state.step

        def after_step(now) -> None:
            nonlocal saved
            if now.step % EVERY == 0:
                each = (time.monotonic() - began) / (now.step - first)
                left = (steps - now.step) * each / 60
                _say(f"step {now.step} of {steps}, loss {sum(now.losses[-EVERY:]) / EVERY:.4f}, {each:.2f} s a step, {left:.0f} min left")
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save_checkpoint(checkpoint, now, recipe, config, steps)
                saved = time.monotonic()

        train(state, volumes, recipe, steps, after_step)
        save_checkpoint(checkpoint, state, recipe, config, steps)  # before the evaluation: a kill there costs no training
        save_towers(out, state.average.module, config)
        atlas = Atlas.load(out)
        curve = {str(step): sum(state.losses[step - EVERY : step]) / EVERY for step in range(EVERY, steps + 1, EVERY)}
        write_json(out / "metrics.json", {"steps": steps, "seed": recipe.seed, "heads": recipe.heads, "fingerprint": atlas.fingerprint,
                                          "loss": curve, "zero_shot_synthetic_dice": zero_shot(atlas, cache, recipe.seed + 1, _say)})
        shutil.rmtree(partial)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run(app)
