"""What in a cohort somebody should look at: each finding with a stable code, a sentence with numbers, what to do, and the cases it is about."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipelines.cohort import case_id
from pipelines.ingest.fingerprint.summary import Facts, spacings

CHECK, KNOW = "check", "know"  # probably a mistake in the data; true, and a limit of what the data can show
GUESSING_RULES = ("-timing", "-agent")  # endings of rules that look at how an image was made, because its name did not say what it is
REPAIRED = re.compile(r"repair|set to 0|filled|dropped", re.IGNORECASE)
#: A label of more than this share of the brighter voxels of its case's images is no lesion.
MAX_HEAD_SHARE = 0.5
#: An image of which this share has one and the same value holds next to nothing.
CONSTANT_SHARE = 0.99
#: Spacing further than this factor from the modality's median, where there are enough images for a median to mean something.
SPACING_FACTOR = 2.0
MIN_FOR_MEDIAN = 5


@dataclass(frozen=True)
class Warned:
    """One finding. `cases` are pseudonymous."""

    code: str
    severity: str
    sentence: str
    remedy: str
    cases: Sequence[str] = ()

    def json(self) -> dict[str, object]:
        return {"code": self.code, "severity": self.severity, "sentence": self.sentence, "remedy": self.remedy, "cases": sorted(set(self.cases))}


def warnings_of(rows: pd.DataFrame, facts: Facts) -> list[dict[str, object]]:
    """Every finding of a cohort, those that are probably mistakes first. `facts[i]` describes the volume of the i-th row."""
    table = rows.assign(case=[case_id(row.subject, row.session) for row in rows.itertuples()], fact=list(facts))
    images, labels = table[table.kind == "image"], table[table.kind == "label"]
    checks: list[Callable[[], Iterator[Warned]]] = [
        lambda: _same_images(images), lambda: _same_labels(labels), lambda: _empty_labels(labels), lambda: _implausible_labels(images, labels),
        lambda: _near_constant(images), lambda: _spacing(images), lambda: _two_sites(table), lambda: _guessed(images), lambda: _repaired(table),
        lambda: _unlabelled(table, labels), lambda: _one_maker_each(images), lambda: _one_site_modality(images),
    ]
    found = [warned for check in checks for warned in check()]
    return [warned.json() for warned in sorted(found, key=lambda warned: warned.severity != CHECK)]


def _same_images(images: pd.DataFrame) -> Iterator[Warned]:
    """Images with equal voxels. Near-constant ones are left out: they are equal for another reason."""
    groups: dict[str, list] = defaultdict(list)
    for row in images.itertuples():
        if row.fact["common_share"] < CONSTANT_SHARE:
            groups[row.fact["hash"]].append(row)
    twice: dict[str, list[list]] = defaultdict(list)
    for rows in groups.values():
        if len(rows) > 1:
            kind = ("sites" if len({row.site for row in rows}) > 1 else "subjects" if len({row.subject for row in rows}) > 1 else "same")
            twice[kind].append(rows)
    where = {
        "sites": ("same-image-two-sites", "at two or more sites",
                  "this is one patient counted twice, who can teach at one site and be judged at the other: remove all but one"),
        "subjects": ("same-image-two-subjects", "in two or more subjects",
                     "this is one patient under two numbers, or an image filed with the wrong patient: find out which, and remove or correct it"),
        "same": ("same-image-twice", "twice in one subject", "an image was filed under two modalities or two sessions: keep the right one"),
    }
    for kind, (code, words, remedy) in where.items():
        if found := twice[kind]:
            listed = "; ".join(_list([f"{row.case} {row.modality}" for row in rows], joint=" = ") for rows in found[:3])
            yield Warned(code, CHECK, f"{_count(len(found), 'image')} {_are(found)} there, equal in every voxel, {words} ({listed}"
                         f"{'; …' if len(found) > 3 else ''})", remedy, [row.case for rows in found for row in rows])


def _same_labels(labels: pd.DataFrame) -> Iterator[Warned]:
    drawn = labels[[fact["total_ml"] > 0 for fact in labels.fact]]
    groups = drawn.groupby([fact["hash"] for fact in drawn.fact]) if len(drawn) else ()
    cases = [case for _, rows in groups if rows.subject.nunique() > 1 for case in rows.case]
    if cases:
        yield Warned("same-label-two-subjects", CHECK, f"{_count(len(cases), 'case')} of different subjects share a label that is equal in "
                     f"every voxel ({_list(cases)})", "a label was filed with the wrong patient: find out whose it is", cases)


def _empty_labels(labels: pd.DataFrame) -> Iterator[Warned]:
    cases = [row.case for row in labels.itertuples() if row.fact["total_ml"] == 0]
    if cases:
        yield Warned("label-empty", CHECK, f"{_count(len(cases), 'label')} of {len(labels)} {_are(cases)} empty ({_list(cases)})",
                     "right where a reader found nothing; where one was meant to be drawn, export the label again", cases)


def _implausible_labels(images: pd.DataFrame, labels: pd.DataFrame) -> Iterator[Warned]:
    head: Mapping[str, float] = images.assign(ml=[fact["foreground_ml"] for fact in images.fact]).groupby("case").ml.max().to_dict()
    found = [(row.fact["total_ml"], row.case) for row in labels.itertuples() if row.fact["total_ml"] > MAX_HEAD_SHARE * head.get(row.case, np.inf)]
    if found:
        volume, case = max(found)
        yield Warned("label-implausible", CHECK, f"{_count(len(found), 'label')} {_are(found)} larger than half of what is bright in the "
                     f"case's images (up to {volume:.0f} ml, {case})",
                     "see whether the label is inverted, a mask of the whole head, or of another image", [case for _, case in found])


def _near_constant(images: pd.DataFrame) -> Iterator[Warned]:
    found = [row for row in images.itertuples() if row.fact["common_share"] >= CONSTANT_SHARE]
    if found:
        listed = _list([f"{row.case} {row.modality}" for row in found])
        yield Warned("near-constant", CHECK, f"{_count(len(found), 'image')} {_are(found)} of one value in {CONSTANT_SHARE:.0%} of the voxels or "
                     f"more ({listed})", "look at it: a failed export, a mask taken for an image, or a map of a very small region",
                     [row.case for row in found])


def _spacing(images: pd.DataFrame) -> Iterator[Warned]:
    for modality, rows in images.groupby("modality"):
        for name, values in zip(("within slices", "across slices"), spacings(rows), strict=True):
            middle = float(np.median(values))
            far = (values > SPACING_FACTOR * middle) | (values < middle / SPACING_FACTOR)
            if len(rows) >= MIN_FOR_MEDIAN and far.any():
                cases = list(rows.case[far])
                yield Warned("spacing-outlier", CHECK, f"{_count(int(far.sum()), 'image')} of {len(rows)} {modality} {_are(cases)} spaced "
                             f"{values[far].min():.3g} to {values[far].max():.3g} mm {name}, where the median is {middle:.3g} mm ({_list(cases)})",
                             "see whether this is another protocol, a localiser or a wrong header", cases)


def _two_sites(table: pd.DataFrame) -> Iterator[Warned]:
    found = [(subject, sorted(rows.site.unique())) for subject, rows in table.groupby("subject") if rows.site.nunique() > 1]
    if found:
        listed = _list([f"sub-{subject} at {' and '.join(sites)}" for subject, sites in found])
        yield Warned("subject-two-sites", CHECK, f"{_count(len(found), 'subject')} {_are(found)} at more than one site ({listed})",
                     "a patient who teaches at one site must not be judged at another: keep one site, or give both one name",
                     table[table.subject.isin([subject for subject, _ in found])].case.tolist())


def _guessed(images: pd.DataFrame) -> Iterator[Warned]:
    guessed = images[images.rule.str.endswith(GUESSING_RULES)]
    if len(guessed):
        counts = ", ".join(f"{count} {name}" for name, count in guessed.modality.value_counts().sort_index().items())
        yield Warned("modality-guessed", KNOW, f"of {_count(len(guessed), 'image')} the modality was decided by timing or contrast agent, because "
                     f"the series' name does not say it ({counts})", "look at some of them; decisions.tsv says what the rule saw, and a rule on "
                     "the series' name in params ingest.rules decides better", guessed.case.tolist())


def _repaired(table: pd.DataFrame) -> Iterator[Warned]:
    repaired = table[table.note.str.contains(REPAIRED)]
    if len(repaired):
        them = "it" if len(repaired) == 1 else "them"
        yield Warned("repaired", KNOW, f"{_count(len(repaired), 'volume')} {_are(repaired)} not as the scanner made {them} "
                     f"({_list(list(repaired.case))}); the manifest's column 'note' says what was changed",
                     "look at them before they are used to teach or to judge", repaired.case.tolist())


def _unlabelled(table: pd.DataFrame, labels: pd.DataFrame) -> Iterator[Warned]:
    without = sorted(set(table.subject) - set(labels.subject))
    if not len(labels):
        yield Warned("no-labels", KNOW, f"none of {_count(len(without), 'subject')} has a label",
                     "nothing can be learnt or judged here before some are drawn")
    elif without:
        listed = _list([f"sub-{subject}" for subject in without])
        yield Warned("no-label", KNOW, f"{_count(len(without), 'subject')} of {table.subject.nunique()} {'has' if len(without) == 1 else 'have'} "
                     f"no label ({listed})", "they can be predicted, and neither teach nor be judged; quarantine.tsv says whether a label was "
                     "refused", table[table.subject.isin(without)].case.tolist())


def _one_maker_each(images: pd.DataFrame) -> Iterator[Warned]:
    known = images[~images.manufacturer.isin(["", "other"])]
    makers = {site: sorted(rows.manufacturer.unique()) for site, rows in known.groupby("site")}
    if len(makers) > 1 and all(len(found) == 1 for found in makers.values()) and len({found[0] for found in makers.values()}) > 1:
        listed = ", ".join(f"{site} {found[0]}" for site, found in makers.items())
        yield Warned("one-maker-per-site", KNOW, f"each of {len(makers)} sites has scanners of one maker only ({listed})",
                     "a difference between sites may be one between makers; say so where sites are compared, or add cases of another scanner")


def _one_site_modality(images: pd.DataFrame) -> Iterator[Warned]:
    sites = images.groupby("modality").site.unique()
    if images.site.nunique() > 1:
        for modality, found in sites.items():
            if len(found) == 1:
                yield Warned("modality-one-site", KNOW, f"{modality} exists at {found[0]} only, of {images.site.nunique()} sites",
                             "what is learnt from it cannot be tried elsewhere; leave it out when sites are compared",
                             images[images.modality == modality].case.tolist())


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _are(found: Sequence[object]) -> str:
    return "is" if len(found) == 1 else "are"


def _list(words: Sequence[str], joint: str = ", ", most: int = 4) -> str:
    """The first words of a list, each once, and that there are more."""
    unique = list(dict.fromkeys(words))
    return joint.join(unique[:most]) + (f" and {len(unique) - most} more" if len(unique) > most else "")
