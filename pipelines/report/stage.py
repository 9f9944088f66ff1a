"""Stage 6b: over every cohort and experiment evaluated here, the tables, figures and the one page to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipelines.outputs import staged_file, staged_folder, write_json, write_text
from pipelines.report import charts, pictures
from pipelines.report.collect import Cohort, collect
from pipelines.report.page import render
from pipelines.report.statistics import all_metrics


@dataclass(frozen=True)
class Figure:
    """A figure of the report: its file in figures/, what it shows (for the caption) and what a reader who cannot see it should know."""

    cohort: str
    kind: str  # one of page.KINDS
    file: str
    caption: str
    alt: str


def report(source: Path, out: Path, params_file: Path | None = None) -> None:
    """Write results.csv, metrics.json, plots/, figures/ and index.html into `out`."""
    cohorts = collect(source, params_file)
    metrics = all_metrics(cohorts)
    curve, bins = charts.learning_curve_rows(cohorts, metrics), charts.reliability_rows(cohorts)
    with staged_file(out / "results.csv") as path:
        pd.concat([cohort.cases for cohort in cohorts], ignore_index=True).to_csv(path, index=False)
    write_json(out / "metrics.json", metrics)
    with staged_folder(out / "plots") as folder:
        curve.to_csv(folder / "learning_curve.csv", index=False)
        bins.to_csv(folder / "reliability.csv", index=False)
    with staged_folder(out / "figures") as folder:
        figures = draw(cohorts, curve, bins, folder)
    write_text(out / "index.html", render(cohorts, metrics, bins, figures, out / "figures"))
    for cohort in cohorts:
        print(f"{cohort.name}: {len(cohort.summaries)} experiments reported, {len(cohort.waiting)} not evaluated yet", flush=True)


def draw(cohorts: Sequence[Cohort], curve: pd.DataFrame, bins: pd.DataFrame, folder: Path) -> list[Figure]:
    """Every figure, in the order of the page."""
    figures = [figure for cohort in cohorts for figure in draw_cohort(cohort, curve, bins, folder)]
    pictures.overview(cohorts[0], bins, folder / "overview.png")
    return figures


def draw_cohort(cohort: Cohort, curve: pd.DataFrame, bins: pd.DataFrame, folder: Path) -> list[Figure]:
    """The figures of one cohort."""
    shots, title, name = cohort.best_shots(), cohort.title(cohort.headline), cohort.name
    cases, labels = f"{shots} labelled case{'s' * (shots > 1)}", ", ".join(cohort.labels)
    figures = []
    if pictures.side_by_side(cohort, shots, folder / f"{name}_comparison.png"):
        figures.append(Figure(name, "comparison", f"{name}_comparison.png",
                              f"One patient of each site, of median lesion size, contoured by every system after {cases}. Yellow is the truth, blue "
                              "the prediction; the slice is the one with most lesion.",
                              f"Slices of one patient a site; a column a system; contours of truth and prediction of {labels}"))
    charts.learning_curve(cohort, curve, folder / f"{name}_learning_curve.png")
    figures.append(Figure(name, "curve", f"{name}_learning_curve.png",
                          "Dice over the number of labelled cases a site gives, with bootstrap intervals over patients. The dotted line is "
                          "the best a decoder could do that sees only the backbone's patches.",
                          f"Line chart of Dice over shots for {labels}; the same numbers are in the results table"))
    charts.reliability(cohort, bins, folder / f"{name}_reliability.png")
    figures.append(Figure(name, "reliability", f"{name}_reliability.png",
                          f"Of the voxels near the lesion that were given a probability, how many really had the label ({cases}). On the dotted "
                          "line a probability can be taken at its word; below it the system is overconfident. The strip shows how many voxels each "
                          "bin holds.",
                          f"Reliability diagrams of {labels}, a curve a system; the calibration errors are in the table beside it"))
    charts.sites(cohort, folder / f"{name}_sites.png")
    figures.append(Figure(name, "sites", f"{name}_sites.png",
                          f"Dice at each site after {cases}. A dot is a patient (mean over draws), a bar the site's mean.",
                          f"Dot plot of Dice per site and system for {labels}; the means are in the table below"))
    experiment = cohort.experiment(cohort.headline, shots)
    for site in cohort.summaries[experiment]["sites"]:
        file = f"{name}_{experiment}_{site}.png"
        if pictures.extremes(cohort, experiment, site, folder / file):
            figures.append(Figure(name, "extremes", file,
                                  f"Site {site}: best, median and worst query case of {title} in its first draw, after {cases}, in every sequence "
                                  "that was acquired. Yellow is the truth, blue the prediction; on the right the probability of any lesion.",
                                  f"Best, median and worst case of site {site} with contours of truth and prediction"))
    for other in cohort.summaries:  # not on the page: the picture that goes with an experiment's own record
        pictures.medians(cohort, other, folder / f"{name}_{other}_overlay.png")
    return figures
