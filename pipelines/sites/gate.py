"""The gate: may a challenger replace the champion? A pure function of what both did on the same cases.

What it asks, each with its numbers among the reasons:

1. *enough cases* of the site: otherwise the decision is `wait`.
2. *labels that can be believed*. The labels that a new model learns from and is judged on arrive together, so a mislabelled batch would vote for the
   model that it spoiled. Three things do not depend on the new labels' word. A label that fills most of the head, or lies outside of it, is none.
   Where the champion is at home (cases that an accepted model was made with or judged on) and does well, and on a new case, whose images look like
   those it knows, has next to no overlap, the label is the likelier culprit than the model: a person is asked to look. At a site that is new to
   the champion only if the challenger cannot find these labels in other patients either. And (3).
3. *what was judged before still holds*: on the query cases of earlier, accepted batches, and at every earlier site, the mean Dice may not fall by
   more than a margin. These labels have nothing to do with the new ones.
4. *better on the site*: the lower end of the interval of the paired Dice difference (patients are the unit) lies above the margin.
5. *calibrated*: the mean calibration error in the foreground band does not grow by more than its margin.

With two or three patients, resampling says little: a bootstrap of n patients never looks past the values seen, and of two it gives the smaller one
with a chance of 1/4 whatever the level. Below `FEW` patients the lower end is therefore the smallest difference itself: the challenger has
to win on every patient. That is a sign test, whose chance of a false promotion at no difference is 1/2^n (1/4 at two patients), which the reason
says; who wants less sets `min_query_cases` higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipelines.sites.params import Gate

Decision = Literal["promote", "keep", "wait"]
#: Below so many patients the smallest difference stands for the lower end of the interval.
FEW = 5
#: The champion does well where its lowest Dice on query cases that it was accepted with is at least this.
AT_HOME = 0.3
#: A new case is suspicious below this share of that lowest Dice: swapped heads still overlap a little, since tumours lie in the middle of heads.
SUSPICIOUS_SHARE = 1 / 3
#: A label that fills more of the head than this is inverted or of something else.
LARGEST_SHARE = 0.5
#: A label of which more than this lies outside the head is of another image.
OUTSIDE_SHARE = 0.5
#: Names in a sentence.
NAMED = 6


@dataclass(frozen=True)
class Row:
    """One query case as both models did on it: Dice (mean over labels) and calibration error in the band. `champion_*` None without a champion."""

    site: str
    case: str
    subject: str
    known: bool  # judged before: an accepted model was made when it was there, with the same label
    dice: float
    ece: float | None
    champion_dice: float | None = None
    champion_ece: float | None = None


@dataclass(frozen=True)
class Screened:
    """One labelled case of the site that no accepted model has seen. `familiar`: its images look like those that the champion knows (None: not
    looked at, or too few to compare with)."""

    case: str
    champion_dice: float | None
    familiar: bool | None
    share_of_head: float
    share_outside: float
    checked: bool = False  # a person has confirmed the label


@dataclass
class Verdict:
    """`numbers`: what the reasons are made of, by name."""

    decision: Decision
    reasons: list[str] = field(default_factory=list)
    numbers: dict[str, object] = field(default_factory=dict)


def decide(site: str, rows: Sequence[Row], screened: Sequence[Screened], gate: Gate, *, lacking: Sequence[str] = (),
           found: Mapping[str, bool] | None = None, interval=None) -> Verdict:
    """The verdict on a challenger.

    `rows`: query cases of the site and of earlier ones; `lacking`: what there is too little of; `found`: label -> whether the challenger finds it in
    any case; `interval(differences, level)` -> (low, high) of their mean, for `FEW` patients and more.
    """
    if lacking:
        return Verdict("wait", [f"too few cases: {'; '.join(lacking)}"])
    own = [row for row in rows if row.site == site]
    if not own:
        return Verdict("wait", ["too few cases: no query case has any of the labels"])
    verdict = Verdict("promote")
    _labels(verdict, site, rows, screened)
    if any(row.champion_dice is None for row in own):
        _first(verdict, own, found or {})
    else:
        _better(verdict, own, gate, interval)
        _calibrated(verdict, own, gate)
        _kept(verdict, f"{site}, cases judged before", [row for row in own if row.known], gate)
        for name in dict.fromkeys(row.site for row in rows if row.site != site):
            _kept(verdict, name, [row for row in rows if row.site == name], gate)
    return verdict


def suspects(site: str, rows: Sequence[Row], screened: Sequence[Screened]) -> dict[str, str]:
    """Case -> why its label cannot be believed. The champion is at home at this site, or, before it has been adapted to it, at earlier ones.

    At a site that it does not know, a good champion may well find nothing, which is why one adapts. There, labels acquit themselves: if what was
    learned of some patients' finds those of others, they are of these images.
    """
    known = [row for row in rows if row.known and row.champion_dice is not None]
    at_home = [row.champion_dice for row in known if row.site == site]
    lowest = min(at_home or [row.champion_dice for row in known], default=0.0)
    own = [row.dice for row in rows if row.site == site]
    learnable = not at_home and bool(own) and _mean(own) >= AT_HOME
    found = {}
    for case in screened:
        if case.checked:
            continue
        if case.share_of_head > LARGEST_SHARE:
            found[case.case] = f"fills {case.share_of_head:.0%} of the head"
        elif case.share_outside > OUTSIDE_SHARE:
            found[case.case] = f"lies to {case.share_outside:.0%} outside the head"
        elif learnable or lowest < AT_HOME or case.champion_dice is None or case.familiar is False:
            continue
        elif case.champion_dice < SUSPICIOUS_SHARE * lowest:
            found[case.case] = f"has Dice {case.champion_dice:.2f} with the champion, which has {lowest:.2f} or more on cases judged before"
    return found


def _labels(verdict: Verdict, site: str, rows: Sequence[Row], screened: Sequence[Screened]) -> None:
    found = suspects(site, rows, screened)
    verdict.numbers["suspects"] = found
    if found:
        why = "; ".join(f"{case} {what}" for case, what in list(found.items())[:NAMED]) + ("; ..." if len(found) > NAMED else "")
        _keep(verdict, f"check the labels of {len(found)} new case(s), whose images look usual: {why}. Correct them at their source, or name the "
                       "patients in params service.sites.<site>.checked")


def _first(verdict: Verdict, own: Sequence[Row], found: Mapping[str, bool]) -> None:
    """There is nothing to compare with: the model has to find every label somewhere."""
    mean = _mean([row.dice for row in own])
    verdict.numbers |= {"challenger": mean, "patients": len({row.subject for row in own})}
    missing = [label for label, seen in found.items() if not seen]
    if missing:
        _keep(verdict, f"the first model finds {', '.join(missing)} in no query case")
    else:
        verdict.reasons.append(f"the site has no champion yet, and every label is found; mean Dice {mean:.3f} on {len(own)} query case(s)")


def _better(verdict: Verdict, own: Sequence[Row], gate: Gate, interval) -> None:
    champion, challenger = by_subject(own, "champion_dice"), by_subject(own, "dice")
    differences = np.array([challenger[name] - champion[name] for name in challenger])
    count = len(differences)
    few = count < FEW or interval is None
    low, high = (float(differences.min()), float(differences.max())) if few else interval(differences, gate.level)
    mean = float(differences.mean())
    verdict.numbers |= {"champion": _mean(champion.values()), "challenger": _mean(challenger.values()), "difference": mean, "low": low, "high": high,
                        "patients": count, "interval": "smallest and largest difference" if few else f"{gate.level:.0%} bootstrap"}
    of = f"of {count} patient(s) the smallest difference, {low:+.3f}; by luck alone it is above 0 once in {2 ** count}" if few else \
        f"the lower end of the {gate.level:.0%} interval over {count} patients, {low:+.3f}"
    text = f"Dice {verdict.numbers['champion']:.3f} -> {verdict.numbers['challenger']:.3f} ({mean:+.3f}; {of})"
    if low > gate.margin:
        verdict.reasons.append(f"better on the site: {text}")
    else:
        _keep(verdict, f"not surely better on the site, which asks for more than {gate.margin:+.3f}: {text}")


def _calibrated(verdict: Verdict, own: Sequence[Row], gate: Gate) -> None:
    pairs = [row for row in own if row.ece is not None and row.champion_ece is not None]
    if not pairs:
        return
    before, after = _mean(by_subject(pairs, "champion_ece").values()), _mean(by_subject(pairs, "ece").values())
    verdict.numbers |= {"ece_champion": before, "ece_challenger": after}
    text = f"calibration error {before:.3f} -> {after:.3f}, {gate.ece_margin:.3f} more allowed"
    if after - before > gate.ece_margin:
        _keep(verdict, f"worse calibrated: {text}")
    else:
        verdict.reasons.append(text)


def _kept(verdict: Verdict, name: str, rows: Sequence[Row], gate: Gate) -> None:
    """What the champion could, on cases whose labels have nothing to do with the new ones."""
    if not rows:
        return
    before, after = _mean(by_subject(rows, "champion_dice").values()), _mean(by_subject(rows, "dice").values())
    verdict.numbers.setdefault("earlier", {})[name] = {"champion": before, "challenger": after, "difference": after - before, "cases": len(rows)}
    text = f"{name}: Dice {before:.3f} -> {after:.3f} on {len(rows)} query case(s), a fall of {gate.earlier_margin:.3f} allowed"
    if before - after > gate.earlier_margin:
        _keep(verdict, f"worse where it was good, {text}")
    else:
        verdict.reasons.append(text)


def _keep(verdict: Verdict, reason: str) -> None:
    """What speaks against comes first."""
    against = verdict.numbers.setdefault("against", 0)
    verdict.reasons.insert(against, reason)
    verdict.numbers["against"] = against + 1
    verdict.decision = "keep"


def by_subject(rows: Sequence[Row], column: str) -> dict[str, float]:
    """A patient's mean over the patient's cases."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row.subject, []).append(getattr(row, column))
    return {subject: float(np.mean(numbers)) for subject, numbers in values.items()}


def _mean(values) -> float:
    return float(np.mean(list(values)))
