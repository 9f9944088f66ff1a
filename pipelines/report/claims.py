"""What the project set out to show, each aim as a rule over metrics.json: its figure, the best baseline, whether it is reached, and its control.

The aims were fixed before the sweeps were run. A rule that finds no data says so; it never leaves its row out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pipelines.report.collect import BASELINE, VARIANTS
from pipelines.report.metrics import reported
from pipelines.report.versus import main_comparison, main_estimate
from pipelines.report.words import condition, interval, number, p_value, percent, seconds, signed, size

YES, PARTLY, NO, UNKNOWN = "yes", "in part", "no", "not measured"
NONE = "–"
#: An ablation that costs less than this share of Dice is decoration.
WORTH = 0.05
ECE_AIM = 0.5
ADAPT_SECONDS, PEAK_MB, MOST_SHOTS = 60, 4000, 16
DICE_AIM = 0.78


@dataclass(frozen=True)
class Row:
    """One aim: the sentences of a row of the table."""

    claim: str
    measured: str = NONE
    rival: str = NONE
    reached: str = UNKNOWN
    control: str = NONE


Rule = Callable[[Mapping, str], Row]


def aims(metrics: Mapping) -> Iterator[Row]:
    """Every aim on every label of a cohort."""
    several = len(metrics["labels"]) > 1
    for label in metrics["labels"]:
        for rule in RULES:
            row = rule(metrics, label)
            yield Row(f"{label}: {row.claim}" if several else row.claim, row.measured, row.rival, row.reached, row.control)
    yield adapting(metrics)


def dice_ratio(metrics: Mapping, label: str, *, protocol: str, shots: int, aim: float) -> Row:
    """So many times the best baseline's Dice. Control: a linear probe on the very same frozen features."""
    claim = f"Dice with {condition(protocol, shots, False)} ({protocol}) at least {aim} times the best baseline's, interval above 1"
    best = _best(metrics, protocol, shots, label, "dice")
    if best is None:
        return Row(claim)
    against = best["against"]
    if against["ratio"] is None:
        return Row(claim, rival=best["title"])
    above = against["ratio_low"] is not None and against["ratio_low"] > 1
    return Row(claim, f"{number(against['ratio'])} {_ratio(against)} ({number(against['first'])} against {number(against['second'])})", best["title"],
               YES if above and against["ratio"] >= aim else PARTLY if above else NO, _probe(metrics, best["headline"], label))


def dice_itself(metrics: Mapping, label: str) -> Row:
    """An absolute Dice. Control: what the token grid allows at most."""
    claim = f"Dice of {DICE_AIM} with 4 labelled cases (within)"
    entry = _headline(metrics, "within", 4)
    if entry is None:
        return Row(claim)
    own, best, ceiling = main_estimate(entry, label, "dice"), _best(metrics, "within", 4, label, "dice"), metrics["patch_ceiling"].get(label)
    return Row(claim, f"{number(own['mean'])} {interval(own)}", f"{best['title']} {number(best['mean'])}" if best else NONE,
               YES if (own["mean"] or 0) >= DICE_AIM else NO, f"patch ceiling {number(ceiling)}" if ceiling is not None else NONE)


def never_below(metrics: Mapping, label: str) -> Row:
    """With many labelled cases, below no baseline by more than noise. Control: how small a difference the test would have seen."""
    claim = "With 8 to 16 pooled labelled cases, below no baseline by more than noise"
    found = [(main_comparison(by_label[label]["dice"]), metrics["experiments"][title.split(" vs ")[1]])
             for title, by_label in metrics["comparisons"].items() if label in by_label]
    found = [(against, other) for against, other in found if other["protocol"] == "pooled" and other["shots"] >= 8 and against["n"]]
    if not found:
        return Row(claim)
    against, other = min(found, key=lambda each: each[0]["difference"])
    below = [each for each, _ in found if each["high"] is not None and each["high"] < 0]
    width = (against["high"] - against["low"]) / 2 if against["low"] is not None else None
    return Row(claim, f"smallest of {len(found)} differences: {signed(against['difference'])} {interval(against)}",
               f"{other['title']}, {condition('pooled', other['shots'], False)}", NO if below else YES,
               f"a difference beyond ±{number(width, 3)} would have shown" if width is not None else NONE)


def ece_ratio(metrics: Mapping, label: str, *, shots: int = 4) -> Row:
    """Calibration error against the best baseline's. Control: the same without temperature scaling, which any system could have."""
    claim = f"ECE in the foreground band with {condition('within', shots, False)} at most half the best baseline's"
    best = _best(metrics, "within", shots, label, "ece")
    if best is None or best["against"]["ratio"] is None:
        return Row(claim)
    against, unscaled = best["against"], metrics["experiments"][best["headline"]]["labels"][label].get("ece_unscaled")
    below = against["ratio_high"] is not None and against["ratio_high"] < 1
    return Row(claim, f"{number(against['ratio'])} {_ratio(against)} ({number(against['first'], 3)} against {number(against['second'], 3)})",
               best["title"], YES if below and against["ratio"] <= ECE_AIM else PARTLY if below else NO,
               f"without temperature scaling {number(unscaled['mean'], 3)}" if unscaled else NONE)


