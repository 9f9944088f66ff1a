"""The README's figure and table, taken from a finished run, so that no number in it was typed by hand: `make readme`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import cyclopts

from pipelines.cli import run
from pipelines.errors import DataError
from pipelines.outputs import staged_file, write_text
from pipelines.report.page import briefly
from pipelines.report.words import PLURAL, interval, number, p_value, seconds, signed

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

app = cyclopts.App(name="python -m pipelines.report.readme", help_format="markdown")


@app.default
def main(reports: Path = Path("reports"), readme: Path = Path("README.md"), figure: Path = Path("docs/figures/overview.png"),
         cohort: str = "phantom") -> None:
    """Put the results of `cohort` between the README's markers and its overview figure beside the docs.

    Example: `python -m pipelines.report.readme --reports reports --readme README.md`.
    """
    path = reports / "metrics.json"
    metrics = json.loads(path.read_text()) if path.is_file() else {}
    if cohort not in metrics:
        raise DataError(f"{path} has no results of {cohort!r}; `make reproduce COHORT={cohort}` makes them")
    with staged_file(figure) as temporary:
        shutil.copyfile(reports / "figures" / "overview.png", temporary)
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise DataError(f"{readme} has no lines {BEGIN} and {END}; add them where the results belong")
    block = f"{BEGIN}\n![{alt_text(metrics[cohort])}]({figure})\n\n{markdown(metrics[cohort])}\n{END}"
    write_text(readme, re.sub(f"{BEGIN}.*{END}", lambda _: block, text, flags=re.DOTALL))


def alt_text(cohort: Mapping) -> str:
    return f"One query case of the {cohort['disease']} cohort with the outlines of truth and prediction, and the reliability diagram"


def markdown(cohort: Mapping) -> str:
    """The table of one cohort in Markdown: a row a label and experiment, means with their intervals."""
    first, units = briefly(cohort)[0], PLURAL[cohort["unit"]]
    lines = [f"Means with {cohort['confidence']:.0%} bootstrap intervals over query {units}, {len(first['seeds'])} support draws at each of "
             f"{len(first['sites'])} sites, ECE within the foreground band. Caveat: {cohort['caveat']}.", "",
             "| label | system | shots | Dice | ECE | train | Dice of the headline system minus it, paired (Holm-corrected p) |",
             "|---|---|---|---|---|---|---|"]
    for label in cohort["labels"]:
        for entry in briefly(cohort):
            dice, ece = entry["labels"][label]["dice"], entry["labels"][label]["ece"]
            lines.append(f"| {label} | {entry['title']} | {entry['shots']} | {number(dice['mean'])} {interval(dice)} "
                         f"| {number(ece['mean'], 3)} {interval(ece)} | {seconds(entry['cost']['train_seconds'])} | {paired(cohort, entry, label)} |")
    return "\n".join(lines)


def paired(cohort: Mapping, entry: Mapping, label: str) -> str:
    """How the headline system compares with `entry` on the same draws and cases; empty for the headline itself."""
    name = next(name for name, value in cohort["experiments"].items() if value is entry)
    other = next((by_label[label]["dice"] for title, by_label in cohort["comparisons"].items() if title.endswith(f" vs {name}")), None)
    return f"{signed(other['difference'])} {interval(other)} (p {p_value(other['p_holm'])})" if other else ""


if __name__ == "__main__":
    run(app)
