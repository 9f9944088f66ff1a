"""Stage 6b: over every cohort and experiment evaluated here, the tables, figures and the one page to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipelines.outputs import staged_file, staged_folder, write_json, write_text
from pipelines.report import charts, classification, classified, continual, pictures
from pipelines.report.collect import COLUMNS, MOST_DRAWN, Cohort, collect, params_listed
from pipelines.report.metrics import all_metrics
from pipelines.report.page import render

PROTOCOL_WORDS = {"within": "Within: only the site's own labelled cases teach.",
                  "transfer": "Transfer: all labelled cases of the other sites teach too, so that no case of the site is needed.",
                  "pooled": "Pooled: the labelled cases come from all sites together."}


@dataclass(frozen=True)
class Figure:
    """A figure of the report: its file in figures/, what it shows (for the caption) and what a reader who cannot see it should know."""

    cohort: str
    kind: str  # one of page.KINDS
    file: str
    caption: str
    alt: str


def report(source: Path, out: Path, params_file: Path | None = None) -> None:
    """Write results.csv, classification.csv, continual.csv, metrics.json, plots/, figures/ and index.html into `out`."""
    answered = classification.collect_classified(source, [params for _, params in params_listed(params_file)])
    protocols = continual.read(source)
    cohorts = collect(source, params_file, needed=not answered and not protocols)
    metrics = all_metrics(cohorts)
    for one in answered:
        metrics[one.name] = {**metrics.get(one.name, {}), "classification": classification.classification_metrics(one)}
    for one in protocols:
        metrics[one.cohort] = {**metrics.get(one.cohort, {}), "continual": one.summary}
    curve, bins = charts.learning_curve_rows(cohorts, metrics), charts.reliability_rows(cohorts)
    with staged_file(out / "results.csv") as path:
        tables = [table for cohort in cohorts for table in (cohort.cases, cohort.beside and cohort.beside.cases) if table is not None]
        tables += [continual.results(one) for one in protocols]
        (pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)).to_csv(path, index=False)
    with staged_file(out / "classification.csv") as path:
        classification.table(answered).to_csv(path, index=False)
    with staged_file(out / "continual.csv") as path:
        continual.table(protocols).to_csv(path, index=False)
    write_json(out / "metrics.json", metrics)
    with staged_folder(out / "plots") as folder:
        curve.to_csv(folder / "learning_curve.csv", index=False)
        bins.to_csv(folder / "reliability.csv", index=False)
    with staged_folder(out / "figures") as folder:
        figures = draw(cohorts, metrics, curve, bins, folder)
        sections, told = draw_continual(protocols, folder), draw_classified(answered, metrics, folder)
    write_text(out / "index.html", render(cohorts, metrics, bins, figures, out / "figures", continual=sections, classified=told))
    for one in answered:
        print(f"{one.name}: {len(one.summaries)} experiments that answer whole cases reported", flush=True)
    for one in protocols:
        print(f"{one.cohort}: {len(one.summary['methods'])} ways to learn sites one after another reported", flush=True)
    for cohort in cohorts:
        print(f"{cohort.name}: {len(cohort.summaries)} experiments reported, {len(cohort.waiting)} not evaluated yet", flush=True)


def draw(cohorts: Sequence[Cohort], metrics: Mapping[str, dict], curve: pd.DataFrame, bins: pd.DataFrame, folder: Path) -> list[Figure]:
    """Every figure, in the order of the page."""
    figures = []
    for cohort in cohorts:
        figures += [*draw_numbers(cohort, metrics[cohort.name], curve, bins, folder), *draw_cases(cohort, folder)]
        for part in (cohort, cohort.beside):
            if part is not None:
                draw_records(part, folder)
    if cohorts:
        pictures.overview(cohorts[0], bins, folder / "overview.png")
    return figures


def draw_continual(protocols: Sequence[continual.Protocol], folder: Path) -> list[dict]:
    """The figure of every scenario in which sites came one after another, and what the page says of it."""
    found = []
    for one in protocols:
        for scenario in one.summary["scenarios"]:
            file = continual.file_of(one, scenario)
            continual.draw(one, scenario, folder / file)
            found.append(continual.section(one, scenario, Figure(one.cohort, "continual", file, continual.caption(one, scenario),
                                                                 "A matrix of Dice a method; its summary is in the table below")))
    return found


def draw_classified(answered: Sequence[classification.Classified], metrics: Mapping[str, dict], folder: Path) -> list[dict]:
    """The figure of every cohort in which whole cases were answered, and what the page says of it."""
    found = []
    for one in answered:
        own, file = metrics[one.name]["classification"], classified.file_of(one.name)
        classified.draw(own, folder / file)
        caption = (f"Every method's measures, and how far {own['headline']} is ahead of it, with {own['confidence']:.0%} bootstrap intervals over "
                   "cases.")
        found.append(classified.section(one.name, own, Figure(one.name, "classification", file, caption, "The numbers are in the table below")))
    return found


def draw_numbers(cohort: Cohort, metrics: Mapping, curve: pd.DataFrame, bins: pd.DataFrame, folder: Path) -> list[Figure]:
    """The charts of one cohort."""
    name, cases, labels = cohort.name, after(cohort), ", ".join(cohort.labels)
    charts.learning_curve(cohort, curve, folder / f"{name}_learning_curve.png")
    charts.reliability(cohort, bins, folder / f"{name}_reliability.png")
    charts.sites(cohort, folder / f"{name}_sites.png")
    most = " The baselines drawn are the best ones by mean Dice; the tables have them all." if len(cohort.drawn) == MOST_DRAWN else ""
    figures = [
        Figure(name, "curve", f"{name}_learning_curve.png",
               curve_caption(cohort) + most,
               f"Line chart of Dice over shots for {labels}; the same numbers are in the results table"),
        Figure(name, "reliability", f"{name}_reliability.png",
               f"Of the voxels near the lesion that were given a probability, how many really had the label ({cases}). On the dotted "
               "line a probability can be taken at its word; below it the system is overconfident. The strip shows how many voxels each bin holds.",
               f"Reliability diagrams of {labels}, a curve a system; the calibration errors are in the table beside it"),
        Figure(name, "sites", f"{name}_sites.png",
               f"Dice at each site after {cases}. A dot is a patient (mean over draws), a bar the site's mean.",
               f"Dot plot of Dice per site and system for {labels}; the means are in the table below"),
    ]
    kept = [row for row in metrics.get("retention", ()) if (row["protocol"], row["shots"]) == (cohort.focus_protocol, cohort.best_shots())]
    if kept:
        charts.retention(cohort, kept, folder / f"{name}_retention.png")
        figures.append(Figure(name, "retention", f"{name}_retention.png",
                              f"Dice when a reader corrects the voxels that the system is least sure of ({cases}). A steep start means that the "
                              "uncertainty finds the errors.",
                              f"Line chart of Dice over the share of corrected voxels for {labels}; its area is in the table of calibration"))
    return figures


def draw_cases(cohort: Cohort, folder: Path) -> list[Figure]:
    """Pictures of patients: the same ones for every system, and the best, median and worst of the headline."""
    shots, title, name, figures = cohort.best_shots(), cohort.title(cohort.headline), cohort.name, []
    if pictures.side_by_side(cohort, shots, folder / f"{name}_comparison.png"):
        figures.append(Figure(name, "comparison", f"{name}_comparison.png",
                              f"One patient of each site, of median lesion size, contoured by every system after {after(cohort)}. Yellow is the "
                              "truth, blue the prediction; the slice is the one with most lesion.",
                              f"Slices of one patient a site; a column a system; contours of truth and prediction of {', '.join(cohort.labels)}"))
    experiment = cohort.experiment(cohort.headline, shots)
    for site in cohort.summaries[experiment]["sites"]:
        file = f"{name}_{experiment.replace('/', '-')}_{site}.png"
        if pictures.extremes(cohort, experiment, site, folder / file):
            figures.append(Figure(name, "extremes", file,
                                  f"Site {site}: best, median and worst query case of {title} in its first draw, after {after(cohort)}, in every "
                                  "sequence that was acquired. Yellow is the truth, blue the prediction; on the right the probability of any lesion.",
                                  f"Best, median and worst case of site {site} with contours of truth and prediction"))
    return figures


def draw_records(cohort: Cohort, folder: Path) -> None:
    """Not on the page: the picture that goes with an experiment's own record; of a sweep's hundreds, those of the headline."""
    for name, summary in cohort.summaries.items():
        if not summary.get("sweep") or summary["arm"] == cohort.headline:
            pictures.medians(cohort, name, folder / f"{cohort.name}_{name.replace('/', '-')}_overlay.png")


def curve_caption(cohort: Cohort) -> str:
    """What the learning curves are means over, which protocols they show, and what the dotted line is."""
    parts = [f"Dice over the number of labelled cases, with bootstrap intervals over patients{', every site counted once' * cohort.several_sites()}."]
    if len(cohort.protocols()) > 1:
        parts += [PROTOCOL_WORDS.get(protocol, "") for protocol in cohort.protocols()]
    if cohort.patch_ceiling:
        parts.append("The dotted line is the best a decoder could do that sees only the backbone's patches.")
    return " ".join(parts)


def after(cohort: Cohort) -> str:
    """The number of labelled cases that the summary speaks of, in words."""
    shots = cohort.best_shots()
    return f"{shots} labelled case{'s' * (shots != 1)}"
