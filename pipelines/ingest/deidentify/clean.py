"""One data set cleaned, element by element and down all sequences.

What Table E.1-1 of PS3.15 removes, is removed; beyond it, text stays only where it is known words, numbers only where they are numbers, and elements
only where the standard knows them. So an attribute that the table forgot, or that a scanner misuses, cannot carry a name out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.ingest.deidentify import codes, values
from pipelines.ingest.deidentify.private import kept
from pipelines.ingest.deidentify.standard import profile

DEVICE = frozenset(["Manufacturer", "ManufacturerModelName", "MagneticFieldStrength"])
#: Never read from a source: the marks of this de-identification, written afresh, and what only the original encoding needs.
OURS = frozenset(["PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified",
                  "SpecificCharacterSet"])
BULK = frozenset(["PixelData", "FloatPixelData", "DoubleFloatPixelData", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
                  "BluePaletteColorLookupTableData", "LUTData", "ContourData", "VectorGridData"])
BINARY_NUMBERS = frozenset(["US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT"])
BYTES = frozenset(["OB", "OW", "OF", "OD", "OL", "OV", "UN"])
FIRST_GROUP, GRAPHICS = 0x0008, (0x5000, 0x6000)  # below are commands and file meta; curves and overlays
TIMES = frozenset(["DA", "DT", "TM"])
REMOVED = "removed"
#: A value without meaning, where conformance asks for one.
DUMMIES = {"DA": "19000101", "DT": "19000101000000", "TM": "000000", "AS": "000Y", "CS": "REMOVED", "UR": "http://removed.invalid", "DS": "0",
           "IS": "0"}


@dataclass
class Cleaner:
    """How the data sets of one patient are cleaned. `counts` is what was done: (action, keyword) -> times."""

    uid: Callable[[str], str]
    patient: str  # the pseudonym
    shift: int | None  # days into the past; None: dates go
    device: bool
    weight: bool  # whether PatientWeight stays
    words: frozenset[str] = frozenset()
    csa: bool = False
    counts: Counter = field(default_factory=Counter)

    def __call__(self, dataset):
        """A cleaned copy; `dataset` stays as it is."""
        from pydicom.dataset import Dataset

        cleaned = Dataset()
        for tag in list(dataset.keys()):
            if tag.is_private:
                continue
            action = self._element(dataset, tag, cleaned)
            if action != "keep":
                self.counts[action, _name(tag)] += 1
        if "CodeMeaning" in dataset or "CodingSchemeDesignator" in dataset:
            self.counts["replace" if codes.clean(dataset, cleaned) else "clean", "CodeValue"] += 1
        self._private(dataset, cleaned)
        return cleaned

    def _element(self, dataset, tag, cleaned) -> str:
        """Put what may stay of one element into `cleaned`, and say what was done."""
        from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag

        keyword = keyword_for_tag(tag)
        known = tag.group >= FIRST_GROUP and tag.element and dictionary_has_tag(tag) and keyword
        if not known or tag.group & 0xFF00 in GRAPHICS or keyword in OURS:
            return "remove"
        if keyword in codes.KEYWORDS:
            return "keep"  # decided for the whole code
        vr = dictionary_VR(tag)
        if vr == "SQ":
            return self._sequence(dataset, tag, cleaned)
        try:
            element = dataset[tag]
            value = element.value
        except Exception:  # pydicom raises what broken bytes make it raise
            return "remove"
        if vr not in ("OB", "OW") and " or " in vr:
            vr = element.VR if element.VR in vr.split(" or ") else vr.split()[0]
        kept_value = self._value(keyword, tag, vr, value)
        if kept_value is None:
            return "remove"
        return self._put(cleaned, tag, vr, kept_value, value)

    def _put(self, cleaned, tag, vr: str, kept_value, value) -> str:
        cleaned.add_new(tag, vr, kept_value)
        if kept_value == value or vr in BYTES:
            return "keep"
        return "empty" if kept_value in ("", []) else "replace"

    def _value(self, keyword: str, tag, vr: str, value):
        """What stays of a value; None: the element goes."""
        if keyword in ("PatientID", "PatientName"):
            return self.patient
        if keyword == "PatientWeight" and self.weight:
            return values.numbers(value)
        if keyword in DEVICE and not self.device:
            return None
        if keyword in values.CLEANED:
            return values.described(keyword, value, self.words)
        return self._by_table(keyword, tag, vr, value)

    def _by_table(self, keyword: str, tag, vr: str, value):
        asked = profile().get(int(tag))
        if self.shift is not None and (asked.dates if asked else vr in TIMES):
            moved = values.moved(keyword, vr, value, self.shift)
            if moved is not None:
                return moved
        if asked is not None and asked.action != "U":
            return self._asked(asked.action, vr, value)
        return self._unlisted(keyword, vr, value)

    def _asked(self, action: str, vr: str, value):
        """The strictest of the actions that keeps the object conformant, whatever type the attribute has in it."""
        if vr == "UI" and action != "X":
            return self._uids(value)
        if action == "X":
            return None
        if "D" not in action:
            return b"" if vr in BYTES else ""
        return b"\0\0" if vr in BYTES else DUMMIES.get(vr, 0 if vr in BINARY_NUMBERS else REMOVED)

    def _unlisted(self, keyword: str, vr: str, value):
        """Attributes that the table does not know: only what by its kind cannot name anybody."""
        if vr == "UI":
            return self._uids(value)
        if vr == "CS":
            return values.terms(value)
        if vr in ("DS", "IS"):
            return values.numbers(value)
        if vr in BINARY_NUMBERS:
            return value if values.are_numbers(value) else None
        return value if keyword in BULK else None

    def _uids(self, value):
        from pydicom.uid import UID_dictionary

        def one(text: str) -> str:
            return text if text in UID_dictionary or not text else self.uid(text)

        texts = [str(item).strip("\0 ") for item in values.as_list(value)]
        return one(texts[0]) if len(texts) == 1 else [one(text) for text in texts]

    def _sequence(self, dataset, tag, cleaned) -> str:
        from pydicom.sequence import Sequence

        from pipelines.ingest.elements import items

        asked = profile().get(int(tag))
        if asked is not None and asked.action == "X":
            return "remove"
        if asked is not None and "U" not in asked.action:
            cleaned.add_new(tag, "SQ", Sequence())
            return "empty"
        cleaned.add_new(tag, "SQ", Sequence([self(item) for item in items(dataset, tag)]))
        return "keep"

    def _private(self, dataset, cleaned) -> None:
        from pydicom.sequence import Sequence

        private = sum(tag.is_private for tag in dataset.keys())  # noqa: SIM118 -- a data set runs over its elements, and converts them all
        if not private:
            return
        stay = kept(dataset, self.csa)
        for (group, creator, element), vr, value in stay:
            block = cleaned.private_block(group, creator, create=True)
            block.add_new(element, vr, Sequence([self(item) for item in value]) if vr == "SQ" else value)
        self.counts["remove", "private"] += private - len(stay)


def _name(tag) -> str:
    """A keyword, or the bare number of what the standard does not know."""
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag) or re.sub(r"[^0-9a-f]", "", f"{int(tag):08x}")
