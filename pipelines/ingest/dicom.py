"""The plan for DICOM: which series become which image or label of which case, and which are refused, all from headers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.cohort import bids_path
from pipelines.errors import DataError, Refused
from pipelines.ingest.headers import Series, group, looks_dicom, quiet, read_header
from pipelines.ingest.jobs import Candidate, Case, ImageJob, LabelJob
from pipelines.ingest.labels import LabelSource
from pipelines.ingest.pseudonyms import FRAME_LENGTH, Pseudonyms
from pipelines.ingest.rules import classify, evidence, facts
from pipelines.ingest.source import SourceFile
from pipelines.ingest.uptake import suv_factor
from pipelines.params import Params, Rule, SiteRule

SEGMENTS = "segments"  # the label name of a rule that takes the names of a segmentation object


@dataclass
class Plan:
    """What to do with a source: jobs, and what is decided already."""

    images: list[ImageJob] = field(default_factory=list)
    labels: list[LabelJob] = field(default_factory=list)
    quarantine: list[dict[str, str]] = field(default_factory=list)
    decisions: list[dict[str, str]] = field(default_factory=list)

    def decide(self, case: Case, item: str, rule: str, outcome: str, evidence: str) -> None:
        who = {"subject": case.subject, "session": case.session}
        self.decisions.append({**who, "item": item, "rule": rule, "outcome": outcome, "evidence": evidence})

    def refuse(self, case: Case, item: str, refused: Refused) -> None:
        self.quarantine.append(refused.row(case.subject, case.session, item))


def plan_dicom(files: Sequence[SourceFile], params: Params, pseudonyms: Pseudonyms) -> Plan:
    """Read the headers of `files` and plan their series. Raises `DataError` when the site rule does not fit the source."""
    plan, headers = Plan(), []
    with quiet():
        for number, file in enumerate(files, 1):
            header = read_header(file)
            if header is None:
                refused = Refused("unreadable-file", f"file {number} of {len(files)} (by name) has no readable DICOM header (truncated or damaged)",
                                  "copy or export that file again")
                plan.refuse(Case("", "", ""), f"file {number} of {len(files)}", refused)
            elif header.text("Modality") or header.get("Rows"):  # not a DICOMDIR
                headers.append(header)
        series = group(headers)
        cases = _cases(series, params.cohort.site, pseudonyms)
        _plan_series(plan, series, cases, params, pseudonyms)
    return plan


def _cases(series: Sequence[Series], rule: SiteRule, pseudonyms: Pseudonyms) -> dict[tuple, Case]:
    """(patient, study) -> case. Sessions are numbered in the order of the studies' dates, which stay here."""
    studies: dict[tuple, dict[str, tuple]] = defaultdict(dict)
    for one in series:
        when = (one.first.text("StudyDate") or "9", one.first.text("StudyTime"), one.study)
        studies[one.patient].setdefault(one.study, (when, site_of(one.first.file, rule, one)))
    cases: dict[tuple, Case] = {}
    owners: dict[str, tuple] = {}
    for patient, dated in studies.items():
        subject = pseudonyms("subject", *patient)
        if owners.setdefault(subject, patient) != patient:
            raise DataError(f"two patients have the same pseudonym {subject}; use another key (--key)")
        for number, (study, (_, site)) in enumerate(sorted(dated.items(), key=lambda item: item[1][0]), 1):
            cases[patient, study] = Case(subject, f"{number:02d}", site)
    return cases


