"""A look at each new labelled case before its label is believed: how the champion does on it, whether it looks usual, where its label lies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from pipelines.cohort import Case
from pipelines.drift.distance import pairwise
from pipelines.sites.describe import pooled_tokens
from pipelines.sites.gate import AT_HOME, Screened

#: Images are unusual when the nearest known case is so many times farther than known cases have their nearest.
FAR = 2.0
#: With fewer known cases nobody can say what is usual.
ENOUGH = 3


def screen(lesson: Mapping, cases: Mapping[str, Mapping[str, Case]], champion, card: Mapping, checked: Collection[str]) -> list[Screened]:
    """The site's labelled cases that the champion's `card` does not list with the same label.

    `cases`: site -> id -> case; `champion`: a `pipelines.judge.stage.Judged`, or None; `checked`: patients whose labels a person has confirmed.
    """
    site = lesson["site"]
    accepted = card.get("labels", {}) if card.get("site") == site else {}
    new = {name: entry for name, entry in lesson["cases"].items() if accepted.get(name) != entry["label"]}
    listed = {card.get("site"): card.get("labels", {}), **card.get("earlier", {})}
    known = [cases[place][name] for place, labels in listed.items() for name in labels
             if name in cases.get(place, {}) and not (place == site and name in new)]
    found = []
    for name, entry in new.items():
        case = cases[site][name]
        overlap = champion.measure(case)["dice"] if champion else None
        poor = overlap is not None and overlap < AT_HOME  # of the others nobody asks
        found.append(Screened(name, overlap, familiar(case, known) if poor else None, *shares(case), checked=entry["subject"] in checked))
    return found


def shares(case: Case) -> tuple[float, float]:
    """How much of the head the label fills, and how much of the label lies outside the head; 0 for an empty label."""
    label, head = case.label() > 0, case.foreground()
    return (float((label & head).sum() / max(head.sum(), 1)), float((label & ~head).sum() / max(label.sum(), 1)))


def familiar(case: Case, known: Sequence[Case]) -> bool | None:
    """Whether the images look like those of known cases, by the frozen encoder's tokens; None where too few are known."""
    if len(known) < ENOUGH:
        return None
    distances = pairwise([{name: pooled_tokens(one, name) for name in one.images if name in one.tokens} for one in (case, *known)])
    among = distances[1:, 1:] + np.diag(np.full(len(known), np.inf))
    return bool(distances[0, 1:].min() <= FAR * among.min(axis=1).max())
