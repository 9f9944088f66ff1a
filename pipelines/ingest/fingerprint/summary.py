"""Counts and distributions of a cohort: modalities, sites, which images each case has, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pipelines.cohort import case_id

VERSION = 1  # of the layout of fingerprint.json
Facts = Sequence[Mapping[str, object]]
INTENSITIES = ("min", "p0_5", "p5", "median", "p95", "p99_5", "max", "mean", "sd")


def summarise(rows: pd.DataFrame, facts: Facts, quarantine: pd.DataFrame) -> dict[str, object]:
    """The tables of a fingerprint. `facts[i]` describes the volume of `rows`' i-th row; rows are images and labels."""
    cases = [case_id(row.subject, row.session) for row in rows.itertuples()]
    images = rows.kind == "image"
    return {
        "version": VERSION,
        "counts": {"subjects": int(rows.subject.nunique()), "cases": len(set(cases)), "sites": int(rows.site.nunique()),
                   "images": int(images.sum()), "labels": int((~images).sum()), "refused": len(quarantine)},
        "modalities": {name: _modality(rows.loc[group.index], [facts[index] for index in group.index])
                       for name, group in rows[images].groupby("modality")},
        "sites": {site: _site(group) for site, group in rows.groupby("site")},
        "combinations": _combinations(rows, cases),
        "labels": _labels(rows, facts),
        "refused": _counted(quarantine.code),
    }


def spacings(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Spacing within slices (the coarser of the two axes) and across slices of each row, mm."""
    all_axes = [[float(value) for value in text.split("x")] for text in rows.spacing_mm]
    across = [axes.pop(int(axis)) for axes, axis in zip(all_axes, rows.slice_axis, strict=True)]
    return np.array([max(axes) for axes in all_axes]), np.array(across)


def _modality(rows: pd.DataFrame, facts: Facts) -> dict[str, object]:
    within, across = spacings(rows)
    return {
        "images": len(rows), "subjects": int(rows.subject.nunique()), "sites": sorted(rows.site.unique()),
        "shapes": _counted(rows["shape"]), "in_plane_mm": _spread(within), "slice_mm": _spread(across),
        "intensity": {name: _spread([fact[name] for fact in facts]) for name in INTENSITIES},
        **_scanners(rows), "rules": _counted(rows.rule),
    }


def _site(rows: pd.DataFrame) -> dict[str, object]:
    images, labels = rows[rows.kind == "image"], rows[rows.kind == "label"]
    return {"subjects": int(rows.subject.nunique()), "cases": len(rows.groupby(["subject", "session"])), "images": len(images),
            "labelled_cases": len(labels.groupby(["subject", "session"])), "modalities": _counted(images.modality), **_scanners(images)}


def _scanners(rows: pd.DataFrame) -> dict[str, object]:
    tesla = rows.field_strength_t.dropna().map("{:g}".format)
    return {"manufacturers": _counted(rows.manufacturer), "scanners": _counted(rows.scanner), "field_strengths_t": _counted(tesla)}


def _combinations(rows: pd.DataFrame, cases: Sequence[str]) -> list[dict[str, object]]:
    """Which modalities cases have together, the most frequent first."""
    everything = set(rows[rows.kind == "image"].modality)
    of_case: dict[str, set[str]] = {case: set() for case in cases}
    labelled = {case for case, kind in zip(cases, rows.kind, strict=True) if kind == "label"}
    for case, kind, modality in zip(cases, rows.kind, rows.modality, strict=True):
        if kind == "image":
            of_case[case].add(modality)
    sets = Counter(frozenset(found) for found in of_case.values())
    with_label = Counter(frozenset(found) for case, found in of_case.items() if case in labelled)
    return [{"modalities": sorted(found), "missing": sorted(everything - found), "cases": count, "labelled_cases": with_label[found]}
            for found, count in sorted(sets.items(), key=lambda item: (-item[1], sorted(item[0])))]


def _labels(rows: pd.DataFrame, facts: Facts) -> dict[str, object]:
    """Each segment's volume over the labelled cases that have it, and how many of them lack it."""
    found = [fact["volumes_ml"] for fact, kind in zip(facts, rows.kind, strict=True) if kind == "label"]
    names = sorted({name for volumes in found for name in volumes})
    present = {name: [volumes[name] for volumes in found if volumes.get(name, 0) > 0] for name in names}
    return {name: {"cases": len(volumes), "absent": len(found) - len(volumes), "volume_ml": _spread(volumes)} for name, volumes in present.items()}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Range, 10th and 90th percentile and median; all None of nothing."""
    names = {"min": 0, "p10": 10, "median": 50, "p90": 90, "max": 100}
    if len(values) == 0:
        return dict.fromkeys(names)
    return {name: round(float(value), 6) for name, value in zip(names, np.percentile(values, list(names.values())), strict=True)}


def _counted(values: pd.Series) -> dict[str, int]:
    """How often each value occurs; '' where a header does not say."""
    return {str(value): int(count) for value, count in sorted(Counter(values).items())}
