"""Which modality a series is, decided by the header rules of params.yaml; and what of the header may be told.

Free text in a header (descriptions, models) can hold anything, also a name. So it leaves only as words of a fixed vocabulary.
"""

from __future__ import annotations

import re

from pipelines.errors import Refused
from pipelines.ingest.series import LABEL_MAP_SEGMENTATION, Series
from pipelines.ingest.split import Part
from pipelines.ingest.vocabulary import MODEL_WORDS, SERIES_WORDS
from pipelines.params import Deidentify, Rule

VENDORS = ("Siemens", "GE", "Philips", "Canon", "Toshiba", "Hitachi", "United Imaging", "Fujifilm", "Bruker", "Hologic", "Esaote", "Varian", "CTI")
#: How headers spell a vendor, where that is not the vendor's name itself.
SPELLINGS = {r"\bge\b|general electric|gems": "GE", r"\buih\b": "United Imaging"}
#: Classes of the standard that pydicom has no name for yet.
NEWER_CLASSES = {LABEL_MAP_SEGMENTATION: "Label Map Segmentation Storage"}
NO_AGENT = frozenset(["no", "none", "n", "0", "without", "nein", "kein"])


def classify(series: Series, rules: list[Rule], part: Part | None = None) -> Rule:
    """The first rule of which every condition holds for a series, or for one of its volumes. Raises `Refused` (code `unknown-modality`) for none."""
    for rule in rules:
        if _holds(rule, series, part):
            return rule
    raise Refused("unknown-modality", f"no rule fits ({evidence(series, part)})", "add a rule for such series to params ingest.rules")


def _holds(rule: Rule, series: Series, part: Part | None) -> bool:
    header, b_value = series.first, part.marks.get("b_value") if part else None
    checks = [
        rule.description is None or re.search(rule.description, header.text("SeriesDescription"), re.IGNORECASE),
        rule.dicom_modality is None or header.text("Modality") in rule.dicom_modality,
        rule.sop_class is None or sop_class(series) in rule.sop_class,
        rule.contrast_agent is None or has_agent(series) == rule.contrast_agent,
        rule.volume is None or (part is not None and re.search(rule.volume, part.name)),
        rule.b_value is None or _within(b_value, rule.b_value),
        *(_within(value, limits) for value, limits in zip(_times(series, part), (rule.tr_ms, rule.te_ms, rule.ti_ms), strict=True) if limits),
    ]
    return all(checks)


def _times(series: Series, part: Part | None) -> tuple[float | None, float | None, float | None]:
    """Repetition, echo and inversion time in ms, the volume's own where it has them."""
    header, marks = series.first, part.marks if part else {}
    return (header.number("RepetitionTime"), marks.get("echo", header.number("EchoTime")), marks.get("inversion", header.number("InversionTime")))


def _within(value: float | None, limits: tuple[float, float]) -> bool:
    return value is not None and limits[0] <= value <= limits[1]


def sop_class(series: Series) -> str:
    """The series' SOP class as pydicom spells it ('MR Image Storage'); 'private' where the standard has no such class."""
    from pydicom.uid import UID

    uid = UID(series.first.text("SOPClassUID"))
    return NEWER_CLASSES.get(uid) or (uid.name if uid.name != str(uid) else "private")


def has_agent(series: Series) -> bool:
    """Whether the header names a contrast agent."""
    agent = series.first.text("ContrastBolusAgent").casefold()
    return bool(agent) and agent not in NO_AGENT


def known_words(text: str) -> str:
    """The words of a description that say what the image is, '…' for each other run of words."""
    words = [word if word in SERIES_WORDS else "…" for word in re.findall(r"[^\W_]+", text.casefold())]
    return " ".join(word for index, word in enumerate(words) if word != "…" or index == 0 or words[index - 1] != "…")


def evidence(series: Series, part: Part | None = None) -> str:
    """What the rules looked at, without anything that could identify."""
    header = series.first
    named = zip(("TR", "TE", "TI"), _times(series, part), strict=True)
    times = [f"{name} {value:g} ms" if value is not None else f"{name} none" for name, value in named]
    modality = header.text("Modality") if re.fullmatch(r"[A-Z]{2,10}", header.text("Modality")) else "no modality"
    return ", ".join([f"words '{known_words(header.text('SeriesDescription'))}'", modality, sop_class(series), *times,
                      f"contrast agent {'yes' if has_agent(series) else 'no'}", f"{len(series.headers)} file(s)",
                      *([f"volume {part.name}"] if part and part.name else [])])


def facts(series: Series, part: Part) -> dict[str, object]:
    """The header facts that go with an image, by allow-list, named as the manifest's columns."""
    header = series.first
    tr_ms, te_ms, ti_ms = _times(series, part)
    return {"manufacturer": vendor(header.text("Manufacturer")), "scanner": model(header.text("ManufacturerModelName")),
            "field_strength_t": _tesla(header.number("MagneticFieldStrength")), "tr_ms": tr_ms, "te_ms": te_ms, "ti_ms": ti_ms,
            "slice_thickness_mm": header.number("SliceThickness")}


def without_device(facts: dict[str, object], options: Deidentify) -> dict[str, object]:
    """Header facts as params ingest.deidentify.device has them: with the scanner, or without."""
    return facts if options.device == "keep" else {**facts, "manufacturer": "", "scanner": "", "field_strength_t": None}


def vendor(text: str) -> str:
    """A scanner's maker under one spelling; 'other' for one not known, empty for none."""
    folded = text.casefold()
    for pattern, name in SPELLINGS.items():
        if re.search(pattern, folded):
            return name
    return next((name for name in VENDORS if re.search(rf"\b{re.escape(name.casefold())}", folded)), "other" if folded else "")


def model(text: str) -> str:
    """A scanner's model: those of its words that models are made of, because people name scanners after people too."""
    return " ".join(word for word in re.findall(r"[A-Za-z0-9.+-]+", text) if word.casefold() in MODEL_WORDS)


def _tesla(value: float | None) -> float | None:
    """Field strength in tesla; some headers give gauss (15000)."""
    return value / 1e4 if value is not None and value > 100 else value
