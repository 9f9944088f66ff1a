"""The results in the terminal: `python -m pipelines.report.table`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import cyclopts
from rich import box
from rich.console import Console
from rich.table import Table

from pipelines.cli import run
from pipelines.errors import DataError
from pipelines.report.page import briefly
from pipelines.report.words import PLURAL, interval, number, seconds

app = cyclopts.App(name="python -m pipelines.report.table", help_format="markdown")


@app.default
def main(reports: Path = Path("reports")) -> None:
    """Print the results table of every reported cohort, and where the report and the recorded runs are.

    Parameters
    ----------
    reports
        Folder that `python -m pipelines.report` wrote.
    """
    print_results(reports)


def print_results(reports: Path, console: Console | None = None) -> None:
    """Print a table per cohort (system x shots, means with intervals) and the paths to look at next."""
    reports, console = Path(reports), console or Console()
    path = reports / "metrics.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist; `python -m pipelines.report --out {reports}` makes it")
    for name, cohort in json.loads(path.read_text()).items():
        if "classification" in cohort:
            console.print(classification_table(name, cohort["classification"]))
        if "labels" not in cohort:
            continue
        console.print(cohort_table(name, cohort))
        if cohort["caveat"]:
            console.print(f"  Caveat: {cohort['caveat']}.", style="yellow", highlight=False)
        console.print()
    for title, place in (("report", reports / "index.html"), ("results", reports / "results.csv"), *recorded(reports)):
        console.print(f"{title:>12}  {place.resolve() if isinstance(place, Path) else place}", highlight=False, soft_wrap=True)


def cohort_table(name: str, cohort: Mapping) -> Table:
    """One cohort: a block a label, a row an experiment: Dice with its interval, surface distance, calibration error. Fits 80 columns."""
    experiments = briefly(cohort)
    surface = next(key for key in next(iter(experiments[0]["labels"].values())) if key.startswith("nsd_"))
    seeds = len(experiments[0]["seeds"])
    title = (f"{name}: {cohort['disease']}, means and {cohort['confidence']:.0%} bootstrap intervals over {PLURAL[cohort['unit']]}, "
             f"{seeds} seed{'s' * (seeds > 1)}")
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for heading in ("shots", PLURAL[cohort["unit"]], "Dice", f"NSD {surface.removeprefix('nsd_')}", "ECE", "train"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label in cohort["labels"]:
        table.add_row(label, style="cyan")
        for experiment in experiments:
            values = experiment["labels"][label]
            table.add_row(experiment["title"], str(experiment["shots"]), str(values["dice"]["n"]),
                          f"{number(values['dice']['mean'])} {interval(values['dice'])}", number(values[surface]["mean"]),
                          number(values["ece"]["mean"], 3), seconds(experiment["cost"]["train_seconds"]),
                          style="bold" if experiment["system"] == cohort["headline"] else None)
        table.add_section()
    return table


def classification_table(name: str, metrics: Mapping) -> Table:
    """What systems that answer whole cases came to, a row an experiment. Fits 80 columns."""
    found = Table(title=f"{name}: {metrics['outcome']['column']} of whole cases, {metrics['confidence']:.0%} bootstrap intervals over cases",
                  title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    found.add_column("", no_wrap=True)
    for heading in ("cases", "mAP", "AUROC", "ECE", "train"):
        found.add_column(heading, justify="right", no_wrap=True)
    for experiment, entry in metrics["experiments"].items():
        measures = entry["measures"]
        found.add_row(experiment, str(entry["cases"]), f"{number(measures['map']['mean'], 3)} {interval(measures['map'])}",
                      number(measures["auroc"]["mean"], 3), number(measures["ece"]["mean"], 3), seconds(entry["cost"]["train_seconds"]),
                      style="bold" if experiment == metrics["headline"] else None)
    return found


def recorded(reports: Path) -> list[tuple[str, Path | str]]:
    """Where the record stage wrote the runs; nothing where it has not run."""
    if not (reports / "runs.json").is_file():
        return []
    return [("MLflow store", os.environ.get("MLFLOW_TRACKING_URI") or reports.parent / "mlruns" / "mlflow.db")]


if __name__ == "__main__":
    run(app)
