"""Numbers put into words: how the page writes them, and the summary that a clinician reads first.

Every sentence is made from metrics.json, the unwelcome ones by the same rule as the welcome: what is better beyond chance, what is worse beyond
chance, and what these data cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.report.versus import main_comparison, main_estimate

GOOD, BAD, OPEN = "good", "bad", "open"
SIGNIFICANT = 0.05
PLURAL = {"patient": "patients", "study": "studies"}
Points = list[tuple[str, str]]


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


def percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value * 100:.{digits}f}\u00a0%".replace("-", "−")


def percents(values: Mapping, digits: int = 0) -> str:
    """An interval of shares in percent."""
    return interval({key: None if values[key] is None else values[key] * 100 for key in ("low", "high")}, digits)


def condition(protocol: str, shots: int, several: bool = True) -> str:
    """A protocol and number of shots as a heading."""
    cases = f"{shots} labelled case{'s' * (shots != 1)}"
    return f"{protocol}, {cases}" if several else cases


def listed(words: Sequence[str], most: int | None = None) -> str:
    """a, b and c; or the first `most` and how many there are besides."""
    if most is not None and len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more (see the tables)"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def verdict(comparison: Mapping, *, more_is_better: bool = True) -> str:
    """Whether a comparison says better, worse, or neither, at 5 % after correction."""
    p, difference = comparison["p_holm"], comparison["difference"]
    if p is None or difference is None or p >= SIGNIFICANT:
        return OPEN
    return GOOD if (difference > 0) == more_is_better else BAD


def summary(metrics: Mapping) -> list[dict[str, str]]:
    """The points of the summary: `kind` (good, bad, open) and `text`. Those whose data are not there are left out."""
    points: Points = []
    for make in (_baselines, _calibration):
        for label in metrics["labels"]:
            points += make(metrics, label)
    for make in (_variants, _missing, _conformal, _uncertainty, _cost):
        points += make(metrics)
    return [{"kind": kind, "text": text[0].upper() + text[1:]} for kind, text in points]


def _of(metrics: Mapping, label: str) -> str:
    return f"{label}: " if len(metrics["labels"]) > 1 else ""


def _headline(metrics: Mapping) -> dict:
    return metrics["experiments"][metrics["focus"]["experiment"]]


def _baselines(metrics: Mapping, label: str) -> Points:
    """Against every baseline, at every protocol and number of shots: a point a verdict."""
    found: dict[str, list[str]] = {GOOD: [], BAD: [], OPEN: []}
    for title, by_label in metrics["comparisons"].items():
        if label in by_label and main_comparison(by_label[label]["dice"])["n"]:
            other, against = metrics["experiments"][title.split(" vs ")[1]], main_comparison(by_label[label]["dice"])
            found[verdict(against)].append(f"{other['title']} ({condition(other['protocol'], other['shots'])}: {signed(against['difference'])})")
    total, of, name = sum(map(len, found.values())), _of(metrics, label), _headline(metrics)["title"]
    points = []
    if found[GOOD]:
        which = f": {listed(found[GOOD])}" if len(found[GOOD]) <= 2 else ""
        points.append((GOOD, f"{of}{name} has the higher Dice, beyond chance, in {len(found[GOOD])} of {total} comparisons with a baseline{which}."))
    if found[BAD]:
        points.append((BAD, f"{of}{name} has the lower Dice, beyond chance, than {listed(found[BAD])}."))
    if found[OPEN]:
        points.append((OPEN, f"{of}cannot be told from chance with these patients: {name} and {listed(found[OPEN], 4)}."))
    return points


def _calibration(metrics: Mapping, label: str) -> Points:
    focus = metrics["focus"]
    best = next((row for row in metrics["best_baselines"] if (row["protocol"], row["shots"], row["label"], row["metric"])
                 == (focus["protocol"], focus["shots"], label, "ece")), None)
    if best is None or best["against"]["ratio"] is None:
        return []
    own, kind = main_estimate(_headline(metrics), label, "ece"), verdict(best["against"], more_is_better=False)
    words = {GOOD: "less beyond chance", BAD: "more beyond chance", OPEN: "a difference that can be chance"}[kind]
    return [(kind, f"{_of(metrics, label)}its probabilities are off by {number(own['mean'], 3)} on average near the lesion (ECE); those of the best "
                   f"baseline in this, {best['title']}, by {number(best['mean'], 3)}: {words}.")]


def _variants(metrics: Mapping) -> Points:
    """What each ablation and control costs at the focus, or that it costs nothing."""
    found: dict[str, list[str]] = {GOOD: [], BAD: [], OPEN: []}
    for title, by_label in metrics["ablations"].items():
        first, other = title.split(" vs ")
        if first == metrics["focus"]["experiment"]:
            for label, by_metric in by_label.items():
                against = main_comparison(by_metric["dice"])
                if against["n"]:
                    found[verdict(against)].append(f"{_of(metrics, label)}{metrics['experiments'][other]['title']} ({signed(against['difference'])})")
    words = {GOOD: f"taken away or made wrong, these cost Dice beyond chance ({_headline(metrics)['title']} minus it)",
             BAD: "it does better, beyond chance, with these changes",
             OPEN: "these changes make no difference that can be told from chance, so nothing here shows that the part helps"}
    return [(kind, f"{words[kind]}: {listed(names, 6)}.") for kind, names in found.items() if names]


def _missing(metrics: Mapping) -> Points:
    rows = [row for row in metrics.get("missing", ()) if row["arm"] == metrics["headline"] and row["drop"]["mean"] is not None]
    if not rows:
        return []
    worst, least = min(rows, key=lambda row: row["drop"]["mean"]), max(rows, key=lambda row: row["drop"]["mean"])
    most, little = (f"{row['modalities'].replace('+', ' and ')} alone ({signed(row['drop']['mean'])} Dice)" for row in (worst, least))
    return [(BAD if (worst["drop"]["high"] or 0) < 0 else OPEN,
             f"with sequences missing it still answers, at a price: from {little} to {most} against all sequences of the same cases.")]


def _conformal(metrics: Mapping) -> Points:
    """A point a level, over labels."""
    rows = [row for row in metrics.get("conformal", ()) if row["experiment"] == metrics["focus"]["experiment"]]
    points = []
    for alpha in dict.fromkeys(row["alpha"] for row in rows):
        level, refused = [row for row in rows if row["alpha"] == alpha], sum(row["refused"] for row in rows if row["alpha"] == alpha)
        tested = [row for row in level if row["fnr"]["mean"] is not None]
        if not tested:
            points.append((OPEN, f"a promise to miss at most {percent(alpha)} of the lesion was refused each time: too few labelled cases."))
            continue
        kind = GOOD if all(row["fnr"]["mean"] <= alpha for row in tested) else \
            BAD if any((row["fnr"]["low"] or 0) > alpha for row in tested) else OPEN
        missed = listed([f"{percent(row['fnr']['mean'], 1)} of {row['label']} (outlining {number(row['size_ratio'], 1)} times its volume)"
                         for row in tested])
        points.append((kind, f"asked to miss at most {percent(alpha)} of the lesion on average, it missed {missed}; "
                             f"{refused} of {refused + sum(row['tested'] for row in tested)} times it refused to promise."))
    return points


def _uncertainty(metrics: Mapping) -> Points:
    found = {label: values["uncertainty_auroc"] for label, values in _headline(metrics)["labels"].items()
             if values.get("uncertainty_auroc", {"mean": None})["mean"] is not None}
    if not found:
        return []
    pairs = listed([f"{percent(area['mean'])}{f' of pairs for {label}' if len(found) > 1 else ' of pairs'}" for label, area in found.items()])
    return [(GOOD if all((area["low"] or 0) > 0.5 for area in found.values()) else OPEN,
             f"where it is unsure it is more often wrong: wrong voxels are less certain than right ones in {pairs} (guessing gives {percent(0.5)}).")]


def _cost(metrics: Mapping) -> Points:
    rows = [row for row in metrics.get("cost", ()) if row["arm"] == metrics["headline"] and row["train_seconds"] is not None]
    if not rows:
        return []
    most = max(rows, key=lambda row: row["train_seconds"])
    memory = f", with at most {number(most['peak_mb'] / 1000, 1)} GB of memory" if most["peak_mb"] else ""
    return [(OPEN, f"adapting takes {seconds(most['train_seconds'])} on one CPU core at most ({condition(most['protocol'], most['shots'])}){memory}; "
                   f"a case is then predicted in {seconds(most['predict_seconds'])}.")]
