"""Coded concepts: a code stays only if the standard's context groups have it, and then with the standard's words for it."""

from __future__ import annotations

import functools

from pipelines.ingest.scaling import UNITS

KEYWORDS = frozenset(["CodeValue", "LongCodeValue", "URNCodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning"])
UNKNOWN = ("0", "99SEMIFLOW", "removed")


@functools.cache
def _known() -> dict[tuple[str, str], str]:
    """(scheme, value) -> meaning: pydicom's copy of PS3.16, also by the older SNOMED-RT values that it maps."""
    from pydicom.sr._concepts_dict import concepts
    from pydicom.sr._snomed_dict import mapping

    known = {(scheme, value): meaning for scheme, by_keyword in concepts.items() for values in by_keyword.values()
             for value, (meaning, *_) in values.items()}
    for old, value in mapping["SRT"].items():
        if (meaning := known.get(("SCT", value))) is not None:
            known["SRT", old] = known["99SDM", old] = meaning
    known |= {("UCUM", unit): unit for unit in UNITS}
    return known


def clean(dataset, cleaned) -> bool:
    """Write the code of `dataset` to `cleaned`; whether it was one that nobody knows and a blank stands for it now."""
    value, scheme = (_text(dataset, name) for name in ("CodeValue", "CodingSchemeDesignator"))
    meaning = _known().get((scheme, value))
    blank = meaning is None
    plain = UNKNOWN if blank else (value, scheme, meaning.encode("ascii", "ignore").decode()[:64])
    cleaned.CodeValue, cleaned.CodingSchemeDesignator, cleaned.CodeMeaning = plain
    return blank


def _text(dataset, name: str) -> str:
    try:
        return str(dataset.get(name, "")).strip()
    except Exception:  # pydicom raises what broken bytes make it raise
        return ""
