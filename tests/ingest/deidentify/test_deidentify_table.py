"""Every attribute of PS3.15 Table E.1-1 is handled at least as strictly as the standard asks, at the top and inside sequences."""

from __future__ import annotations

import csv
import io

import pytest
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from pipelines.ingest.deidentify.standard import TABLE, profile

#: A value of each kind that could be somebody's; numbers and dates are looked up as text in what was read again.
VALUES = {"AE": "QUETZAL", "AS": "043Y", "CS": "QUETZAL", "DA": "19310217", "DT": "19310217091113", "TM": "091113.777", "DS": "8675.309",
          "IS": "8675309", "LO": "QUETZAL",
          "LT": "QUETZAL", "PN": "QUETZAL", "SH": "QUETZAL", "ST": "QUETZAL", "UC": "QUETZAL", "UR": "QUETZAL", "UT": "QUETZAL",
          "UI": "1.2.86753097", "OB": b"QUETZAL!", "UN": b"QUETZAL!", "OW": b"QUETZAL!", "US": 54321, "FD": 8675.309, "UL": 86753097}
DUMMY = {"PatientID", "PatientName"}  # the pseudonym
#: Cleaned rather than removed (Clean Descriptors), with words that no name is among.
CLEANED = {"SeriesDescription", "StudyDescription", "ProtocolName", "ROIName", "ContrastBolusAgent", "ImageComments", "SegmentLabel"}


def rows() -> list[dict[str, str]]:
    with TABLE.open(newline="") as handle:
        return [row for row in csv.DictReader(handle, delimiter="\t") if dictionary_has_tag(int(row["tag"], 16))]


def planted(row) -> Dataset:
    tag = Tag(int(row["tag"], 16))
    held, vr = Dataset(), dictionary_VR(tag)
    if vr == "SQ":
        inner = Dataset()
        inner.PatientComments, inner.ReferencedSOPInstanceUID, inner.DerivationDescription = "QUETZAL", "1.2.86753097", "QUETZAL"
        held.add_new(tag, vr, [inner])
    else:
        held.add_new(tag, vr, VALUES[vr])
    return held


@pytest.fixture(scope="module")
def table_images(make_series):
    """One image that holds every attribute of the table, once at the top and once inside a sequence that stays."""
    import numpy as np

    image = make_series(np.arange(56).reshape(1, 7, 8)).datasets()[0]
    nested = Dataset()
    for row in rows():
        for element in planted(row):
            if element.tag.group >= 8:
                nested.add(element)
                if element.keyword not in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "BurnedInAnnotation"):
                    image[element.tag] = element
    outer = Dataset()
    outer.MRTimingAndRelatedParametersSequence = [nested]
    image.SharedFunctionalGroupsSequence = [outer]
    return image


@pytest.mark.parametrize("where", ["top", "nested"])
@pytest.mark.parametrize("dates", ["remove", "shift"])
def test_every_attribute_of_the_table(table_images, apply, where, dates):
    cleaned = apply(table_images, dates=dates)
    if where == "nested":
        cleaned = cleaned.SharedFunctionalGroupsSequence[0].MRTimingAndRelatedParametersSequence[0]
    wrong = []
    for row in rows():
        tag, vr = Tag(int(row["tag"], 16)), dictionary_VR(int(row["tag"], 16))
        keyword = keyword_for_tag(tag)
        if tag.group < 8 or tag not in cleaned:
            continue
        kept = cleaned[tag]
        by_option = (dates == "shift" and row["dates"] == "C") or keyword in CLEANED
        strictest = {row["action"], row["action_2020"]} - {""}
        if strictest == {"X"} and not by_option and keyword not in ("DeidentificationMethod",):
            wrong.append((keyword, "is there"))
        elif vr == "SQ":
            if any("PatientComments" in item or "1.2.86753097" in str(item) or "QUETZAL" in str(item) for item in kept.value):
                wrong.append((keyword, "holds an identifier"))
        elif str(VALUES[vr]) in str(kept.value) and not (vr == "TM" and by_option):
            wrong.append((keyword, "is unchanged"))
        elif strictest == {"Z"} and str(kept.value) not in ("", "[]") and keyword not in DUMMY | CLEANED and not by_option:
            wrong.append((keyword, "is not empty"))
    assert not wrong


def test_table_is_whole():
    asked = profile()
    assert len(asked) > 640  # 2026c has 655 rows, three of which are repeating groups
    assert asked[0x00100020].action == "Z/D"
    assert asked[0x00081030].action == "X"
    assert not asked[0x00100030].dates  # a birth date is no date of an examination
    assert asked[0x00080020].dates


def test_nothing_of_the_planted_values_is_in_the_bytes(table_images, apply):
    for dates in ("remove", "shift"):
        cleaned = apply(table_images, dates=dates)
        buffer = io.BytesIO()
        cleaned.save_as(buffer)
        content = buffer.getvalue()
        assert b"QUETZAL" not in content
        assert b"1.2.86753097" not in content
        assert b"19310217" not in content
