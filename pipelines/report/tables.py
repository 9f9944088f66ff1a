"""Rows of the page's tables, taken from metrics.json and put in order; the templates only write them down."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.report.collect import BASELINE, HEADLINE, PROTOCOLS, Cohort
from pipelines.report.extras import SIZES
from pipelines.report.metrics import reported
from pipelines.report.versus import main_comparison, main_estimate
from pipelines.report.words import condition, verdict


def conditions(metrics: Mapping) -> list[tuple[str, int]]:
    """Protocols and numbers of shots of the headline, the one in focus first, then in the order of the experiments."""
    focus = (metrics["focus"]["protocol"], metrics["focus"]["shots"])
    found = {(entry["protocol"], entry["shots"]) for entry in reported(metrics).values() if entry["arm"] == metrics["headline"]}
    return [focus, *sorted(found - {focus}, key=lambda each: (PROTOCOLS.index(each[0]) if each[0] in PROTOCOLS else len(PROTOCOLS), each))]


def versus(metrics: Mapping) -> list[dict[str, object]]:
    """The headline against every baseline: a group a protocol, number of shots and label, baselines by falling Dice."""
    return _groups(metrics, metrics["comparisons"])


def variants(metrics: Mapping) -> list[dict[str, object]]:
    """The same against ablations and controls."""
    return _groups(metrics, metrics["ablations"])


def _groups(metrics: Mapping, comparisons: Mapping) -> list[dict[str, object]]:
    several = len({protocol for protocol, _ in conditions(metrics)}) > 1
    groups = []
    for protocol, shots in conditions(metrics):
        for label in metrics["labels"]:
            rows = [_row(metrics, title, by_label[label], label) for title, by_label in comparisons.items()
                    if label in by_label and _condition(metrics, title) == (protocol, shots)]
            rows = sorted((row for row in rows if row["dice"]["n"]), key=lambda row: -row["mean"]["mean"])
            if rows:
                focus = metrics["focus"]
                headline = next(entry for entry in reported(metrics).values()
                                if (entry["arm"], entry["protocol"], entry["shots"]) == (metrics["headline"], protocol, shots))
                groups.append({"title": condition(protocol, shots, several), "label": label, "rows": rows,
                               "open": (protocol, shots) == (focus["protocol"], focus["shots"]), "headline": headline["title"],
                               "mean": main_estimate(headline, label, "dice"), "ece": main_estimate(headline, label, "ece")})
    return groups


def _condition(metrics: Mapping, title: str) -> tuple[str, int]:
    other = metrics["experiments"][title.split(" vs ")[1]]
    return other["protocol"], other["shots"]


def _row(metrics: Mapping, title: str, by_metric: Mapping, label: str) -> dict[str, object]:
    other = metrics["experiments"][title.split(" vs ")[1]]
    dice, ece = main_comparison(by_metric["dice"]), main_comparison(by_metric["ece"])
    lost = 1 - dice["second"] / dice["first"] if dice["first"] else None
    return {"title": other["title"], "role": other["role"], "dice": dice, "ece": ece, "lost": lost, "verdict": verdict(dice),
            "mean": main_estimate(other, label, "dice"), "ece_mean": main_estimate(other, label, "ece")}


def missing(cohort: Cohort, metrics: Mapping) -> list[dict[str, object]]:
    """Per protocol, shots and label: a row a set of modalities, a cell an arm."""
    rows = metrics.get("missing", [])
    arms = {arm: cohort.title(arm) for arm in cohort.arms() if any(row["arm"] == arm for row in rows)}
    groups = []
    for protocol, shots, label in dict.fromkeys((row["protocol"], row["shots"], row["label"]) for row in rows):
        part = [row for row in rows if (row["protocol"], row["shots"], row["label"]) == (protocol, shots, label)]
        sets = sorted({(-row["n_modalities"], row["modalities"]) for row in part})
        cells = {(row["modalities"], row["arm"]): row for row in part}
        groups.append({"title": condition(protocol, shots), "label": label, "arms": arms,
                       "rows": [{"name": name.replace("+", " + "), "cells": [cells.get((name, arm)) for arm in arms]} for _, name in sets]})
    return groups


def conformal(metrics: Mapping) -> list[dict[str, object]]:
    """The headline and the baselines at the condition in focus, the headline first."""
    focus = metrics["focus"]
    rows = [{**row, "title": metrics["experiments"][row["experiment"]]["title"]} for row in metrics.get("conformal", ())
            if (row["protocol"], row["shots"]) == (focus["protocol"], focus["shots"])
            and metrics["experiments"][row["experiment"]]["role"] in (HEADLINE, BASELINE)]
    return sorted(rows, key=lambda row: (row["arm"] != metrics["headline"], row["title"], row["label"], row["alpha"]))


def cost(metrics: Mapping) -> list[dict[str, object]]:
    """Every arm, protocol and number of shots, the headline first."""
    titles = {entry["arm"]: entry["title"] for entry in reported(metrics).values()}
    order = conditions(metrics)
    rows = [{**row, "title": titles[row["arm"]]} for row in metrics.get("cost", ()) if row["arm"] in titles]
    return sorted(rows, key=lambda row: (row["arm"] != metrics["headline"], row["title"],
                                         order.index(each) if (each := (row["protocol"], row["shots"])) in order else len(order)))


def sizes(metrics: Mapping) -> list[dict[str, object]]:
    """Per label: Dice of each arm at the condition in focus in small, medium and large lesions; only where there are such groups."""
    focus, groups = metrics["focus"], []
    for label, edges in metrics["lesion_sizes"].items():
        entries = [entry for entry in reported(metrics).values()
                   if (entry["protocol"], entry["shots"]) == (focus["protocol"], focus["shots"]) and label in entry["sizes"]]
        entries = sorted(entries, key=lambda entry: (entry["role"] != HEADLINE, -(entry["labels"][label]["dice"]["mean"] or 0)))
        groups.append({"label": label, "edges": edges, "rows": [
            {"title": entry["title"], "headline": entry["role"] == HEADLINE, "cells": [entry["sizes"][label].get(size) for size in SIZES]}
            for entry in entries]})
    return groups


def left_out(cohort: Cohort) -> list[str]:
    """Sites that were too small for a number of shots, each with its reason."""
    table = cohort.tables.get("left_out")
    if table is None:
        return []
    return [f"{row.site} ({condition(row.protocol, row.shots)}): {row.reason}" for row in table.itertuples()]
