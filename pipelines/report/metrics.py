"""metrics.json: every number that the page, the README, docs/evidence.md and MLflow show, computed once.

cohort -> `experiments` (name -> means with intervals per label, per site, per lesion size, over sites), `comparisons` with the baselines,
`ablations` (the same with ablations and controls), `best_baselines`, and, where a sweep made them, `missing`, `conformal`, `retention`, `cost`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from pipelines.report import extras
from pipelines.report.collect import Cohort
from pipelines.report.statistics import estimates, metric_names, units
from pipelines.report.versus import OVER_SITES, against_baselines, against_variants, best_baselines

#: Metrics that are also given per site, per lesion size and over sites.
BROKEN_DOWN = ("dice", "ece")


def all_metrics(cohorts: Sequence[Cohort]) -> dict[str, dict[str, object]]:
    """metrics.json: cohort -> its metrics."""
    return {cohort.name: cohort_metrics(cohort) for cohort in cohorts}


def cohort_metrics(cohort: Cohort) -> dict[str, object]:
    """One cohort's part of metrics.json."""
    found = {
        "caveat": cohort.any_summary["caveat"], "disease": cohort.any_summary["disease"], "headline": cohort.headline,
        "confidence": cohort.settings.confidence, "labels": list(cohort.labels),
        "unit": "study" if cohort.split_by == "session" else "patient", "protocol": cohort.any_summary["protocol"],
        "patch_ceiling": cohort.patch_ceiling, "backbone": cohort.backbone, "lesion_sizes": extras.size_edges(cohort.cases),
        "focus": {"protocol": cohort.focus_protocol, "shots": cohort.best_shots(),
                  "experiment": cohort.experiment(cohort.headline, cohort.best_shots())},
        "experiments": experiments(cohort), "comparisons": against_baselines(cohort), "ablations": against_variants(cohort),
    }
    found["best_baselines"] = best_baselines(found)
    found |= {name: rows for name, make in extras.TABLES.items() if (rows := make(cohort))}
    if cohort.beside is not None:  # recorded, but not reported: the sweep holds them too
        found["experiments"] |= {name: {**entry, "reported": False} for name, entry in experiments(cohort.beside).items()}
    return found


def experiments(cohort: Cohort) -> dict[str, dict]:
    """Each experiment's means."""
    columns, edges, by_name = list(metric_names(cohort.cases)), extras.size_edges(cohort.cases), dict(list(cohort.cases.groupby("experiment")))
    return {name: experiment_metrics(cohort, name, by_name[name], columns, edges) for name in cohort.summaries}


def experiment_metrics(cohort: Cohort, name: str, rows: pd.DataFrame, columns: Sequence[str], edges: Mapping) -> dict[str, object]:
    """Means with intervals of one experiment: per label, per label and site, per label and lesion size, and over sites."""
    summary, settings = cohort.summaries[name], cohort.settings
    labels = dict(list(rows.groupby("label", sort=False)))

    def means(part: pd.DataFrame, metrics: Sequence[str], *, over_sites: bool = False) -> dict[str, dict]:
        return estimates(part, metrics, cohort.split_by, settings, over_sites=over_sites)

    found = {
        "system": summary["system"], "arm": summary["arm"], "role": cohort.role(summary["arm"]), "protocol": summary["protocol"],
        "title": cohort.title(summary["arm"]), "shots": summary["shots"], "seeds": summary["seeds"], "fits": summary["fits"],
        "params": summary["params"], "cases": int(units(rows, cohort.split_by).nunique()), "rows": len(rows), "cost": summary["cost"],
        "labels": {label: means(part, columns) for label, part in labels.items()},
        "sites": {site: {label: means(part, BROKEN_DOWN) for label, part in of_site.groupby("label", sort=False)}
                  for site, of_site in rows.groupby("case_site")},
        "sizes": {label: {size: means(of_size, BROKEN_DOWN) for size, of_size in part.groupby(extras.sizes(part, edges.get(label)))}
                  for label, part in labels.items()},
    }
    if cohort.several_sites():
        found[OVER_SITES] = {label: means(part, BROKEN_DOWN, over_sites=True) for label, part in labels.items()}
    return found


def reported(metrics: Mapping) -> dict[str, dict]:
    """The experiments of a cohort that tables show, by name."""
    return {name: entry for name, entry in metrics["experiments"].items() if entry.get("reported", True)}
