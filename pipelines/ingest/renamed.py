"""Sources whose files are not named as BIDS names them: their names, translated by params cohort.names, so that one reader serves both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from pipelines.cohort import bids_path
from pipelines.ingest.source import SourceFile
from pipelines.params import FileNames, ModalitySpec

#: What a NIfTI file and the tables beside it end with; all of them are translated, so that they stay beside each other.
ENDING = re.compile(r"(?P<stem>.+?)(?P<ending>\.nii(\.gz)?|\.json|\.tsv)", re.IGNORECASE)
NIFTI_ENDING = ".nii.gz"


def as_bids(file: SourceFile, names: FileNames | None, modalities: Mapping[str, ModalitySpec]) -> SourceFile:
    """The file under its BIDS name; as it is where `names` say nothing of it, or where it has such a name already."""
    ending = ENDING.fullmatch("/".join(file.parts)) if names is not None else None
    match = re.search(rf"(?:^|/)(?:{names.pattern})$", ending["stem"]) if ending else None
    if match is None or file.name.startswith("sub-"):
        return file
    subject, word = match["subject"], match["file"]
    if word == names.label:
        path = bids_path(subject, "", "anat", "dseg")
    elif word in names.images:
        spec = modalities[names.images[word]]
        path = bids_path(subject, "", spec.datatype, spec.suffix, spec.entities)
    else:
        return file
    return replace(file, parts=(*file.parts[:-1], path.name.removesuffix(NIFTI_ENDING) + ending["ending"]))
