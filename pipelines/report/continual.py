"""Sites one after another: the rows of every cohort in one table, the matrices R as a figure, and the methods in words for the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.report import charts
from pipelines.report.words import interval, number, seconds, signed, size

FOLDER = "continual"
#: Of reports/continual.csv; the last two tell whose rows they are.
COLUMNS = ["method", "order", "seed", "after_site", "on_site", "dice", "scenario", "cohort"]
TEXT = dict.fromkeys(("after_site", "on_site", "order", "scenario", "method", "site", "case", "label"), str)
PANELS_A_ROW = 5
#: The aims: forgetting as a share of sequential fine-tuning's, and what it may cost on the newest site, as a share of Dice.
FORGETTING_AIM, NEWEST_AIM = 1 / 3, 0.02


@dataclass(frozen=True)
class Protocol:
    """What stage continual left of one cohort: its rows and its summary."""

    cohort: str
    rows: pd.DataFrame
    cases: pd.DataFrame
    summary: Mapping


def methods_of(summary: Mapping, scenario: str) -> dict[str, Mapping]:
    """What was found of every method, in the order of params."""
    found = summary["scenarios"][scenario]
    return {method: found[method] for method in summary["methods"]}


def read(source: Path) -> list[Protocol]:
    """Every cohort with a finished protocol, by name."""
    found = []
    for path in sorted(Path(source).glob(f"*/{FOLDER}/continual.json")):
        rows, cases = (pd.read_csv(file, dtype=TEXT) if file.is_file() else pd.DataFrame()  # what an earlier version left has no cases
                       for file in map(path.with_name, ("continual.csv", "cases.csv")))
        found.append(Protocol(path.parents[1].name, rows, cases, json.loads(path.read_text())))
    return found


def results(one: Protocol) -> pd.DataFrame:
    """Rows of results.csv: every case after the last site of an order. An experiment is called `continual/<scenario>/<method>`."""
    if one.cases.empty:
        return one.cases
    system = {name: arm["system"] for name, arm in one.summary["arms"].items()}
    rows = one.cases.assign(cohort=one.cohort, experiment=FOLDER + "/" + one.cases.scenario + "/" + one.cases.method, protocol=FOLDER,
                            system=one.cases.method.map(system), shots=one.summary["shots"], arm=one.cases.method)
    return rows.drop(columns=["scenario", "method"])


def table(found: Sequence[Protocol]) -> pd.DataFrame:
    """reports/continual.csv; without rows where no cohort has any."""
    tables = [one.rows.assign(cohort=one.cohort)[COLUMNS] for one in found]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def mean_matrix(rows: pd.DataFrame) -> np.ndarray:
    """R of one method in one scenario, mean over chains: `(T, T)`; row i after the i-th site learned, column j on the j-th, whichever they are."""
    matrices = []
    for (order, _), part in rows.groupby(["order", "seed"]):
        sites = order.split(">")
        matrices.append(part.pivot(index="after_site", columns="on_site", values="dice").loc[sites, sites].to_numpy())
    return np.mean(matrices, axis=0)


def draw(one: Protocol, scenario: str, path: Path) -> None:
    """The mean R of every method as a table of colours with its numbers; the diagonal is the site just learned, above it are sites not seen yet."""
    methods = methods_of(one.summary, scenario)
    count = len(methods)
    columns = min(count, PANELS_A_ROW)
    lines = -(-count // columns)
    rows = one.rows[one.rows.scenario == scenario]
    figure, axes = charts.subplots(lines, columns, figsize=(2.5 * columns, 2.75 * lines), squeeze=False)
    for axis in axes.flat[count:]:
        axis.axis("off")
    for axis, (method, values) in zip(axes.flat, methods.items(), strict=False):
        matrix = mean_matrix(rows[rows.method == method])
        axis.imshow(matrix, vmin=0, vmax=1, cmap="cividis")
        for (i, j), value in np.ndenumerate(matrix):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value < 0.55 else "black",
                      fontweight="bold" if i == j else "normal")
        places = range(len(matrix))
        axis.set(xticks=places, yticks=places, xticklabels=[place + 1 for place in places], yticklabels=[place + 1 for place in places])
        axis.set_title(values["title"], fontsize=9)
        axis.grid(visible=False)
    for axis in axes[-1]:
        axis.set_xlabel("on the j-th site", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("after the i-th site", fontsize=8)
    charts.save(figure, path)


def file_of(one: Protocol, scenario: str) -> str:
    """The figure's file; it begins with the cohort's name, by which MLflow's recorder finds it."""
    return f"{one.cohort}_continual_{scenario}.png"


def section(one: Protocol, scenario: str, figure: object) -> dict[str, object]:
    """What the page needs of one scenario; `figure` is its `stage.Figure`."""
    summary = one.summary
    return {"id": f"{one.cohort}-continual-{scenario}", "cohort": one.cohort, "scenario": scenario, "several": len(summary["scenarios"]) > 1,
            "caveat": summary["caveat"], "shots": summary["shots"], "orders": len(summary["orders"]), "seeds": len(summary["seeds"]),
            "confidence": round(100 * summary["confidence"]), "query": max(map(max, summary["query_cases"].values())), "figure": figure,
            "rows": lines(summary, scenario), "aims": aims(summary, scenario),
            "headline": summary["scenarios"][scenario][summary["headline"]]["title"]}


