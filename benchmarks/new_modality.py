"""A modality never seen before: are adapters that a hypernetwork generates from a few pairs better than learning its projector some other way?

Every arm of `semi-hyper` on the same support draws: other sites are the source (where there are any), the new modality is kept out of the
meta-training, and query cases are predicted from the new modality *alone*. Two questions: do regions lie beside the right words (no decoder), and
what is the Dice (same decoder training for every arm)?
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

if __package__ in (None, ""):  # `python benchmarks/new_modality.py`: the project is not on the path then
    sys.path[0] = str(Path(__file__).parents[1])

from pipelines.cli import run
from pipelines.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.params import Params
    from pipelines.systems.protocol import Task
    from pipelines.train.split import Split

#: What plays the new modality in each cohort.
NEW = {"phantom": ("PET",), "pgbm": ("ADC", "nCBF", "nRCBV", "sRCBV"), "tcga-lgg": ("FLAIR", "ceT1w")}
ARMS = ("generated", "generated-finetuned", "lora", "scratch", "shared", "aligned")
COLUMNS = ["cohort", "arm", "new_modality", "shots", "seed", "site", "case", "label"]
#: The arms that the others are compared with.
HEADLINES = ("generated", "generated-finetuned")
Many = cyclopts.Parameter(consume_multiple=True)
app = cyclopts.App(name="python benchmarks/new_modality.py", help_format="plaintext")


@dataclass(frozen=True)
class Draw:
    """One support draw, on which every arm is fitted."""

    new: str
    site: str
    shots: int
    seed: int
    split: Split
    source: tuple  # labelled cases of other sites


@app.default
def main(*, cohorts: Annotated[tuple[str, ...], Many] = tuple(NEW), new: Annotated[tuple[str, ...], Many] = (),
         arms: Annotated[tuple[str, ...], Many] = ARMS, shots: Annotated[tuple[int, ...], Many] = (1, 2, 4), seeds: int = 5, root: Path = Path(),
         out: Path = Path("reports/new_modality.csv"), views: int = 0, text_only: bool = False, alignment_only: bool = False, jobs: int = 2) -> None:
    """Compare the arms of semi-hyper on a new modality, and print means and paired differences with intervals over patients.

    Writes Dice to OUT and the share of regions nearest to their own class's words to the file of the same name with "-alignment".

    Parameters
    ----------
    cohorts
        Cohorts whose resampled images, prompts and embeddings lie under ROOT/data; one that is not there is left out with a sentence.
    new
        New modalities, instead of each cohort's usual ones.
    arms
        Ways to get the new modality's projector.
    shots
        Labelled cases per draw; a site with too few is left out.
    seeds
        Support draws per site and number of shots.
    root
        Folder with params.yaml, cohorts/ and data/.
    out
        The table to write.
    views
        Augmented copies that are encoded anew for the decoder (SEMI's own default is 6, which takes most of a fit's time).
    text_only
        Give the decoder text space alone, without token and intensity skips, which do not go through the projector.
    alignment_only
        Train no decoder; measure alignment alone.
    jobs
        Draws at a time, one thread each; the numbers do not depend on it.
    """
    import pandas as pd

    from pipelines.parallel import spread

    if min(shots, default=0) < 1 or seeds < 1:
        raise UsageError(f"--shots {min(shots, default=0)} and --seeds {seeds} must both be at least 1")
    if unknown := set(arms) - set(ARMS):
        raise UsageError(f"--arms has {min(unknown)!r}; there are {', '.join(ARMS)}")
    began, found = time.monotonic(), []
    for name in cohorts:
        try:
            params, task, draws = prepare(name, root, new or NEW.get(name, ()), shots, seeds)
        except (DataError, UsageError) as error:
            print(f"{name} left out: {error}")
            continue
        changes = {"views": views, "text_only": text_only}
        work = partial(measure, cohort=name, task=task, arms=arms, changes=changes, decode=not alignment_only)
        for count, (aligned, dice) in enumerate(spread(work, draws, jobs), start=1):
            found.append((params, aligned, dice))
            _write([one[1] for one in found], out.with_name(f"{out.stem}-alignment{out.suffix}"))  # now, so that a run that is stopped leaves rows
            if not alignment_only:
                _write([one[2] for one in found], out)
            print(f"{name}: draw {count} of {len(draws)}, {time.monotonic() - began:.0f} s", flush=True)
        own = [one for one in found if one[0] is params]
        for index, metric in ((1, "accuracy"), (2, "dice")):
            if own:
                report(pd.concat([one[index] for one in own]), metric, params)
    if not found:
        raise DataError(f"no cohort under {root} could be used; make its embeddings first (dvc repro), or name one with --cohorts")


def prepare(name: str, root: Path, new: Sequence[str], shots: Sequence[int], seeds: int) -> tuple[Params, Task, list[Draw]]:
    """A cohort's params and task, and all draws at every site that has enough labelled cases with a new modality."""
    from benchmarks.laid_out import laid_out
    from pipelines.train.split import draw, sites_of

    params, task, cases = laid_out(name, root)
    if unknown := set(new) - set(task.modalities):
        raise UsageError(f"{name} has no modality {min(unknown)!r}; it has {', '.join(task.modalities)}")
    labelled = [case for case in cases if case.dseg is not None]
    protocol = params.protocol.model_copy(update={"calibration_cases": 0})
    draws = []
    for modality in new:
        having = [case for case in labelled if modality in case.images]
        for site in sites_of(having, "all"):
            source = tuple(case for case in labelled if case.site != site)
            for count in shots:
                try:
                    draws += [Draw(modality, site, count, seed, draw(having, site, count, seed, protocol, split_by=params.cohort.split_by), source)
                              for seed in range(seeds)]
                except DataError:
                    print(f"{name}: site {site} has too few cases with {modality} for {count} shot(s)")
    return params, task, draws


