"""The plan for NIfTI files named as BIDS names them: which become which image or label of which case.

Only names are looked at, wherever the files lie: `sub-<label>[_ses-<label>][_<entity>-<label>...]_<suffix>.nii[.gz]`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.cohort import bids_path
from pipelines.errors import DataError, Refused
from pipelines.ingest.dicom import Plan, label_path, site_of
from pipelines.ingest.jobs import SIDECAR, Candidate, Case, ImageJob, LabelJob
from pipelines.ingest.labels import LabelSource, safe_name
from pipelines.ingest.pseudonyms import FRAME_LENGTH
from pipelines.ingest.renamed import as_bids
from pipelines.ingest.rules import model, vendor, without_device
from pipelines.ingest.source import SourceFile
from pipelines.params import ModalitySpec, Params

LABEL_SUFFIXES = ("dseg", "mask")
LABEL_RULE, IMAGE_RULE = "bids-label", "bids-name"
LABEL = "label"
FOREGROUND_MASKS = ("brain", "head")  # `desc-brain_mask` is no target
#: Entities that tell repeats and derivatives of one modality apart, not modalities (BIDS 1.10, appendix "entities").
NOT_DECIDING = frozenset(["sub", "ses", "run", "acq", "rec", "dir", "space", "res"])
NAME = re.compile(r"sub-(?P<subject>[^_/]+)(?P<entities>(?:_[A-Za-z]+-[^_]+)*)_(?P<suffix>[A-Za-z0-9]+)\.nii(\.gz)?", re.IGNORECASE)
NAMES_WANTED = ("name it sub-<label>[_ses-<label>][_<entity>-<label>]_<suffix>.nii.gz, with a suffix of params ingest.modalities, _dseg or _mask, "
                "or say in params cohort.names what the source's own names mean")


@dataclass(frozen=True)
class BidsFile:
    """A NIfTI file and what its name says."""

    file: SourceFile
    site: str
    subject: str
    suffix: str
    entities: tuple[tuple[str, str], ...]

    @property
    def session(self) -> str:
        return _alphanumeric(dict(self.entities).get("ses", ""))

    @property
    def item(self) -> str:
        """The file's name made of letters and digits only."""
        middle = "".join(f"_{_alphanumeric(key)}-{_alphanumeric(value)}" for key, value in self.entities)
        return f"sub-{self.subject}{middle}_{self.suffix}"


def parse(file: SourceFile, site: str) -> BidsFile | None:
    """What a file's name says, None when it is not BIDS."""
    match = NAME.fullmatch(file.name)
    if match is None or not _alphanumeric(match["subject"]):
        return None
    pairs = [part.split("-", 1) for part in match["entities"].split("_") if part]
    return BidsFile(file, site, _alphanumeric(match["subject"]), match["suffix"], tuple((key.casefold(), value) for key, value in pairs))


def modality_of(entities: Mapping[str, str], suffix: str, modalities: Mapping[str, ModalitySpec]) -> str | None:
    """The modality with this suffix and these deciding entities, letter case ignored."""
    for name, spec in modalities.items():
        wanted = {key.casefold(): value.casefold() for key, value in spec.entities.items()}
        ignored = NOT_DECIDING - set(wanted)
        found = {key: value.casefold() for key, value in entities.items() if key not in ignored}
        if spec.suffix.casefold() == suffix.casefold() and found == wanted:
            return name
    return None


def plan_bids(files: Sequence[SourceFile], params: Params) -> Plan:
    """Plan the NIfTI files of a source; `files` are all of its files, for sidecars and lookups."""
    plan, parsed = Plan(), []
    files = [as_bids(file, params.cohort.names, params.ingest.modalities) for file in files]
    nifti = [file for file in files if file.is_nifti]
    for number, file in enumerate(nifti, 1):
        if parse(file, "") is None:
            refused = Refused("not-bids", f"NIfTI file {number} of {len(nifti)} (by name) is not named as BIDS names files", NAMES_WANTED)
            plan.refuse(Case("", "", ""), f"file {number} of {len(nifti)}", refused)
        else:
            parsed.append(parse(file, site_of(file, params.cohort.site)))
    beside = {file.parts: file for file in files}
    subjects = subject_names(parsed)
    images: dict[tuple[Case, str], list[Candidate]] = defaultdict(list)
    labels: dict[Case, list[LabelSource]] = defaultdict(list)
    known = frozenset(segment for label in params.cohort.labels for segment in label.segments)
    for named in sorted(parsed, key=lambda one: ("derivatives" in one.file.parts, one.suffix != "dseg", one.file.parts)):
        case = Case(subjects[named.site, named.subject], named.session, named.site)
        found = _classify(plan, named, case, params)
        if found is not None and (refused := _absurd(named, params)) is not None:
            plan.refuse(case, named.item, refused)
            continue
        if found == LABEL:
            names = _lookup(named, beside, known)
            labels[case].append(LabelSource(named.item, "nifti", (named.file.path,), LABEL_RULE, frame_of(case), names=names, known=known))
        elif found is not None:
            known = without_device(_sidecar(named, beside), params.ingest.deidentify)
            images[case, found].append(Candidate(named.item, IMAGE_RULE, known, frame_of(case), path=named.file.path))
    for (case, modality), candidates in images.items():
        spec = params.ingest.modalities[modality]
        path = bids_path(case.subject, case.session, spec.datatype, spec.suffix, spec.entities)
        plan.images.append(ImageJob(case, modality, path, tuple(candidates)))
    plan.labels = [LabelJob(case, label_path(case), tuple(sources)) for case, sources in labels.items()]
    return plan