def caption(one: Protocol, scenario: str) -> str:
    """Under the figure."""
    orders = "; ".join(" > ".join(order) for order in one.summary["orders"])
    return (f"Mean Dice on the j-th site after the i-th has been learned, over the orders {orders} and {len(one.summary['seeds'])} draw(s)"
            f"{'' if scenario == 'as-acquired' else f', scenario {scenario}'}. On the diagonal the site just learned, below it what is left of "
            "earlier ones, above it sites not seen yet.")


def lines(summary: Mapping, scenario: str) -> list[dict[str, str]]:
    """A row a method, as text: the measures with intervals, forgetting minus sequential's, seconds and size at the first and last site."""
    return [_line(values) | {"method": method, "headline": method == summary["headline"]}
            for method, values in methods_of(summary, scenario).items()]


def _line(values: Mapping) -> dict[str, str]:
    measured = {name: f"{number(entry['mean'], 3)} {interval(entry, 3)}" for name, entry in values["measures"].items()}
    against = {f"{name} minus {other}": f"{signed(entry['mean'], 3)} {interval(entry, 3)}"
               for other, gaps in values["minus"].items() for name, entry in gaps.items() if name in ("acc", "forgetting", "newest")}
    first, last = values["cost"][0], values["cost"][-1]
    return {"title": values["title"], "chains": str(values["chains"]), **measured, **against,
            "seconds": f"{seconds(first['cpu_seconds'])} to {seconds(last['cpu_seconds'])}",
            "model": f"{size(first['model_bytes'])} to {size(last['model_bytes'])}"}


def aims(summary: Mapping, scenario: str) -> list[dict[str, str]]:
    """What ITL set out to show, with the figures: yes, no, or nothing to forget."""
    methods = summary["scenarios"][scenario]
    own = methods.get(summary["headline"])
    if own is None or "sequential" not in methods or "replay-2" not in methods:
        return []
    mean = {name: {measure: entry["mean"] for measure, entry in values["measures"].items()} for name, values in methods.items()}
    itl, plain, replay = mean[summary["headline"]], mean["sequential"], mean["replay-2"]
    forgets = methods["sequential"]["measures"]["forgetting"]
    some = (forgets["low"] or 0) > 0
    kept = itl["forgetting"] <= FORGETTING_AIM * plain["forgetting"]
    close = itl["newest"] >= (1 - NEWEST_AIM) * plain["newest"]
    sizes = [step["model_bytes"] for step in own["cost"][1:]]
    times = [step["cpu_seconds"] for step in own["cost"][1:]]
    return [
        {"aim": "Forgetting at most a third of sequential fine-tuning's", "measured": f"{number(itl['forgetting'], 3)} against "
         f"{number(plain['forgetting'], 3)}", "reached": ("yes" if kept else "no") if some else
         "nothing to reach: sequential fine-tuning does not forget beyond noise"},
        {"aim": "At most 2 % lower on the newest site than sequential fine-tuning", "measured": f"{number(itl['newest'], 3)} against "
         f"{number(plain['newest'], 3)}", "reached": "yes" if close else "no"},
        {"aim": "Dice on all sites at the end at least that of replay with 2 cases a site", "measured": f"{number(itl['acc'], 3)} against "
         f"{number(replay['acc'], 3)}", "reached": "yes" if itl["acc"] >= replay["acc"] else "no"},
        {"aim": "Memory and time a site do not grow with the number of sites", "measured": f"from the second site on {size(min(sizes))} to "
         f"{size(max(sizes))}, {seconds(min(times))} to {seconds(max(times))}",
         "reached": "yes" if max(sizes) <= 1.01 * min(sizes) and max(times) <= 1.5 * min(times) else "no"},
    ]


def markdown(summary: Mapping) -> list[str]:
    """The tables of a cohort for docs/evidence.md: every method's measures, then the aims, for each scenario."""
    found = []
    for scenario in summary["scenarios"]:
        several = f", scenario {scenario}" if len(summary["scenarios"]) > 1 else ""
        found += ["", f"Sites one after another{several}: {summary['shots']} labelled cases of every site, {len(summary['orders'])} orders, "
                  f"{len(summary['seeds'])} draw(s); {summary['confidence']:.0%} intervals over orders and draws.", "",
                  "| Method | Dice, all sites at the end | site just learned | Forgetting | next site, unseen | Seconds a site | Model |",
                  "|---|---|---|---|---|---|---|"]
        found += [f"| {row['title']} | {row['acc']} | {row['newest']} | {row['forgetting']} | {row['unseen']} | {row['seconds']} | {row['model']} |"
                  for row in lines(summary, scenario)]
        found += ["", "| Aim | Measured | Reached |", "|---|---|---|"]
        found += [f"| {row['aim']} | {row['measured']} | {row['reached']} |" for row in aims(summary, scenario)]
    return found
