"""How what `classification` measured is shown: a figure, a section of the page, a table for a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.report import charts
from pipelines.report.words import interval, number, seconds, signed

TITLES = {"map": "mAP", "auroc": "AUROC", "balanced_accuracy": "Balanced accuracy", "ece": "ECE"}


def draw(metrics: Mapping, path: Path) -> None:
    """Every method's mAP and AUROC with intervals, a line a method, and how far the first one is ahead of it."""
    names, panels = list(metrics["experiments"]), ("map", "auroc")
    figure, axes = charts.subplots(1, len(panels) + 1, figsize=(3.4 * (len(panels) + 1), 1.2 + 0.3 * len(names)), sharey=True)
    places = np.arange(len(names))
    for axis, metric in zip(axes, panels, strict=False):
        _dots(axis, places, [metrics["experiments"][name]["measures"][metric] for name in names], "mean")
        axis.set_title(TITLES[metric])
    ahead = {name: metrics["comparisons"].get(f"{metrics['headline']} vs {name}") for name in names}
    compared = [index for index, name in enumerate(names) if ahead[name]]
    _dots(axes[-1], places[compared], [ahead[names[index]]["map"] for index in compared], "difference")
    axes[-1].axvline(0, color=charts.INK, linewidth=0.8)
    axes[-1].set_title(f"{metrics['headline']} minus it, mAP")
    axes[0].set_yticks(places, names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    charts.save(figure, path)


def _dots(axis, places: np.ndarray, values: Sequence[Mapping], name: str) -> None:
    """A dot with its interval on each line that has a value."""
    for place, value in zip(places, values, strict=True):
        if value[name] is not None:
            axis.plot(value[name], place, "o", color=charts.PALETTE[0])
            axis.plot([value["low"], value["high"]], [place, place], color=charts.PALETTE[0], linewidth=1.4)


def file_of(name: str) -> str:
    """The figure's file; it begins with the cohort's name, by which MLflow's recorder finds it."""
    return f"{name}_classification.png"


def section(name: str, metrics: Mapping, figure: object) -> dict[str, object]:
    """What the template needs of a cohort's part of metrics.json; `figure` is its `stage.Figure`."""
    rows = []
    for experiment, entry in metrics["experiments"].items():
        against = metrics["comparisons"].get(f"{metrics['headline']} vs {experiment}")
        rows.append({"name": experiment, "headline": experiment == metrics["headline"], **entry, "against": against and against["map"]})
    return {"name": name, "metrics": metrics, "rows": rows, "titles": TITLES, "first": rows[0], "rivals": [row for row in rows if row["against"]],
            "figure": figure}


def markdown(metrics: Mapping) -> list[str]:
    """A cohort's table for a document."""
    first, headline = next(iter(metrics["experiments"].values())), metrics["headline"]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in first["positives"].items())
    lines = [f"{first['cases']} cases of {len(first['sites'])} sites ({metrics['outcome']['column']}: {counts}), {len(first['seeds'])} draw(s), the "
             f"same for every method; {metrics['confidence']:.0%} bootstrap intervals over cases within their site.", "",
             f"| Method | {' | '.join(TITLES.values())} | {headline} minus it, mAP | Training |", "|---|" + "---|" * (len(TITLES) + 2)]
    for name, entry in metrics["experiments"].items():
        against = metrics["comparisons"].get(f"{headline} vs {name}")
        cells = [f"{number(entry['measures'][metric]['mean'])} {interval(entry['measures'][metric])}" for metric in TITLES]
        cells.append(f"{signed(against['map']['difference'], 3)} {interval(against['map'], 3)}" if against else "")
        lines.append(f"| `{name}` | {' | '.join(cells)} | {seconds(entry['cost']['train_seconds'])} |")
    return lines
