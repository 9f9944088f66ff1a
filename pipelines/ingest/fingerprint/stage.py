"""The fingerprint of a folder: read what no job has described yet, count, warn, write."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.cohort import QUARANTINE, read_manifest, read_quarantine
from pipelines.errors import DataError
from pipelines.ingest.fingerprint.describe import describe, describe_label
from pipelines.outputs import write_json

if TYPE_CHECKING:
    import pandas as pd

FILE = "fingerprint.json"
THREADS = 4  # unpacking and hashing leave Python's lock
Described = Mapping[str, Mapping[str, object]]


def fingerprint(folder: Path, described: Described | None = None) -> dict[str, object]:
    """The fingerprint of a finished cohort folder.

    `described` maps a path of the manifest to what `describe` or `describe_label` said of that volume; those it lacks are read. Raises `DataError`
    where the folder has no manifest or a volume cannot be read.
    """
    import pandas as pd

    from pipelines.ingest.fingerprint.summary import summarise
    from pipelines.ingest.fingerprint.warn import warnings_of

    folder = Path(folder)
    rows = read_manifest(folder)
    rows = rows[rows.kind.isin(["image", "label"])].reset_index(drop=True)
    quarantine = read_quarantine(folder) if (folder / QUARANTINE).is_file() else pd.DataFrame({"code": []})
    known = _describe_all(folder, rows, described or {})
    facts = [known[path] for path in rows.path]
    return {**summarise(rows, facts, quarantine), "warnings": warnings_of(rows, facts)}


def write_fingerprint(folder: Path, described: Described | None = None, copies: Sequence[Path] = ()) -> dict[str, object]:
    """Write `folder`/fingerprint.json and the same to each of `copies`; returns what was written."""
    made = fingerprint(folder, described)
    for path in (Path(folder) / FILE, *copies):
        write_json(path, made)
    return made


def _describe_all(folder: Path, rows: pd.DataFrame, described: Described) -> dict[str, Mapping[str, object]]:
    known = {path: described[path] for path in rows.path if described.get(path)}
    missing = [(row.kind, row.path) for row in rows.itertuples() if row.path not in known]
    if missing:
        with ThreadPoolExecutor(THREADS) as pool:
            known |= zip((path for _, path in missing), pool.map(lambda one: _read(folder, *one), missing), strict=True)
    return known


def _read(folder: Path, kind: str, path: str) -> dict[str, object]:
    import nibabel

    try:
        image = nibabel.load(folder / path)
        array = np.asarray(image.dataobj)
    except Exception as error:  # nibabel, gzip and zlib each have their own
        raise DataError(f"{folder / path} cannot be read ({type(error).__name__}); run ingest again") from None
    return describe(array, image.affine) if kind == "image" else describe_label(array, image.affine, lookup(folder / path))


def lookup(label: Path) -> dict[int, str]:
    """The names of a label's values, from the table beside it; none where there is no table."""
    path = label.with_name(label.name.removesuffix(".nii.gz") + ".tsv")
    if not path.is_file():
        return {}
    with path.open(newline="") as handle:
        return {int(row["index"]): row["name"] for row in csv.DictReader(handle, delimiter="\t")}
