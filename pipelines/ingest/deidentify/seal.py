"""The marks of a de-identified object: what was done, with which key, and whose it is by pseudonym."""

from __future__ import annotations

import re

from pipelines.ingest.pseudonyms import SUBJECT_LENGTH, Pseudonyms
from pipelines.params import Deidentify

METHOD = "Semiflow, DICOM PS3.15 Basic Profile"
PROFILE, DESCRIPTORS, MODIFIED_DATES, PATIENT, SAFE_PRIVATE = "113100", "113105", "113107", "113108", "113111"
#: CID 7050.
MEANINGS = {PROFILE: "Basic Application Confidentiality Profile", DESCRIPTORS: "Clean Descriptors Option",
            MODIFIED_DATES: "Retain Longitudinal Temporal Information Modified Dates Option", PATIENT: "Retain Patient Characteristics Option",
            SAFE_PRIVATE: "Retain Safe Private Option"}
SUBJECT = re.compile(rf"[A-Z2-7]{{{SUBJECT_LENGTH}}}")


def seal(dataset, pseudonyms: Pseudonyms, subject: str, options: Deidentify, *, weight: bool) -> None:
    """Write the marks into a cleaned data set."""
    from pydicom.dataset import Dataset

    used = [PROFILE, DESCRIPTORS, *([MODIFIED_DATES] if options.dates == "shift" else []), *([PATIENT] if weight else []), SAFE_PRIVATE]
    dataset.PatientIdentityRemoved = "YES"
    how = f"dates {options.dates}, device {options.device}"
    dataset.DeidentificationMethod = [METHOD, how, f"key {pseudonyms.key_id}", _proof(pseudonyms, subject)]
    dataset.DeidentificationMethodCodeSequence = []
    for value in used:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", MEANINGS[value]
        dataset.DeidentificationMethodCodeSequence.append(item)
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if options.dates == "shift" else "REMOVED"


def is_sealed(header, pseudonyms: Pseudonyms) -> bool:
    """Whether this key made the object what it is: a mark that others cannot write for a patient of their choice.

    `header` is a data set or a header of the ingest (PatientID, IssuerOfPatientID, DeidentificationMethod).
    """
    patient = _text(header, "PatientID")
    method = header.get("DeidentificationMethod") or []
    words = [method] if isinstance(method, str) else list(method)
    return SUBJECT.fullmatch(patient) is not None and _proof(pseudonyms, patient) in (str(word).strip() for word in words)


def subject_of(header, pseudonyms: Pseudonyms) -> str:
    """The pseudonym of an object's patient, the same before and after de-identification with this key. `header` as of `is_sealed`."""
    patient = _text(header, "PatientID")
    return patient if is_sealed(header, pseudonyms) else pseudonyms("subject", patient, _text(header, "IssuerOfPatientID"))


def _proof(pseudonyms: Pseudonyms, subject: str) -> str:
    return f"proof {pseudonyms('deidentified', subject, length=16)}"


def _text(header, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip()
