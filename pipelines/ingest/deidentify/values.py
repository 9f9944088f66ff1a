"""What may stay of one value: known words, numbers, moved dates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from pipelines.ingest.deidentify.terms import DIMENSIONS, TERMS, TRACERS
from pipelines.ingest.marks import CANON_COMMENT, PHILIPS_COMPONENT, SIEMENS_SEQUENCE
from pipelines.ingest.rules import NO_AGENT, model, vendor
from pipelines.ingest.scaling import UNITS
from pipelines.ingest.vocabulary import SEGMENT_WORDS, SERIES_WORDS

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
OFFSET = re.compile(r"[+-]\d{4}")
TIME = re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")
DATE_LENGTH = 8
MAX_CODE = 16  # characters of a coded string or a number as text
OTHER = "OTHER"
#: Free text of which words may stay: keyword -> those words.
WORDS = {"SeriesDescription": SERIES_WORDS, "ProtocolName": SERIES_WORDS, "StudyDescription": SERIES_WORDS, "SegmentLabel": SEGMENT_WORDS,
         "ROIName": SEGMENT_WORDS, "Radiopharmaceutical": TRACERS, "DimensionDescriptionLabel": DIMENSIONS}
#: Texts that stay where the whole of them has a known form.
FORMS = {"SequenceName": SIEMENS_SEQUENCE, "ImageComments": CANON_COMMENT, "StackID": re.compile(r"\d{1,4}")}
CLEANED = frozenset([*WORDS, *FORMS, "ContrastBolusAgent", "RescaleType", "Manufacturer", "ManufacturerModelName", "MagneticFieldStrength"])
NEEDED = {"SegmentLabel": "segment", "ROIName": "roi"}  # where no word may stay, conformance still asks for one


def described(keyword: str, value, words: frozenset[str]):
    """What stays of a description; `words` are the project's own beside the vocabularies'."""
    text = " ".join(str(item) for item in as_list(value))
    if keyword in WORDS:
        allowed = WORDS[keyword] | words
        pieces = re.findall(r"[^\W_]+", text)
        return " ".join(piece for piece in pieces if piece.casefold() in allowed)[:64] or NEEDED.get(keyword, "")
    if keyword in FORMS:
        return text.strip() if FORMS[keyword].fullmatch(text.strip()) else None
    if keyword == "ContrastBolusAgent":
        return "" if not text.strip() else text.strip().upper() if text.strip().casefold() in NO_AGENT else "agent"
    if keyword == "RescaleType":
        return text.strip() if text.strip() in UNITS or text.strip() in TERMS else ""
    if keyword in ("Manufacturer", "ManufacturerModelName"):
        return vendor(text) if keyword == "Manufacturer" else model(text)
    return numbers(value)


def terms(value) -> str | list[str]:
    """Coded strings: the known ones; of several values an unknown one becomes OTHER, because the place of the others says what they mean."""
    texts = [str(item).strip() for item in as_list(value)]
    known = [text if text in TERMS or PHILIPS_COMPONENT.fullmatch(text) else "" for text in texts]
    return known[0] if len(known) == 1 else [text or OTHER for text in known]


def numbers(value) -> str | list[str]:
    """Numbers as text: those that are numbers; one that is not empties the element."""
    texts = [str(getattr(item, "original_string", item)).strip() for item in as_list(value)]
    good = all(len(text) <= MAX_CODE and NUMBER.fullmatch(text) for text in texts)
    return "" if not good else texts[0] if len(texts) == 1 else texts


def are_numbers(value) -> bool:
    return all(isinstance(item, (int, float)) for item in as_list(value))


def moved(keyword: str, vr: str, value, days: int) -> str | list[str] | None:
    """A date `days` earlier, a time as it is; None for what is neither."""
    texts = [str(item).strip() for item in as_list(value)]
    if keyword == "TimezoneOffsetFromUTC":
        return texts[0] if len(texts) == 1 and OFFSET.fullmatch(texts[0]) else None
    done = [_moved(vr, text, days) for text in texts]
    return None if not done or None in done else done[0] if len(done) == 1 else done


def _moved(vr: str, text: str, days: int) -> str | None:
    if vr == "TM":
        return text if TIME.fullmatch(text.replace(":", "")) else None
    if vr == "DA":
        return _earlier(text.replace(".", ""), days)
    date, rest = text[:DATE_LENGTH], text[DATE_LENGTH:]
    clock, zone = re.fullmatch(r"([\d.]*)(.*)", rest).groups()
    if vr != "DT" or (clock and not TIME.fullmatch(clock)) or (zone and not OFFSET.fullmatch(zone)):
        return None
    return None if (day := _earlier(date, days)) is None else day + rest


def _earlier(date: str, days: int) -> str | None:
    try:
        return (datetime.strptime(date, "%Y%m%d") - timedelta(days=days)).strftime("%Y%m%d").rjust(DATE_LENGTH, "0")
    except (ValueError, OverflowError):  # a year or a month alone cannot be moved by days
        return None


def as_list(value) -> Sequence:
    """The values of an element, be it one or several; none for an empty one."""
    from pydicom.multival import MultiValue

    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]