def measure(draw: Draw, *, cohort: str, task: Task, arms: Sequence[str], changes: dict, decode: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Alignment and Dice of every arm on one draw, from the new modality alone."""
    import pandas as pd

    from pipelines.evaluate.metrics import dice
    from pipelines.systems.semi_hyper.alignment import region_accuracy
    from pipelines.systems.semi_hyper.params import Params
    from pipelines.systems.semi_hyper.system import System
    from pipelines.threads import one_thread

    fitted, aligned, segmented = {}, [], []
    with one_thread():
        for arm in arms:
            fitted[arm] = System(Params(arm=arm, new_modality=draw.new, **changes))
            (fitted[arm].fit if decode else fitted[arm].align)(task, draw.split.support, draw.seed, draw.source)
        for case in draw.split.query:
            shares = region_accuracy([system.networks[0] for system in fitted.values()], case, draw.new, task, fitted[arms[0]].params)
            for (arm, system), share in zip(fitted.items(), shares, strict=True):
                key = [cohort, arm, draw.new, draw.shots, draw.seed, draw.site, case.id]
                aligned.append([*key, "regions", share])
                if decode:
                    predicted, truth = system.predict(task, case.only([draw.new])).argmax(0), case.label()
                    segmented += [[*key, label, dice(truth == value, predicted == value)] for value, label in enumerate(task.labels, start=1)]
    return pd.DataFrame(aligned, columns=[*COLUMNS, "accuracy"]), pd.DataFrame(segmented, columns=[*COLUMNS, "dice"])


def report(rows: pd.DataFrame, metric: str, params: Params) -> None:
    """Print a table per new modality, label and number of shots: means, and the headline arms' difference to each arm."""
    if rows.empty:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipelines.report.statistics import compare, estimate, pair

    settings, split_by = params.evaluate, params.cohort.split_by
    for (cohort, new, label, shots), part in rows.groupby(["cohort", "new_modality", "label", "shots"], sort=False):
        by_arm = dict(list(part.groupby("arm", sort=False)))
        table = Table(title=f"{cohort}, {new} alone, {label}, {shots} shot(s): {metric} [{settings.confidence:.0%} interval over patients]",
                      title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("arm", "patients", metric, *(f"{headline} minus it" for headline in HEADLINES if headline in by_arm)):
            table.add_column(heading, no_wrap=True)
        for arm, own in by_arm.items():
            found = estimate(own, metric, split_by, settings)
            gaps = [compare(pair(by_arm[headline], own, [metric]), metric, split_by, settings) for headline in HEADLINES if headline in by_arm]
            table.add_row(arm, str(found["n"]), _said(found["mean"], found["low"], found["high"]),
                          *(_said(gap["difference"], gap["low"], gap["high"], "+") for gap in gaps))
        Console(width=130).print(table)


def _said(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.3f}" + (f" [{low:{sign}.3f}, {high:{sign}.3f}]" if low is not None else "")


def _write(rows: Sequence[pd.DataFrame], path: Path) -> None:
    import pandas as pd

    from pipelines.outputs import staged_file

    with staged_file(path) as temporary:
        pd.concat(rows).sort_values(COLUMNS).to_csv(temporary, index=False)


if __name__ == "__main__":
    run(app)