def subject_names(parsed: Sequence[BidsFile]) -> dict[tuple[str, str], str]:
    """(site, subject) -> name in the outputs: its own, with the site before it where two sites use the same."""
    sites: dict[str, set[str]] = defaultdict(set)
    for one in parsed:
        sites[one.subject].add(one.site)
    names = {(site, subject): subject if len(found) == 1 else _alphanumeric(site) + subject for subject, found in sites.items() for site in found}
    if len(set(names.values())) < len(names):
        raise DataError("two subjects have the same name once reduced to letters and digits; rename one of them in the source")
    return names


def _classify(plan: Plan, named: BidsFile, case: Case, params: Params) -> str | None:
    """The modality that a file is, or `LABEL`; None where it is not used, which the plan then says."""
    entities = dict(named.entities)
    listed = " ".join(f"{key}-{_alphanumeric(value)}" for key, value in entities.items() if key != "ses") or "none"
    evidence = f"suffix {named.suffix}, entities {listed}"
    if named.suffix.casefold() in LABEL_SUFFIXES:
        foreground = entities.get("desc", "").casefold() in FOREGROUND_MASKS
        outcome = "skipped: a foreground mask, which resample makes itself" if foreground else LABEL
        plan.decide(case, named.item, LABEL_RULE, outcome, evidence)
        return None if foreground else LABEL
    modality = modality_of(entities, named.suffix, params.ingest.modalities)
    plan.decide(case, named.item, IMAGE_RULE if modality else "", f"image {modality}" if modality else "", evidence)
    if modality is None:
        plan.refuse(case, named.item, Refused("unknown-modality", f"no modality of params has this name ({evidence})",
                                              "add its suffix and entities to params ingest.modalities"))
    return modality


def _absurd(named: BidsFile, params: Params) -> Refused | None:
    """Why a file is not read whose header speaks of more voxels than fit; a small compressed one can. A broken header is for the reader to refuse."""
    import nibabel

    try:
        voxels = float(np.prod(nibabel.load(named.file.path).shape, dtype=float))
    except Exception:  # nibabel, gzip and zlib each have their own
        return None
    if voxels <= (most := params.ingest.limits.voxels):
        return None
    return Refused("absurd-size", f"its header speaks of {voxels:.2g} voxels, more than params ingest.limits.voxels ({most:.2g})",
                   "raise the limit if that is true, or write the file again")


def frame_of(case: Case) -> str:
    """NIfTI names no frame of reference; images of one session are taken to share scanner coordinates, as BIDS has it."""
    return hashlib.sha256(f"{case.subject}/{case.session}".encode()).hexdigest()[:FRAME_LENGTH].upper()


def _sidecar(named: BidsFile, beside: Mapping[tuple[str, ...], SourceFile]) -> dict[str, object]:
    """Header facts from the JSON beside an image, by the same allow-list as for DICOM."""
    content = _read_json(beside.get((*named.file.parts[:-1], f"{_stem(named.file.name)}.json")))
    facts: dict[str, object] = {}
    for column, (name, factor) in SIDECAR.items():
        value = content.get(name)
        if factor is None:
            text = str(value or "")
            facts[column] = vendor(text) if column == "manufacturer" else model(text)
        else:
            facts[column] = round(float(value) / factor, 6) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return facts


def _read_json(file: SourceFile | None) -> dict:
    try:
        content = json.loads(file.path.read_text()) if file else {}
    except (ValueError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def _lookup(named: BidsFile, beside: Mapping[tuple[str, ...], SourceFile], known: frozenset[str]) -> dict[int, str]:
    """Segment names from the table beside a label, or the data set's own `dseg.tsv` (columns index, name)."""
    stem, folders = _stem(named.file.name), named.file.parts[:-1]
    places = [(*folders, f"{stem}.tsv"), *((*folders[:depth], "dseg.tsv") for depth in range(len(folders), -1, -1))]
    table = next((beside[place] for place in places if place in beside), None)
    if table is None:
        return {}
    with table.path.open(newline="", errors="replace") as handle:
        rows = [row for row in csv.DictReader(handle, delimiter="\t") if (row.get("index") or "").strip().isdigit()]
    return {int(row["index"]): safe_name(row.get("name") or "", int(row["index"]), known) for row in rows if int(row["index"]) > 0}


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


def _alphanumeric(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text)


def source_tables(files: Sequence[SourceFile]) -> list[Path]:
    """The participants tables of a source."""
    return [file.path for file in files if file.name == "participants.tsv"]
