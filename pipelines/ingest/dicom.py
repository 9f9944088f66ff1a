"""The plan for DICOM: which volumes of which series become which image or label of which case, and which are refused, all from headers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.cohort import bids_path
from pipelines.errors import DataError, Refused
from pipelines.ingest.deidentify.seal import is_sealed, subject_of
from pipelines.ingest.deidentify.values import moved
from pipelines.ingest.headers import Header, scan
from pipelines.ingest.jobs import Candidate, Case, ImageJob, LabelJob, attempt
from pipelines.ingest.labels import LabelSource, referenced_series
from pipelines.ingest.pseudonyms import FRAME_LENGTH, Pseudonyms
from pipelines.ingest.repair import REPAIRABLE
from pipelines.ingest.rules import classify, evidence, facts, without_device
from pipelines.ingest.series import Series, group, resolution
from pipelines.ingest.source import SourceFile
from pipelines.ingest.split import Part
from pipelines.ingest.uptake import suv_factor
from pipelines.params import Params, Rule, SiteRule

SEGMENTS = "segments"  # the label name of a rule that takes the names of a segmentation object
MAGNITUDE = ("magnitude", None)
NAMED_VOLUMES = 6  # volumes that a message lists


@dataclass
class Plan:
    """What to do with a source: jobs, and what is decided already."""

    images: list[ImageJob] = field(default_factory=list)
    labels: list[LabelJob] = field(default_factory=list)
    quarantine: list[dict[str, str]] = field(default_factory=list)
    decisions: list[dict[str, str]] = field(default_factory=list)
    dates: dict[Case, str] = field(default_factory=dict)  # of studies, moved into the past (params ingest.deidentify.dates: shift)

    def decide(self, case: Case, item: str, rule: str, outcome: str, evidence: str) -> None:
        who = {"subject": case.subject, "session": case.session}
        self.decisions.append({**who, "item": item, "rule": rule, "outcome": outcome, "evidence": evidence})

    def refuse(self, case: Case, item: str, refused: Refused) -> None:
        self.quarantine.append(refused.row(case.subject, case.session, item))


def plan_dicom(files: Sequence[SourceFile], params: Params, pseudonyms: Pseudonyms, jobs: int = 1) -> Plan:
    """Read the headers of `files` and plan their series. Raises `DataError` when the site rule does not fit the source."""
    plan, headers = Plan(), []
    for number, header in enumerate(scan(files, jobs), 1):
        if isinstance(header, Refused):
            plan.refuse(Case("", "", ""), f"file {number} of {len(files)} (by name)", header)
        elif header.text("Modality") or header.get("Rows"):  # not a DICOMDIR
            headers.append(header)
    planner = _Planner(plan, params, pseudonyms)
    series = group(headers)
    cases = _cases(series, params.cohort.site, pseudonyms)
    for one in series:
        case = cases[one.patient, one.study]
        planner.add(one, case)
        if params.ingest.deidentify.dates == "shift" and (date := _moved_date(one.first, pseudonyms)):
            plan.dates.setdefault(case, date)
    return planner.finish()


def _moved_date(header: Header, pseudonyms: Pseudonyms) -> str:
    """The study's date (ISO) as many days earlier as all of the patient's; one that was moved at de-identification stays where it is."""
    days = 0 if is_sealed(header, pseudonyms) else pseudonyms.day_shift(header.text("PatientID"), header.text("IssuerOfPatientID"))
    date = moved("StudyDate", "DA", header.text("StudyDate"), days)
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if date else ""


def _cases(series: Sequence[Series], rule: SiteRule, pseudonyms: Pseudonyms) -> dict[tuple, Case]:
    """(patient, study) -> case. Sessions are numbered in the order of the studies' dates, which stay here."""
    studies: dict[tuple, dict[str, tuple]] = defaultdict(dict)
    firsts: dict[tuple, Header] = {}
    for one in series:
        when = (one.first.text("StudyDate") or "9", one.first.text("StudyTime"), one.study)
        studies[one.patient].setdefault(one.study, (when, site_of(one.first.file, rule, one)))
        firsts.setdefault(one.patient, one.first)
    cases: dict[tuple, Case] = {}
    owners: dict[str, tuple] = {}
    for patient, dated in studies.items():
        subject = subject_of(firsts[patient], pseudonyms)
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


