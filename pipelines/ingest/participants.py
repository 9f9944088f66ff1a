"""participants.tsv: the subjects that came through, with what a source's own table says of them that does not identify."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.outputs import staged_file

if TYPE_CHECKING:
    import pandas as pd

DENIED = re.compile(r"name|date|birth|dob|\bid\b|_id\b|mrn|ssn|phone|mail|address|zip|postal|city|accession|number|initial(s|es)?$|time|comment|note",
                    re.IGNORECASE)
#: Text columns that may stay; a column of numbers stays unless denied.
ALLOWED_TEXT = re.compile(r"^(sex|gender|group|handedness|diagnosis|missing|laterality|\w*(histolog|grade|location|status|subtype|type|stage))\w*$",
                          re.IGNORECASE)
MAX_CATEGORIES = 20  # a text column with more values than this, or nearly as many as subjects, is free text
OLDEST = 90  # ages above are identifying (HIPAA safe harbor, 45 CFR 164.514(b)(2)(i)(C))


def write_participants(path: Path, subjects: pd.DataFrame, tables: Sequence[Path]) -> None:
    """Write one row a subject: `subjects` has participant_id, site and source_id (the name that the source's `tables` use)."""
    import pandas as pd

    merged = subjects
    for table in tables:
        try:
            columns = pd.read_csv(table, sep="\t", dtype=str, na_values=["n/a"], keep_default_na=True)
        except (ValueError, OSError):
            continue
        if "participant_id" not in columns:
            continue
        columns["source_id"] = columns.pop("participant_id").str.removeprefix("sub-").str.replace(r"[^A-Za-z0-9]", "", regex=True)
        kept = [name for name in columns if name not in merged and _may_stay(name, columns[name])]
        merged = merged.merge(columns[["source_id", *kept]].drop_duplicates("source_id"), on="source_id", how="left")
    merged = merged.drop(columns="source_id").sort_values("participant_id")
    for name in merged:
        if re.search(r"(^|_)age(_|$)", name, re.IGNORECASE):
            ages = pd.to_numeric(merged[name], errors="coerce")
            merged[name] = merged[name].where(~(ages >= OLDEST), str(OLDEST))
    with staged_file(path) as temporary:
        merged.to_csv(temporary, sep="\t", index=False, na_rep="n/a")


def _may_stay(name: str, values: pd.Series) -> bool:
    import pandas as pd

    if DENIED.search(name) and not re.search(r"(^|_)age(_|$)", name, re.IGNORECASE):
        return False
    known = values.dropna()
    if pd.to_numeric(known, errors="coerce").notna().all():
        return True
    return bool(ALLOWED_TEXT.match(name)) and known.nunique() <= MAX_CATEGORIES
