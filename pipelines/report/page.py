"""The page: numbers of metrics.json put into words and tables, figures inlined, so that one file can be mailed, printed and kept."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd

from pipelines.report.collect import Cohort
from pipelines.report.fingerprint import data_section
from pipelines.report.statistics import metric_names

TEMPLATE = Path(__file__).with_name("template.html")
#: Kinds of figures, in the order of the page.
KINDS = ("comparison", "curve", "reliability", "sites", "extremes")
#: Columns of the results table, where a cohort has them (surface distances are added by name).
TABLE = ("dice", "hd95_mm", "ece", "false_positive_ml")
#: A stated probability that the calibration sentence speaks of: high enough to matter, not so high that few voxels have it.
EXAMPLE_PROBABILITY = 0.8
PLURAL = {"patient": "patients", "study": "studies"}
WORST_ROWS = 8
MIN_EXAMPLE_VOXELS = 50


def render(cohorts: Sequence[Cohort], metrics: Mapping[str, dict], bins: pd.DataFrame, figures: Sequence, folder: Path) -> str:
    """The page as HTML. `figures` are `stage.Figure`s, their files in `folder`."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "interval": interval, "p": p_value, "p_text": p_text,
                            "plain": plain, "seconds": seconds, "signed": signed, "size": size}
    sections = [section(cohort, metrics[cohort.name], bins, [figure for figure in figures if figure.cohort == cohort.name]) for cohort in cohorts]
    images = {figure.file: inline(folder / figure.file) for figure in figures}
    return environment.from_string(TEMPLATE.read_text()).render(sections=sections, images=images)


def inline(path: Path) -> str:
    """An image as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def section(cohort: Cohort, metrics: Mapping, bins: pd.DataFrame, figures: Sequence) -> dict[str, object]:
    """What the template needs of one cohort."""
    shots = cohort.best_shots()
    experiment = cohort.experiment(cohort.headline, shots)
    names = metric_names(cohort.cases)
    surfaces = [name for name in names if name.startswith("nsd_")]
    return {
        "cohort": cohort, "metrics": metrics, "shots": shots, "experiment": experiment, "result": metrics["experiments"][experiment],
        "confidence": round(cohort.settings.confidence * 100), "names": names, "columns": [TABLE[0], *surfaces, *TABLE[1:]],
        "units": PLURAL[metrics["unit"]], "order": by_shots(metrics),
        "findings": [finding(cohort, metrics, label, experiment) for label in cohort.labels],
        "examples": [example for label in cohort.labels if (example := calibration_example(cohort, bins, label, shots)) is not None],
        "figures": {kind: [figure for figure in figures if figure.kind == kind] for kind in KINDS},
        "worst": worst(cohort, experiment), "empty": without_truth(cohort, experiment), "missed": missed(cohort, experiment),
        "data": data_section(cohort.fingerprint),
    }


def by_shots(metrics: Mapping) -> list[dict]:
    """A cohort's experiments as tables list them: by shots, the headline system first."""
    return sorted(metrics["experiments"].values(), key=lambda entry: (entry["shots"], entry["system"] != metrics["headline"], entry["system"]))


def finding(cohort: Cohort, metrics: Mapping, label: str, experiment: str) -> dict[str, object]:
    """The headline system on one label: its Dice, and how it compares with the best of the others at the same shots."""
    rivals = []
    for title, by_label in metrics["comparisons"].items():
        first, _, other = title.partition(" vs ")
        if first == experiment and by_label[label]["dice"]["n"]:
            values = metrics["experiments"][other]
            rivals.append({"title": values["title"], "dice": values["labels"][label]["dice"], "against": by_label[label]["dice"]})
    rivals = sorted((rival for rival in rivals if rival["dice"]["mean"] is not None), key=lambda rival: -rival["dice"]["mean"])
    return {"label": label, "text": cohort.labels[label], "values": metrics["experiments"][experiment]["labels"][label], "rivals": rivals,
            "ceiling": metrics["patch_ceiling"].get(label)}


def calibration_example(cohort: Cohort, bins: pd.DataFrame, label: str, shots: int) -> dict[str, object] | None:
    """The bin around `EXAMPLE_PROBABILITY` of the headline system, or None where too few voxels have such a probability."""
    rows = bins[(bins.cohort == cohort.name) & (bins.system == cohort.headline) & (bins.label == label) & (bins.shots == shots)]
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


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def plain(value: float) -> str:
    """Three digits that count, never an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.6f}"


def signed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def interval(values: Mapping, digits: int = 2, keys: tuple[str, str] = ("low", "high")) -> str:
    """An interval in brackets; nothing where there is none (fewer than two patients)."""
    low, high = (values[key] for key in keys)
    return "" if low is None else f"[{low:.{digits}f},\u00a0{high:.{digits}f}]".replace("-", "−")


def p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_text(value: float) -> str:
    """The same behind the letter p."""
    return p_value(value) if value < 0.001 else f"= {p_value(value)}"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 90 else f"{value / 60:.1f} min"


def size(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.0f} kB"
