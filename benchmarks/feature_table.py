"""The table of the features benchmark: means, and how many times as good one set is as another on the same draws."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from pipelines.params import Evaluate
from pipelines.report.page import interval, number
from pipelines.report.statistics import compare, estimate, pair, units

COLUMNS = ["features", "probe", "cohort", "site", "shots", "seed", "case", "dice"]
HEADLINE = "atlas"
#: Sets that hold Atlas's features, and so are no rivals of it.
WITH_ATLAS = (HEADLINE, "atlas+filters")


def ratio(rows: pd.DataFrame, first: tuple[str, str], second: tuple[str, str], settings: Evaluate) -> dict[str, float | int | None]:
    """How many times as large the mean Dice of the first (features, probe) is as the second's, paired by draw and case, units resampled."""
    labelled = rows.assign(label="all")  # Dice is over all labels already
    of = [labelled[(labelled.features == features) & (labelled.probe == probe)] for features, probe in (first, second)]
    return compare(pair(*of, ["dice"]), "dice", "subject", settings)


def best(rows: pd.DataFrame, names: list[str]) -> tuple[str, str] | None:
    """The (features, probe) of the highest mean over subjects."""
    among = rows[rows.features.isin(names)]
    if among.empty:
        return None
    means = among.assign(unit=units(among, "subject")).groupby(["features", "probe", "unit"]).dice.mean().groupby(["features", "probe"]).mean()
    return means.idxmax()


def print_table(rows: pd.DataFrame, settings: Evaluate, console: Console | None = None) -> None:
    """A block per cohort and number of shots; ratios are of `atlas` to the set of the row, with the same probe."""
    console = console or Console()
    for (cohort, shots), part in rows.groupby(["cohort", "shots"], sort=True):
        table = Table(title=f"{cohort}, {shots} shot(s): Dice, {settings.confidence:.0%} bootstrap intervals over subjects", title_justify="left",
                      title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("features", "probe", "subjects", "Dice", f"{HEADLINE} is times as good"):
            table.add_column(heading, justify="left" if heading in ("features", "probe") else "right", no_wrap=True)
        for probe, of_probe in part.groupby("probe", sort=False):
            for features, own in of_probe.groupby("features", sort=False):
                found = estimate(own, "dice", "subject", settings)
                table.add_row(features, probe, str(found["n"]), f"{number(found['mean'], 3)} {interval(found)}",
                              _ratio(of_probe, features, probe, settings))
            table.add_section()
        console.print(table)
        if shots:
            console.print(_verdict(part, settings), highlight=False)
            console.print()


def _ratio(rows: pd.DataFrame, features: str, probe: str, settings: Evaluate) -> str:
    if features == HEADLINE or HEADLINE not in set(rows.features):
        return ""
    return said(ratio(rows, (HEADLINE, probe), (features, probe), settings))


def said(found: dict[str, float | int | None]) -> str:
    """A ratio with its interval, as text; empty where there is none."""
    if found["ratio"] is None:
        return ""
    low, high = found["ratio_low"], found["ratio_high"]
    return f"{found['ratio']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low is not None else "")


def _verdict(part: pd.DataFrame, settings: Evaluate) -> str:
    """The best of each camp against each other."""
    rivals = [name for name in part.features.unique() if name not in WITH_ATLAS]
    ours, theirs, mixed = best(part, [HEADLINE]), best(part, rivals), best(part, list(WITH_ATLAS))
    if ours is None or theirs is None:
        return ""
    lines = [f"best of {HEADLINE} ({ours[1]}) over the best of the others ({', '.join(theirs)}): {said(ratio(part, ours, theirs, settings))}"]
    if mixed != ours:
        lines.append(f"best with {HEADLINE} in it ({', '.join(mixed)}) over the same: {said(ratio(part, mixed, theirs, settings))}")
    return "\n".join(lines)