def site_of(file: SourceFile, rule: SiteRule, series: Series | None = None) -> str:
    """The site by params cohort.site: a word for all, or a folder on the way to the file."""
    if rule.constant is not None:
        return rule.constant
    if rule.folder >= len(file.parts) - 1:
        raise DataError(f"params cohort.site.folder is {rule.folder}, but a file lies only {len(file.parts) - 1} folder(s) below the source; "
                        "give cohort.site.constant (or --site) or put each site's files into a folder of its own")
    site = re.sub(r"[^A-Za-z0-9_-]+", "-", file.parts[rule.folder]).strip("-")
    names = {piece.casefold() for tag in ("PatientName", "PatientID") for piece in [series.first.text(tag)] if series} if series else set()
    pieces = {piece for name in names for piece in [name, *re.split(r"[\^\s]+", name)] if len(piece) > 2}
    if not site or site.casefold() in pieces or any(name and name in file.parts[rule.folder].casefold() for name in names):
        raise DataError(f"params cohort.site.folder is {rule.folder}, but the folders there are named after patients; "
                        "choose the folder that is the site's, or give cohort.site.constant (or --site)")
    return site


def _plan_series(plan: Plan, series: Sequence[Series], cases: dict[tuple, Case], params: Params, pseudonyms: Pseudonyms) -> None:
    images: dict[tuple[Case, str], list[tuple[tuple, Candidate]]] = defaultdict(list)
    labels: dict[Case, list[LabelSource]] = defaultdict(list)
    known = frozenset(segment for label in params.cohort.labels for segment in label.segments)
    for one in series:
        case = cases[one.patient, one.study]
        item = _item(pseudonyms, one.uid)
        rule_name, outcome = "", ""
        try:
            if not one.patient[0]:
                raise Refused("no-patient-id", "PatientID is empty, so its cases could not be told from others'",
                              "give each patient an ID of any kind")
            rule = classify(one, params.ingest.rules)
            rule_name = rule.name
            if rule.skip is not None:
                outcome = f"skipped: {rule.skip}"
            elif rule.label is not None:
                one.check()
                outcome = "label"
                labels[case].append(_label_source(one, rule, known, pseudonyms))
            else:
                one.check()
                scale = suv_factor(one) if one.first.text("Modality") == "PT" else None
                outcome = f"image {rule.modality}"
                candidate = Candidate(item, "dicom", _paths(one), rule_name, facts(one), _frame(pseudonyms, one), scale)
                images[case, rule.modality].append((one.resolution(), candidate))
        except Refused as refused:
            plan.refuse(case, item, refused)
        plan.decide(case, item, rule_name, outcome, evidence(one))
    for (case, modality), found in images.items():
        spec = params.ingest.modalities[modality]
        path = bids_path(case.subject, case.session, spec.datatype, spec.suffix, spec.entities)
        best_first = sorted(found, key=lambda entry: entry[0])
        plan.images.append(ImageJob(case, modality, path, tuple(candidate for _, candidate in best_first)))
    plan.labels = [LabelJob(case, label_path(case), tuple(found)) for case, found in labels.items()]


def label_path(case: Case) -> Path:
    """Where a case's label lies below the output folder."""
    return Path("derivatives", "labels") / bids_path(case.subject, case.session, "anat", "dseg")


def _label_source(one: Series, rule: Rule, known: frozenset[str], pseudonyms: Pseudonyms) -> LabelSource:
    name = "" if one.is_segmentation and rule.label == SEGMENTS else rule.label
    references = one.first.get("ReferencedSeriesSequence", [])
    referred = _item(pseudonyms, str(references[0].get("SeriesInstanceUID", ""))) if len(references) else ""
    return LabelSource(_item(pseudonyms, one.uid), "seg" if one.is_segmentation else "mask", _paths(one), rule.name, _frame(pseudonyms, one),
                       name=name, known=known, refers_to=referred)


def _item(pseudonyms: Pseudonyms, series_uid: str) -> str:
    return f"series-{pseudonyms('series', series_uid)}"


def _frame(pseudonyms: Pseudonyms, one: Series) -> str:
    return pseudonyms("frame", one.frame, length=FRAME_LENGTH)


def _paths(one: Series) -> tuple[Path, ...]:
    return tuple(header.file.path for header in one.headers)


def dicom_files(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Those that are DICOM by their first bytes or by their name."""
    return [file for file in files if not file.is_nifti and looks_dicom(file)]
