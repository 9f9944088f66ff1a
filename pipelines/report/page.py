"""The page: numbers of metrics.json put into words and tables, figures inlined, so that one file can be mailed, printed and kept."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd

from pipelines.report import tables
from pipelines.report.collect import BASELINE, HEADLINE, Cohort
from pipelines.report.fingerprint import data_section
from pipelines.report.metrics import reported
from pipelines.report.statistics import metric_names
from pipelines.report.versus import main_comparison, main_estimate
from pipelines.report.words import PLURAL, interval, number, p_text, p_value, percent, percents, plain, seconds, signed, size, summary

TEMPLATES = Path(__file__).with_name("templates")
#: Kinds of figures, in the order of the page.
KINDS = ("comparison", "curve", "reliability", "retention", "sites", "extremes")
#: Columns of the results table, where a cohort has them (surface distances are added by name).
TABLE = ("dice", "hd95_mm", "ece", "false_positive_ml")
#: A stated probability that the calibration sentence speaks of: high enough to matter, not so high that few voxels have it.
EXAMPLE_PROBABILITY = 0.8
WORST_ROWS = 8
MIN_EXAMPLE_VOXELS = 50


def render(cohorts: Sequence[Cohort], metrics: Mapping[str, dict], bins: pd.DataFrame, figures: Sequence, folder: Path, *,
           classified: Sequence[Mapping] = (), continual: Sequence[Mapping] = ()) -> str:
    """The page as HTML. `figures` are `stage.Figure`s, their files in `folder`; `classified` and `continual` are what the modules of these names
    make their sections of."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                                     loader=jinja2.FileSystemLoader(TEMPLATES))
    environment.filters |= {"number": number, "interval": interval, "p": p_value, "p_text": p_text,
                            "percent": percent, "percents": percents, "plain": plain, "seconds": seconds, "signed": signed, "size": size}
    sections = [section(cohort, metrics[cohort.name], bins, [figure for figure in figures if figure.cohort == cohort.name]) for cohort in cohorts]
    images = {figure.file: inline(folder / figure.file) for figure in (*figures, *(part["figure"] for part in (*continual, *classified)))}
    return environment.get_template("page.html").render(sections=sections, images=images, classified=classified, continual=continual)


def inline(path: Path) -> str:
    """An image as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def section(cohort: Cohort, metrics: Mapping, bins: pd.DataFrame, figures: Sequence) -> dict[str, object]:
    """What the templates need of one cohort."""
    experiment = metrics["focus"]["experiment"]
    names = metric_names(cohort.cases)
    surfaces = [name for name in names if name.startswith("nsd_")]
    return {
        "cohort": cohort, "metrics": metrics, "shots": cohort.best_shots(), "experiment": experiment, "result": metrics["experiments"][experiment],
        "confidence": round(cohort.settings.confidence * 100), "names": names, "columns": [TABLE[0], *surfaces, *TABLE[1:]],
        "units": PLURAL[metrics["unit"]], "order": by_shots(metrics), "focus": in_focus(metrics),
        "systems": [entry for entry in in_focus(metrics) if entry["role"] in (HEADLINE, BASELINE)], "several_sites": cohort.several_sites(),
        "several_protocols": len(cohort.protocols()) > 1, "labels": cohort.labels,
        "findings": [finding(cohort, metrics, label, experiment) for label in cohort.labels], "points": summary(metrics),
        "examples": [example for label in cohort.labels if (example := calibration_example(cohort, bins, label)) is not None],
        "figures": {kind: [figure for figure in figures if figure.kind == kind] for kind in KINDS},
        "versus": tables.versus(metrics), "variants": tables.variants(metrics), "missing": tables.missing(cohort, metrics),
        "conformal": tables.conformal(metrics), "cost": tables.cost(metrics), "sizes": tables.sizes(metrics), "left_out": tables.left_out(cohort),
        "worst": worst(cohort, experiment), "empty": without_truth(cohort, experiment), "missed": missed(cohort, experiment),
        "data": data_section(cohort.fingerprint),
    }


def by_shots(metrics: Mapping) -> list[dict]:
    """A cohort's experiments as tables list them: by protocol and shots, the headline first."""
    protocols = list(dict.fromkeys([metrics["focus"]["protocol"], *(entry["protocol"] for entry in reported(metrics).values())]))
    return sorted(reported(metrics).values(), key=lambda entry: (protocols.index(entry["protocol"]), entry["shots"],
                                                                 entry["arm"] != metrics["headline"], entry["arm"]))


