"""What the headers of a site's images say, worded as a radiologist would."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pandas as pd

#: Words of a manufacturer's name that do not tell one from another.
COMPANY_WORDS = {"ag", "co", "company", "corp", "corporation", "gmbh", "healthcare", "healthineers", "inc", "ltd", "medical", "systems"}
#: What de-identification and converters write where they do not tell.
NO_VENDOR = {"other", "unknown", "none", "anonymous", "anonymized", "n/a"}
#: Below this field strength in tesla scanners are not named in halves.
HALF_STEPS_FROM = 0.75


@dataclass(frozen=True)
class Facts:
    """Header facts of one modality at one site, each empty where the headers are silent or differ in all cases."""

    scanner: str = ""  # "3 T Siemens"
    sequence: str = ""  # "TR 9000 ms, TE 120 ms, TI 2500 ms"


def facts_of(images: pd.DataFrame, site: str, modality: str) -> Facts:
    """Facts of `modality` at `site` from the manifest's image rows: the most common values.

    Where the site has no image of this modality, its scanner is that of its other images, and no sequence is known.
    """
    here = images[images.site == site]
    own = here[here.modality == modality]
    return Facts(scanner(own if len(own) else here), sequence(own))


def scanner(rows: pd.DataFrame) -> str:
    """Field strength and vendor, the most common pair: '3 T Siemens'. Only one of the two where the other is unknown."""
    pairs = [" ".join(filter(None, [tesla(row.field_strength_t), vendor(row.manufacturer)])) for row in rows.itertuples()]
    return most_common(pairs)


def sequence(rows: pd.DataFrame) -> str:
    """Repetition, echo and inversion time, the most common of each: 'TR 9000 ms, TE 120 ms, TI 2500 ms'."""
    times = {name: most_common([f"{value:.0f}" for value in rows[column].dropna()])
             for name, column in (("TR", "tr_ms"), ("TE", "te_ms"), ("TI", "ti_ms"))}
    return ", ".join(f"{name} {value} ms" for name, value in times.items() if value)


def most_common(values: list[str]) -> str:
    """The most common value that is not empty, the first in order of the alphabet among equals; empty without any."""
    counts = Counter(value for value in values if value)
    return min(counts, key=lambda value: (-counts[value], value)) if counts else ""


def tesla(field_strength: float) -> str:
    """A field strength as scanners are named by it: a header's 2.8936 is '3 T'."""
    if pd.isna(field_strength) or field_strength <= 0:
        return ""
    return f"{round(field_strength * 2) / 2 if field_strength >= HALF_STEPS_FROM else round(field_strength, 2):g} T"


def vendor(manufacturer: str) -> str:
    """A manufacturer's everyday name: 'SIEMENS' and 'Siemens Healthineers' are 'Siemens', 'GE MEDICAL SYSTEMS' is 'GE'."""
    words = [word.strip(".,") for word in manufacturer.split()]
    if manufacturer.strip().lower() in NO_VENDOR:
        return ""
    return " ".join(word.capitalize() if len(word) > 3 else word for word in words if word.lower() not in COMPANY_WORDS)
