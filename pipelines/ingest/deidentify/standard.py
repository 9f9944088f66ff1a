"""The Basic Application Level Confidentiality Profile as a table: what DICOM PS3.15 Table E.1-1 asks for each attribute.

`profile.tsv` beside this file holds it: `tag`, `keyword`, `action` (edition 2026c, as dicom-anonymizer 2.1.0 lists it), `action_2020` (as Innolitics'
JSON of the standard lists it; empty where the attribute came later) and `dates`, which is C where the option Retain Longitudinal Temporal
Information with Modified Dates may keep the attribute. Make it again with

    pip install --no-deps dicom-anonymizer==2.1.0
    python -m pipelines.ingest.deidentify.standard confidentiality_profile_attributes.json > profile.tsv

The JSON is `standard/confidentiality_profile_attributes.json` of github.com/innolitics/dicom-standard (MIT license; also in the wheel dicom-standard
0.1.0). Repeating groups (50xx, 60xx) and private attributes, which are all removed, are not in the table.
"""

from __future__ import annotations

import csv
import functools
import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("profile.tsv")
COLUMNS = ["tag", "keyword", "action", "action_2020", "dates"]
#: Dates and times that describe a person, not an examination: no option keeps them.
OF_A_PERSON = ("PatientBirth", "PatientDeath", "PersonBirth", "LastMenstrualDate")
_LISTS = {"D": "D_TAGS", "Z": "Z_TAGS", "X": "X_TAGS", "U": "U_TAGS", "Z/D": "Z_D_TAGS", "X/Z": "X_Z_TAGS", "X/D": "X_D_TAGS", "X/Z/D": "X_Z_D_TAGS",
          "X/Z/U*": "X_Z_U_STAR_TAGS"}


@dataclass(frozen=True)
class Asked:
    """What the standard asks for one attribute: D dummy, Z empty, X remove, U new UID, or the weakest of several that conformance allows."""

    action: str
    dates: bool


@functools.cache
def profile() -> dict[int, Asked]:
    """Tag -> what is asked."""
    with TABLE.open(newline="") as handle:
        return {int(row["tag"], 16): Asked(row["action"], row["dates"] == "C") for row in csv.DictReader(handle, delimiter="\t")}


def make_table(attributes: Path) -> list[dict[str, str]]:
    """The rows of profile.tsv from Innolitics' JSON and dicom-anonymizer's lists."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag

    old = {row["id"]: row for row in json.loads(attributes.read_text()) if "x" not in row["id"].lower() and len(row["id"]) == 8}
    lists = importlib.import_module("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    new = {f"{tag[0]:04x}{tag[1]:04x}": action for action, name in _LISTS.items() for tag in getattr(lists, name) if len(tag) == 2}
    rows = []
    for tag in sorted(old | new):
        number = int(tag, 16)
        keyword = keyword_for_tag(number)
        timed = dictionary_has_tag(number) and dictionary_VR(number) in ("DA", "DT", "TM") and not keyword.startswith(OF_A_PERSON)
        dates = old[tag].get("rtnLongModifDatesOpt", "") if tag in old else "C" if timed else ""
        action = old.get(tag, {}).get("basicProfile", "")
        rows.append(dict(zip(COLUMNS, [tag, keyword, new.get(tag, action), action, dates], strict=True)))
    return rows


if __name__ == "__main__":
    writer = csv.DictWriter(sys.stdout, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(make_table(Path(sys.argv[1])))
