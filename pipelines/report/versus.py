"""The headline system against every other on the same draws, family by family, and which baseline is the best.

Two families of tests: against the baselines (is it better than what there is?) and against its own ablations and controls (does each part
of it matter?). Holm's correction runs over a whole family of a cohort and metric: all protocols, numbers of shots and labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from pipelines.report.collect import BASELINE, VARIANTS, Cohort
from pipelines.report.resampling import holm
from pipelines.report.statistics import compare, pair

#: Metrics that the headline system is compared on, and whether more is better. Each is a family of its own for Holm's correction.
COMPARED = {"dice": True, "ece": False}
OVER_SITES = "over_sites"


def comparisons(cohort: Cohort, roles: Sequence[str]) -> dict[str, dict[str, dict[str, dict]]]:
    """The headline against every arm of these roles at the same protocol and shots: "headline vs other" -> label -> metric -> comparison.

    A comparison is over patients; its entry `over_sites` is the same with every site counted once, where the cohort has several.
    """
    parts = dict(list(cohort.cases.groupby(["experiment", "label"])))
    found: dict[tuple[str, str, str], dict] = {}
    for name, summary in cohort.summaries.items():
        rival = cohort.experiment(cohort.headline, summary["shots"], summary["protocol"])
        if rival is None or rival == name or cohort.role(summary["arm"]) not in roles:
            continue
        for label in cohort.labels:
            if (rival, label) in parts and (name, label) in parts:
                for metric, result in _compare(cohort, parts[rival, label], parts[name, label]).items():
                    found[f"{rival} vs {name}", label, metric] = result
    for metric in COMPARED:
        family = [entry for key, entry in found.items() if key[2] == metric]
        _correct(family)
        _correct([entry[OVER_SITES] for entry in family if OVER_SITES in entry])
    nested: dict[str, dict[str, dict[str, dict]]] = {}
    for (title, label, metric), result in found.items():
        nested.setdefault(title, {}).setdefault(label, {})[metric] = result
    return nested


def _compare(cohort: Cohort, first: pd.DataFrame, second: pd.DataFrame) -> dict[str, dict]:
    pairs = pair(first, second, list(COMPARED))
    found = {metric: compare(pairs, metric, cohort.split_by, cohort.settings) for metric in COMPARED}
    if cohort.several_sites():
        for metric, result in found.items():
            result[OVER_SITES] = compare(pairs, metric, cohort.split_by, cohort.settings, over_sites=True)
    return found


def _correct(family: Sequence[dict]) -> None:
    for entry, adjusted in zip(family, holm([entry["p"] for entry in family]), strict=True):
        entry["p_holm"] = adjusted


def against_baselines(cohort: Cohort) -> dict[str, dict[str, dict[str, dict]]]:
    return comparisons(cohort, (BASELINE,))


def against_variants(cohort: Cohort) -> dict[str, dict[str, dict[str, dict]]]:
    return comparisons(cohort, VARIANTS)


def main_estimate(values: Mapping, label: str, metric: str) -> Mapping:
    """An experiment's mean as tables give it: over sites where there are several, else over patients."""
    return values[OVER_SITES][label][metric] if OVER_SITES in values else values["labels"][label][metric]


def main_comparison(comparison: Mapping) -> Mapping:
    """A comparison as tables give it: over sites where there are several, else over patients."""
    return comparison.get(OVER_SITES, comparison)


def best_baselines(metrics: Mapping) -> list[dict[str, object]]:
    """Per protocol, shots, label and metric: the baseline of the best mean, and how the headline compares with it.

    Chosen by its mean on the very cases reported, which favours the baselines: a choice made beforehand could only be worse.
    """
    found: dict[tuple, dict[str, object]] = {}
    for title, by_label in metrics["comparisons"].items():
        first, other = title.split(" vs ")
        values = metrics["experiments"][other]
        for label, by_metric in by_label.items():
            for metric, more_is_better in COMPARED.items():
                mean = main_estimate(values, label, metric)["mean"]
                if mean is None or not main_comparison(by_metric[metric])["n"]:
                    continue
                key = (values["protocol"], values["shots"], label, metric)
                if key not in found or (mean > found[key]["mean"]) == more_is_better:
                    found[key] = {"protocol": key[0], "shots": key[1], "label": label, "metric": metric, "experiment": other, "arm": values["arm"],
                                  "title": values["title"], "mean": mean, "headline": first, "against": main_comparison(by_metric[metric])}
    return list(found.values())