class _Planner:
    """Takes one series after another, and makes jobs of what they hold."""

    def __init__(self, plan: Plan, params: Params, pseudonyms: Pseudonyms) -> None:
        self.plan, self.params, self.pseudonyms = plan, params, pseudonyms
        self.known = frozenset(segment for label in params.cohort.labels for segment in label.segments)
        self.images: dict[tuple[Case, str], list[tuple[tuple, Candidate]]] = defaultdict(list)
        self.labels: dict[Case, list[LabelSource]] = defaultdict(list)

    def add(self, one: Series, case: Case) -> None:
        """Plan one series; what it cannot be used for is refused with its reason."""
        item = self._item(one.uid)
        try:
            if not one.patient[0]:
                raise Refused("no-patient-id", "PatientID is empty, so its cases could not be told from others'",
                              "give each patient an ID of any kind")
            if one.label_kind:
                self._add_label_object(one, case, item)
            else:
                self._add_images(one, case, item)
        except Refused as refused:
            self.plan.refuse(case, item, refused)
            self.plan.decide(case, item, self._rule_name(one), "", evidence(one))

    def _rule_name(self, one: Series) -> str:
        try:
            return classify(one, self.params.ingest.rules).name
        except Refused:
            return ""

    def _add_label_object(self, one: Series, case: Case, item: str) -> None:
        rule = classify(one, self.params.ingest.rules)
        if rule.skip is None and rule.label is None:
            raise Refused("label-object", f"it is a segmentation object, which rule {rule.name} takes for an image",
                          "put a rule with a label for its sop_class before that rule in params ingest.rules")
        if rule.skip is None:
            one.check_label()
            self.labels[case].append(self._label_source(one, None, rule))
        self.plan.decide(case, item, rule.name, "label" if rule.skip is None else f"skipped: {rule.skip}", evidence(one))

    def _add_images(self, one: Series, case: Case, item: str) -> None:
        try:
            parts = attempt(lambda: one.parts(self.params.ingest.limits))
        except Refused as refused:
            if self._skipped(one, case, item):
                return
            if refused.code not in REPAIRABLE or not self.params.ingest.repair:
                raise
            parts = [Part((), refused=refused)]
        chosen: dict[str, list[tuple[Part, Rule]]] = defaultdict(list)
        for part, rule in self._wanted(one, parts, case, item):
            chosen[rule.modality or rule.label].append((part, rule))
        for target, found in chosen.items():
            if len(found) > 1:
                names = ", ".join(part.name for part, _ in found[:NAMED_VOLUMES]) + (", ..." if len(found) > NAMED_VOLUMES else "")
                self._refuse_all(one, case, item, found, Refused(
                    "several-volumes", f"it holds {len(found)} volumes that rule {found[0][1].name} takes for {target} ({names})",
                    "say which is meant with 'volume', 'te_ms' or 'b_value' in a rule of params ingest.rules, or skip the others"))
                continue
            self._take(one, *found[0], case, item)

    def _skipped(self, one: Series, case: Case, item: str) -> bool:
        """Whether a series that holds no volume is one that nobody wants."""
        try:
            rule = classify(one, self.params.ingest.rules)
        except Refused:
            return False
        if rule.skip is not None:
            self.plan.decide(case, item, rule.name, f"skipped: {rule.skip}", evidence(one))
        return rule.skip is not None

    def _wanted(self, one: Series, parts: Sequence[Part], case: Case, item: str) -> list[tuple[Part, Rule]]:
        """The volumes that a rule takes for an image or a label; the others are refused or skipped. Equal decisions make one row."""
        wanted, skipped = [], defaultdict(list)
        measured = any(part.marks.get("component") == "magnitude" for part in parts)
        for part in parts:
            try:
                rule = classify(one, self.params.ingest.rules, part)
                skip = rule.skip
                if skip is None and rule.volume is None and part.marks.get("component") not in MAGNITUDE:
                    if not measured:
                        raise Refused("not-magnitude", f"it is a {part.marks['component']} image", "name it with 'volume' in a rule if it is wanted")
                    skip = "not the magnitude image"
                if skip is not None:
                    skipped[rule.name, skip].append(part)
                elif part.refused is not None and not (self.params.ingest.repair and part.refused.code in REPAIRABLE):
                    raise part.refused
                else:
                    wanted.append((part, rule))
            except Refused as refused:
                self.plan.refuse(case, _named(item, part), refused)
                self.plan.decide(case, _named(item, part), self._rule_name(one), "", evidence(one, part))
        for (name, skip), found in skipped.items():
            count = f" ({len(found)} volumes)" if len(found) > 1 else ""
            self.plan.decide(case, item, name, f"skipped: {skip}{count}", evidence(one, found[0] if len(found) == 1 else None))
        return wanted

    def _refuse_all(self, one: Series, case: Case, item: str, found: Sequence[tuple[Part, Rule]], refused: Refused) -> None:
        self.plan.refuse(case, item, refused)
        self.plan.decide(case, item, found[0][1].name, "", evidence(one))

    def _take(self, one: Series, part: Part, rule: Rule, case: Case, item: str) -> None:
        name = _named(item, part)
        if rule.label is not None:
            if part.refused is not None:
                raise part.refused
            self.labels[case].append(self._label_source(one, part, rule))
            self.plan.decide(case, name, rule.name, "label", evidence(one, part))
            return
        scale = suv_factor(one) if one.first.text("Modality") == "PT" else None
        known = without_device(facts(one, part), self.params.ingest.deidentify)
        candidate = Candidate(name, rule.name, known, self._frame(one), headers=tuple(one.headers), part=part, scale=scale,
                              note="; ".join(filter(None, [one.note, one.units if scale is None else ""])))
        self.images[case, rule.modality].append(((resolution(part), one.uid), candidate))
        self.plan.decide(case, name, rule.name, f"image {rule.modality}", evidence(one, part))

    def finish(self) -> Plan:
        """The plan with its jobs."""
        for (case, modality), found in self.images.items():
            spec = self.params.ingest.modalities[modality]
            path = bids_path(case.subject, case.session, spec.datatype, spec.suffix, spec.entities)
            best_first = sorted(found, key=lambda entry: entry[0])
            self.plan.images.append(ImageJob(case, modality, path, tuple(candidate for _, candidate in best_first)))
        self.plan.labels = [LabelJob(case, label_path(case), tuple(found)) for case, found in self.labels.items()]
        return self.plan

    def _label_source(self, one: Series, part: Part | None, rule: Rule) -> LabelSource:
        name = "" if rule.label == SEGMENTS else rule.label
        referred = [self._item(uid) for uid in referenced_series(one.first.tags)]
        return LabelSource(self._item(one.uid), one.label_kind or "mask", one.paths, rule.name, self._frame(one), name=name, known=self.known,
                           refers_to=referred[0] if referred else "", threshold=self.params.ingest.fractional_threshold,
                           headers=tuple(one.headers), part=part)

    def _item(self, series_uid: str) -> str:
        return f"series-{self.pseudonyms('series', series_uid)}"

    def _frame(self, one: Series) -> str:
        return self.pseudonyms("frame", one.frame, length=FRAME_LENGTH)


def _named(item: str, part: Part) -> str:
    return f"{item}_{part.name}" if part.name else item


def label_path(case: Case) -> Path:
    """Where a case's label lies below the output folder."""
    return Path("derivatives", "labels") / bids_path(case.subject, case.session, "anat", "dseg")