def briefly(metrics: Mapping) -> list[dict]:
    """The headline and the baselines under the protocol in focus: what fits a terminal or a README."""
    return [entry for entry in by_shots(metrics) if entry["protocol"] == metrics["focus"]["protocol"] and entry["role"] in (HEADLINE, BASELINE)]


def in_focus(metrics: Mapping) -> list[dict]:
    """The experiments at the protocol and number of shots that the summary speaks of: the headline, then the others by Dice."""
    focus, first = metrics["focus"], metrics["labels"][0]
    found = [entry for entry in by_shots(metrics) if (entry["protocol"], entry["shots"]) == (focus["protocol"], focus["shots"])]
    return sorted(found, key=lambda entry: (entry["arm"] != metrics["headline"], -(entry["labels"][first]["dice"]["mean"] or 0)))


def finding(cohort: Cohort, metrics: Mapping, label: str, experiment: str) -> dict[str, object]:
    """The headline system on one label: its Dice, and how it compares with the best of the others at the same shots."""
    own, rivals = metrics["experiments"][experiment], []
    for title, by_label in metrics["comparisons"].items():
        first, _, other = title.partition(" vs ")
        if first == experiment and label in by_label and by_label[label]["dice"]["n"]:
            values = metrics["experiments"][other]
            rivals.append({"title": values["title"], "dice": main_estimate(values, label, "dice"),
                           "against": main_comparison(by_label[label]["dice"])})
    rivals = sorted((rival for rival in rivals if rival["dice"]["mean"] is not None), key=lambda rival: -rival["dice"]["mean"])
    return {"label": label, "text": cohort.labels[label], "values": own["labels"][label], "rivals": rivals,
            **{metric: main_estimate(own, label, metric) for metric in ("dice", "ece")}}


def calibration_example(cohort: Cohort, bins: pd.DataFrame, label: str) -> dict[str, object] | None:
    """The bin around `EXAMPLE_PROBABILITY` of the headline system, or None where too few voxels have such a probability."""
    rows = cohort.in_focus(bins[(bins.cohort == cohort.name) & (bins.arm == cohort.headline) & (bins.label == label)])
    rows = rows[rows["count"] >= MIN_EXAMPLE_VOXELS]
    if rows.empty:
        return None
    row = rows.loc[(rows.confidence - EXAMPLE_PROBABILITY).abs().idxmin()]
    return {"label": label, "stated": float(row.confidence), "observed": float(row.accuracy)}


def worst(cohort: Cohort, experiment: str) -> list[dict[str, object]]:
    """The rows of lowest Dice of the headline system, one a case and label: where it fails first."""
    rows = cohort.cases[(cohort.cases.experiment == experiment) & cohort.cases.dice.notna()]
    rows = rows.sort_values(["dice", "case", "label", "seed"]).drop_duplicates(["case", "label"])
    return rows.head(WORST_ROWS).astype(object).where(rows.notna(), None).to_dict("records")


def without_truth(cohort: Cohort, experiment: str) -> dict[str, float] | None:
    """What the headline system did where there was nothing to find, or None where every case has every label."""
    rows = cohort.cases[(cohort.cases.experiment == experiment) & cohort.cases.dice.isna()]
    return {"rows": len(rows), "mean_ml": float(rows.false_positive_ml.mean())} if len(rows) else None


def missed(cohort: Cohort, experiment: str) -> int:
    """In how many rows the headline system predicted nothing of a label that is there."""
    rows = cohort.cases[cohort.cases.experiment == experiment]
    return int((rows.dice.notna() & rows.hd95_mm.isna()).sum())