def conformal(metrics: Mapping, label: str) -> Row:
    """The false-negative rate within each level asked for, at one site and, where there are more labelled cases, pooled over sites.

    Control: outlining everything would also miss nothing, so the volume is given.
    """
    claim = "Conformal false-negative rate within its level on cases not used to set it"
    pooled = [name for name, entry in metrics["experiments"].items() if (entry["arm"], entry["protocol"]) == (metrics["headline"], "pooled")]
    rows = [row for row in metrics.get("conformal", ()) if row["experiment"] in (metrics["focus"]["experiment"], *pooled) and row["label"] == label]
    if not rows:
        return Row(claim)
    tested = [row for row in rows if row["fnr"]["mean"] is not None]
    refused = f"refused {sum(row['refused'] for row in rows)} times for want of labelled cases"
    if not tested:
        return Row(claim, f"{refused}, at every level")
    kept = all(row["fnr"]["mean"] <= row["alpha"] for row in tested)
    said = [(f"{_place(metrics['experiments'][row['experiment']])} at level {percent(row['alpha'])}", row) for row in tested]
    return Row(claim, "; ".join(f"{percent(row['fnr']['mean'], 1)} ({place})" for place, row in said), NONE, YES if kept else NO,
               "; ".join(f"outline {number(row['size_ratio'], 1)} times the true volume ({place})" for place, row in said) + f"; {refused}")


def _place(entry: Mapping) -> str:
    return condition(entry["protocol"], entry["shots"])


def text_matters(metrics: Mapping, label: str) -> Row:
    """Replacing the text by words without meaning costs; the control is the aim itself."""
    claim = f"Without text guidance at least {percent(WORTH)} of Dice is lost, or the text is decoration"
    found = [row for row in variants(metrics, label) if row["params"].get("text", "prompts") != "prompts"]
    if not found:
        return Row(claim)
    least = min(found, key=lambda row: row["lost"])
    reached = YES if least["lost"] >= WORTH and (least["against"]["low"] or 0) > 0 else NO
    return Row(claim, "; ".join(f"{row['title']}: {percent(row['lost'], 1)} lost" for row in found), NONE, reached,
               f"{least['title']}: {signed(least['against']['difference'])} {interval(least['against'])}")


def adapting(metrics: Mapping) -> Row:
    """Seconds and memory of adapting with features cached. Control: the same figures of the most accurate baseline."""
    claim = f"Adapting to a site in at most {ADAPT_SECONDS} s for up to {MOST_SHOTS} shots and under {PEAK_MB / 1000:g} GB, features cached"
    rows = [row for row in metrics.get("cost", ()) if row["shots"] <= MOST_SHOTS and row["train_seconds"] is not None]
    own = [row for row in rows if row["arm"] == metrics["headline"]]
    if not own:
        return Row(claim)
    most, peak = max(own, key=lambda row: row["train_seconds"]), max((row["peak_mb"] or 0 for row in own), default=0)
    at = (metrics["focus"]["protocol"], metrics["focus"]["shots"])
    best = _best(metrics, *at, metrics["labels"][0], "dice")
    other = next((row for row in rows if best and (row["arm"], row["protocol"], row["shots"]) == (best["arm"], *at)), None)
    measured = f"{seconds(most['train_seconds'])} ({most['protocol']}, {most['shots']} shots), peak {size(peak * 1e6)}"
    return Row(claim, measured, f"{best['title']} {seconds(other['train_seconds'])}, {at[1]} shots" if other else NONE,
               YES if most["train_seconds"] <= ADAPT_SECONDS and peak < PEAK_MB else NO, "the whole process is counted, data and libraries included")


RULES: tuple[Rule, ...] = (
    *(partial(dice_ratio, protocol=protocol, shots=shots, aim=aim) for protocol in ("within", "transfer") for shots, aim in ((4, 1.25), (1, 1.15))),
    dice_itself, never_below, ece_ratio, conformal, text_matters,
)


def variants(metrics: Mapping, label: str) -> list[dict[str, object]]:
    """Every ablation and control at the condition in focus: what it is, how far the headline is ahead, the share of Dice lost without."""
    rows = []
    for title, by_label in metrics["ablations"].items():
        first, other = title.split(" vs ")
        if first != metrics["focus"]["experiment"] or label not in by_label:
            continue
        against, entry = main_comparison(by_label[label]["dice"]), metrics["experiments"][other]
        if against["n"] and against["first"]:
            rows.append({"title": entry["title"], "role": entry["role"], "params": entry["params"], "against": against,
                         "lost": 1 - against["second"] / against["first"], "p": p_value(against["p_holm"])})
    return sorted(rows, key=lambda row: (VARIANTS.index(row["role"]), -row["lost"]))


def _best(metrics: Mapping, protocol: str, shots: int, label: str, metric: str) -> dict | None:
    return next((row for row in metrics["best_baselines"] if (row["protocol"], row["shots"], row["label"], row["metric"])
                 == (protocol, shots, label, metric)), None)


def _headline(metrics: Mapping, protocol: str, shots: int) -> dict | None:
    return next((entry for entry in reported(metrics).values()
                 if (entry["arm"], entry["protocol"], entry["shots"]) == (metrics["headline"], protocol, shots)), None)


def _probe(metrics: Mapping, experiment: str, label: str) -> str:
    """How the headline compares with the linear probe on the same frozen features: what the features alone are worth."""
    for title, by_label in metrics["comparisons"].items():
        first, other = title.split(" vs ")
        entry = metrics["experiments"][other]
        if first == experiment and entry["arm"] == "linear-probe" and entry["role"] == BASELINE and label in by_label:
            against = main_comparison(by_label[label]["dice"])
            return f"features alone ({entry['title']}) {number(against['second'])}, ratio {number(against['ratio'])} {_ratio(against)}"
    return NONE


def _ratio(against: Mapping) -> str:
    return interval(against, 2, ("ratio_low", "ratio_high"))
