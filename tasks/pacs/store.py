"""Results back to the archive that their study came from: each object once, however often it is asked for, and looked for afterwards.

Objects of a prediction have UIDs that depend on what they were made of, so what is there already is known by its UID. An archive may take an object
and lose the connection before it says so; therefore it is asked what it has, before and after, instead of believing its answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import DataError, UsageError
from pipelines.ingest.headers import quiet
from tasks.pacs.archive import Archive, Unavailable, open_archive, patiently
from tasks.pacs.config import DicomWebConfig, DimseConfig, Retries

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIX = ".dcm"


@dataclass(frozen=True)
class Stored:
    """How many objects were sent, and how many the archive had already."""

    sent: int
    present: int

    def __str__(self) -> str:
        return f"{self.sent} object(s) stored, {self.present} there already"


def store(config: DicomWebConfig | DimseConfig, paths: Sequence[Path]) -> Stored:
    """Send DICOM files to the archive of `config`, each to the study that it names, which the archive must have.

    Sent again after a passing failure; done when the archive lists them all. Raises `Denied`, `Unavailable`, or `DataError` for an archive that
    does not have the study or does not keep what it was given.
    """
    studies: dict[str, list[Dataset]] = defaultdict(list)
    for dataset in _read(paths):
        studies[str(dataset.StudyInstanceUID)].append(dataset)
    sent = present = 0
    with open_archive(config) as archive:
        for study, datasets in studies.items():
            held = patiently(config.retries, _held, archive, study)
            if not held:
                raise DataError(f"the PACS {config.address} does not have the study that the objects belong to; store them where the study came from")
            new = [dataset for dataset in datasets if str(dataset.SOPInstanceUID) not in held]
            for dataset in new:
                _send(archive, dataset, config.retries)
            patiently(config.retries, _confirm, archive, study, {str(dataset.SOPInstanceUID) for dataset in new}, config.address)
            sent, present = sent + len(new), present + len(datasets) - len(new)
    return Stored(sent, present)


def files_of(places: Sequence[Path]) -> list[Path]:
    """The DICOM files among `places`, folders gone into. Raises `UsageError` where there is none."""
    found = [path for place in places for path in (sorted(place.glob(f"*{SUFFIX}")) if place.is_dir() else [place])]
    missing = [path for path in found if not path.is_file()]
    if missing or not found:
        raise UsageError(f"{(missing or places or ['(nothing)'])[0]} is no DICOM file and no folder with any; give the folder of a prediction")
    return found


def _read(paths: Sequence[Path]) -> list[Dataset]:
    import pydicom
    from pydicom.errors import InvalidDicomError

    datasets = []
    with quiet():
        for path in paths:
            try:
                datasets.append(pydicom.dcmread(path))
            except (InvalidDicomError, OSError):
                raise DataError(f"{path} cannot be read as DICOM; have it made again") from None
    return datasets


def _held(archive: Archive, study: str) -> set[str]:
    """The UIDs of all instances of a study that the archive lists."""
    return {instance.uid for _, instances in archive.list_study(study, ()).series for instance in instances}


def _send(archive: Archive, dataset: Dataset, retries: Retries) -> None:
    with quiet():
        patiently(retries, archive.store, dataset)


def _confirm(archive: Archive, study: str, wanted: set[str], address: str) -> None:
    if lost := wanted - _held(archive, study):
        raise Unavailable(f"the PACS {address} took {len(wanted)} object(s) and does not list {len(lost)} of them; it may still be filing them, or "
                          "have put them aside: run again, and if that does not help, ask its administrator")
