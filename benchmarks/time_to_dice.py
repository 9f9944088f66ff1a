"""How much longer a U-Net trains until it segments as well as SEMI does, side by side on the same draws, with the features cached.

The U-Net is trained anew with more and more steps (what a person who does not know the right number would do is longer still: only the last of its
trainings is counted). Where it never gets there within --limit, the ratio is a lower bound and marked so.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

if __package__ in (None, ""):  # `python benchmarks/time_to_dice.py`: the project is not on the path then
    sys.path[0] = str(Path(__file__).parents[1])

from pipelines.cli import run

if TYPE_CHECKING:
    from pipelines.systems.protocol import Task
    from pipelines.train.split import Split

STEPS = (100, 200, 400, 800, 1600, 3200, 6400, 12800)
app = cyclopts.App(name="python benchmarks/time_to_dice.py", help_format="plaintext")


@app.default
def main(*, cohort: str = "tcga-lgg", sites: Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True)] = (), shots: int = 4,
         seeds: int = 3, limit: float = 600, root: Path = Path(), out: Path = Path("reports/time_to_dice.csv")) -> None:
    """Print, for every draw, SEMI's Dice and seconds, the U-Net's, and how many times as long it took.

    Parameters
    ----------
    cohort
        A cohort whose resampled images, prompts and embeddings lie under ROOT/data.
    sites
        Hospitals; by default all that have enough cases.
    limit
        Seconds that one training of the U-Net may take before it is given up.
    """
    import pandas as pd

    from benchmarks.laid_out import draws_at, laid_out
    from pipelines.outputs import write_text
    from pipelines.train.split import sites_of

    params, task, cases = laid_out(cohort, root)
    rows = []
    for site, seed, split in draws_at(sites or sites_of(cases, params.cohort.targets), cases, params, shots=shots, seeds=seeds):
        rows.append({"site": site, "seed": seed, **race(task, split, seed, limit)})
        print(said(rows[-1]), flush=True)
    table = pd.DataFrame(rows)
    write_text(out, table.to_csv(index=False))
    print(f"median of {len(table)} draws: {table.ratio.median():.0f} times as long; the U-Net got there in {int(table.reached.sum())} of them")


def race(task: Task, split: Split, seed: int, limit: float) -> dict:
    """Both systems on one draw. Seconds are of training alone, on one thread, as everywhere in the project."""
    goal, quick = fitted("semi", {}, task, split, seed)
    for steps in STEPS:
        reached, slow = fitted("unet", {"steps": steps}, task, split, seed)
        if reached >= goal or slow > limit:
            break
    return {"semi_dice": goal, "semi_seconds": quick, "unet_dice": reached, "unet_seconds": slow, "unet_steps": steps, "ratio": slow / quick,
            "reached": reached >= goal}


def fitted(system: str, changes: dict, task: Task, split: Split, seed: int) -> tuple[float, float]:
    """Mean Dice over the draw's query cases, and the seconds of the training."""
    import numpy as np

    from pipelines.evaluate.metrics import dice
    from pipelines.systems import create, params_model
    from pipelines.threads import one_thread

    with one_thread():
        made = create(system, params_model(system)(**changes))
        start = time.perf_counter()
        made.fit(task, split.support, seed)
        seconds = time.perf_counter() - start
        scores = [dice(case.label() > 0, made.predict(task, case).argmax(0) > 0) for case in split.query]
    return float(np.nanmean(scores)), seconds


def said(row: dict) -> str:
    """One draw in words."""
    end = "" if row["reached"] else " and is not there yet"
    return (f"{row['site']} draw {row['seed']}: SEMI {row['semi_dice']:.3f} in {row['semi_seconds']:.1f} s; U-Net {row['unet_dice']:.3f} in "
            f"{row['unet_seconds']:.0f} s ({row['unet_steps']} steps), {row['ratio']:.0f} times as long{end}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run(app)
