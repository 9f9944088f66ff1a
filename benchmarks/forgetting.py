"""What an encoder forgets when it is not frozen: zero-shot naming on other hospitals' images before and after adapting to one.

SEMI is fitted at every site with a frozen encoder, with adapters on its last blocks, and with the whole encoder learning; then the encoder of each
fit names the finding on the cases of all *other* sites by text alone. A frozen encoder cannot forget; how much the others do, and what they win at
the site itself, is what this prints.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

if __package__ in (None, ""):  # `python benchmarks/forgetting.py`: the project is not on the path then
    sys.path[0] = str(Path(__file__).parents[1])

from pipelines.cli import run

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.params import Params
    from pipelines.systems.protocol import Task
    from pipelines.train.split import Split

ENCODERS = ("frozen", "lora", "full")
app = cyclopts.App(name="python benchmarks/forgetting.py", help_format="plaintext")


@dataclass(frozen=True)
class Fit:
    """One adaptation, and the cases that its encoder is asked about afterwards."""

    encoder: str
    site: str
    seed: int
    split: Split
    elsewhere: tuple


@app.default
def main(*, cohort: str = "tcga-lgg", shots: int = 4, seeds: int = 3, others: int = 4, root: Path = Path(), jobs: int = 2,
         encoders: Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True)] = ENCODERS,
         out: Path = Path("reports/forgetting.csv")) -> None:
    """Fit, name, and print the means with paired differences from the frozen encoder.

    Parameters
    ----------
    cohort
        A cohort whose resampled images, prompts and embeddings lie under ROOT/data.
    shots
        Labelled cases per fit; sites with too few are left out.
    seeds
        Support draws per site.
    others
        Cases of every other site that the encoder is asked about after a fit.
    """
    from benchmarks.laid_out import laid_out
    from pipelines.outputs import write_text
    from pipelines.parallel import spread

    params, task, cases = laid_out(cohort, root)
    fits = plan(cases, params, encoders, shots=shots, seeds=seeds, others=others)
    rows = []
    for number, found in enumerate(spread(partial(measure, task=task, params=params), fits, jobs), start=1):
        rows += found
        print(f"fit {number} of {len(fits)}", flush=True)
    import pandas as pd

    table = pd.DataFrame(rows)
    write_text(out, table.to_csv(index=False))
    print(summary(table, params))


def plan(cases, params: Params, encoders, *, shots: int, seeds: int, others: int) -> list[Fit]:
    """Every encoder on the same draws."""
    from benchmarks.laid_out import draws_at
    from pipelines.train.split import sites_of

    fits = []
    for site, seed, split in draws_at(sites_of(cases, params.cohort.targets), cases, params, shots=shots, seeds=seeds):
        elsewhere = tuple(case for other in sites_of(cases, "all") if other != site for case in [c for c in cases if c.site == other][:others])
        fits += [Fit(encoder, site, seed, split, elsewhere) for encoder in encoders]
    return fits


def measure(fit: Fit, task: Task, params: Params) -> list[dict]:
    """Dice of the fit's query cases, and of what its encoder names elsewhere by text alone."""
    from benchmarks.feature_naming import named_by
    from pipelines.evaluate.metrics import dice
    from pipelines.systems import create, params_model
    from pipelines.threads import one_thread

    with one_thread():
        system = create("semi", params_model("semi")(encoder=fit.encoder))
        system.fit(task, fit.split.support, fit.seed)
        backbone = task.backbone
        if system.towers:
            from pipelines.systems.semi.encoder import restored

            backbone = restored(backbone, system.params, system.towers[0])
        rows = [("adapted", case, dice(case.label() > 0, system.predict(task, case).argmax(0) > 0)) for case in fit.split.query]
        rows += [("zero-shot elsewhere", case, dice(case.label() > 0, named_by(backbone, params, case))) for case in fit.elsewhere]
    return [{"encoder": fit.encoder, "site": fit.site, "seed": fit.seed, "case": case.id, "what": what, "dice": value} for what, case, value in rows]


def summary(table: pd.DataFrame, params: Params) -> str:
    """Means over patients, and differences from the frozen encoder with paired intervals."""
    from pipelines.report.statistics import compare, pair

    lines = []
    for what, rows in table.groupby("what"):
        by = dict(list(rows.assign(label="finding").groupby("encoder")))
        for encoder, values in by.items():
            patients = values.groupby("case").dice.mean()
            line = f"{what:20} {encoder:7} {patients.mean():.3f} ({len(patients)} patients)"
            if encoder != "frozen" and "frozen" in by:
                found = compare(pair(values, by["frozen"], ["dice"]), "dice", params.cohort.split_by, params.evaluate)
                line += f"   minus frozen {found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run(app)
