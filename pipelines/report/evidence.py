"""The tables of docs/evidence.md and docs/ei-mor.md, taken from a finished report, so that no number in them was typed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import cyclopts

from pipelines.cli import run
from pipelines.errors import DataError
from pipelines.outputs import write_text
from pipelines.report import classified, continual
from pipelines.report.claims import NONE, Row, aims, variants
from pipelines.report.words import PLURAL, condition, interval, percent, signed

MARKER = re.compile(r"<!-- evidence:([a-z0-9-]+):begin -->.*?<!-- evidence:\1:end -->", re.DOTALL)

app = cyclopts.App(name="python -m pipelines.report.evidence", help_format="markdown")


@app.default
def main(reports: Path = Path("reports"), document: Path = Path("docs/evidence.md")) -> None:
    """Write each cohort's table of aims, and of ablations and controls, between the document's markers.

    A cohort's place is between `<!-- evidence:<cohort>:begin -->` and `<!-- evidence:<cohort>:end -->`; a cohort that the report does not
    have keeps what is there. Example: `python -m pipelines.report.evidence --reports reports --document docs/evidence.md`.
    """
    path = reports / "metrics.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist; `python -m pipelines.report --out {reports}` makes it")
    metrics, text = json.loads(path.read_text()), document.read_text()
    places = [found.group(1) for found in MARKER.finditer(text)]
    if not set(places) & set(metrics):
        raise DataError(f"{document} has no place for {', '.join(metrics)}; add <!-- evidence:{next(iter(metrics))}:begin --> and its end")
    write_text(document, MARKER.sub(lambda found: block(found, metrics), text))
    for name in metrics:
        print(f"{name}: {'written' if name in places else f'no place for it in {document.name}'}", flush=True)


def block(found: re.Match, metrics: Mapping) -> str:
    """What belongs between a cohort's markers; what is there already for a cohort without a report."""
    name = found.group(1)
    if not {"focus", "classification"} & set(metrics.get(name, {})):
        return found.group(0)
    return f"<!-- evidence:{name}:begin -->\n{markdown(metrics[name])}\n<!-- evidence:{name}:end -->"


def markdown(metrics: Mapping) -> str:
    """One cohort: what the figures are over, the aims, then the ablations and controls; or, where whole cases were answered, their table."""
    if "focus" not in metrics:
        return "\n".join(classified.markdown(metrics["classification"]))
    focus = metrics["focus"]
    result = metrics["experiments"][focus["experiment"]]
    sites, units = len(result["sites"]), PLURAL[metrics["unit"]]
    over = f"Means over {sites} sites, each counted once" if sites > 1 else f"Means over {units}"
    lines = [f"{over}; {metrics['confidence']:.0%} bootstrap intervals over {units}; {len(result['seeds'])} draws of labelled cases, the same for "
             "every system; the best baseline is the one of best mean on these cases."
             + (f" Caveat: {metrics['caveat']}." if metrics["caveat"] else ""), "",
             "| Aim | Measured | Best baseline | Reached | Control |", "|---|---|---|---|---|"]
    lines += [line(row) for row in aims(metrics)]
    for label in metrics["labels"]:
        rows = variants(metrics, label)
        if rows:
            lines += ["", f"Ablations and controls, {label} ({condition(focus['protocol'], focus['shots'])}):", "",
                      f"| Variant | Kind | {result['title']} minus it | Dice lost without | Corrected p |", "|---|---|---|---|---|"]
            lines += [f"| {row['title']} | {row['role']} | {signed(row['against']['difference'])} {interval(row['against'])} "
                      f"| {percent(row['lost'], 1)} | {row['p']} |" for row in rows]
    if "continual" in metrics:
        lines += continual.markdown(metrics["continual"])
    return "\n".join(lines)


def line(row: Row) -> str:
    cells = (row.claim, row.measured, row.rival, row.reached, row.control)
    return "| " + " | ".join(cell.replace("|", "/") or NONE for cell in cells) + " |"


if __name__ == "__main__":
    run(app)
