"""Header facts that no earlier case had: another scanner, another protocol. They say why images differ, or that they soon may."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

DEVICE = ("manufacturer", "scanner", "field_strength_t")
TIMING = ("tr_ms", "te_ms", "ti_ms", "slice_thickness_mm")
#: A timing counts as known this far outside the range of earlier ones, as a share of them: scanners adjust TR and TE a little to each patient.
TOLERANCE = 0.1


def new_facts(known: pd.DataFrame, recent: pd.DataFrame) -> list[dict[str, object]]:
    """What the images of `recent` (rows of a manifest) say that those of `known` never did, one entry a fact (and a modality, for timings).

    Entries: fact, modality ('' for a device), new (values, sorted), known (values, or [lowest, highest]), subjects (how many have it).
    """
    known, recent, found = known[known.kind == "image"], recent[recent.kind == "image"], []
    for fact in DEVICE:
        before, now = _values(known[fact]), recent[recent[fact].notna() & (recent[fact] != "")]
        other = now[~now[fact].isin(before)]
        if before and len(other):
            found.append(_entry(fact, "", _values(other[fact]), before, other))
    for fact in TIMING:
        for modality, rows in recent[recent[fact].notna()].groupby("modality", sort=True):
            before = known[(known.modality == modality) & known[fact].notna()][fact].astype(float)
            if before.empty:
                continue
            values = rows[fact].astype(float)
            other = rows[(values < before.min() * (1 - TOLERANCE)) | (values > before.max() * (1 + TOLERANCE))]
            if len(other):
                found.append(_entry(fact, str(modality), _values(other[fact]), [float(before.min()), float(before.max())], other))
    return found


def _values(column: pd.Series) -> list:
    return sorted({value for value in column.dropna().tolist() if value != ""})


def _entry(fact: str, modality: str, new: list, known: list, rows: pd.DataFrame) -> dict[str, object]:
    return {"fact": fact, "modality": modality, "new": new, "known": known, "subjects": int(rows.subject.nunique())}
