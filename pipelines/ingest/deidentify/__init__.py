"""De-identification of DICOM objects by the Basic Application Level Confidentiality Profile (PS3.15 annex E), and stricter.

See docs/deidentification.md for what stays, what goes and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.errors import Refused
from pipelines.ingest.deidentify.clean import Cleaner
from pipelines.ingest.deidentify.pixels import check_readable, clean_pixels
from pipelines.ingest.deidentify.seal import is_sealed, seal, subject_of
from pipelines.ingest.headers import quiet
from pipelines.ingest.mosaic import is_mosaic
from pipelines.ingest.pseudonyms import Pseudonyms
from pipelines.params import Deidentify

__all__ = ["Deidentifier", "deidentifier", "is_sealed", "subject_of"]

PREAMBLE = b"\0" * 128
IMPLEMENTATION = "2.25.279431829120427518734529183640518273645"
VERSION = "1"  # raised when the same source would give another result
WITH_WEIGHT = "PT"  # uptake values need the body weight


def deidentifier(pseudonyms: Pseudonyms, options: Deidentify, words: frozenset[str] = frozenset()) -> Callable:
    """A function that takes a pydicom data set (with pixels and file meta) and returns a de-identified copy.

    `words` may stay in descriptions beside the vocabularies' (lower case). The function raises `Refused` for an object that cannot be
    de-identified (codes `burned-in`, `no-image`, `no-patient-id`, `mosaic-geometry`, `already-deidentified`, `unreadable-file`).
    """
    return Deidentifier(pseudonyms, options, words)


@dataclass(frozen=True)
class Deidentifier:
    """See `deidentifier`."""

    pseudonyms: Pseudonyms
    options: Deidentify
    words: frozenset[str] = frozenset()

    def __call__(self, dataset):
        return self.audited(dataset)[0]

    def audited(self, dataset) -> tuple:
        """The de-identified copy, and what was done to it: (action, keyword) -> times."""
        with quiet():
            try:
                return self._apply(dataset)
            except Refused:
                raise
            except Exception:  # pydicom raises what a broken object makes it raise, often with the offending value in the text
                raise Refused("unreadable-file", "its header or pixels are damaged, so they cannot be written again", "export it again") from None

    def _apply(self, dataset) -> tuple:
        check_readable(dataset)
        patient = str(dataset.get("PatientID") or "").strip()
        if not patient:
            raise Refused("no-patient-id", "PatientID is empty, so its patient could not be told from others", "give each patient an ID of any kind")
        if is_sealed(dataset, self.pseudonyms):
            raise Refused("already-deidentified", "it was de-identified with this key before", "use it as it is")
        cleaner = self._cleaner(dataset, patient)
        cleaned = cleaner(dataset)
        cleaned.file_meta, cleaned.preamble = _file_meta(dataset, cleaned), PREAMBLE
        if clean_pixels(cleaned):
            cleaner.counts["clean", "PixelData"] += 1
        cleaned.PatientID = cleaned.PatientName = cleaner.patient
        seal(cleaned, self.pseudonyms, cleaner.patient, self.options, weight=cleaner.weight)
        return cleaned, Counter(cleaner.counts)

    def _cleaner(self, dataset, patient: str) -> Cleaner:
        issuer = str(dataset.get("IssuerOfPatientID") or "").strip()
        shift = self.pseudonyms.day_shift(patient, issuer) if self.options.dates == "shift" else None
        return Cleaner(self.pseudonyms.uid, self.pseudonyms("subject", patient, issuer), shift, self.options.device == "keep",
                       str(dataset.get("Modality", "")) == WITH_WEIGHT, self.words, csa=is_mosaic(dataset.get("ImageType") or []))


def _file_meta(dataset, cleaned):
    """File meta information that says nothing of who sent or stored the file."""
    from pydicom.dataset import FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = cleaned.SOPClassUID, cleaned.SOPInstanceUID
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION, f"SEMIFLOW_{VERSION}"
    return meta
