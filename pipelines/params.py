"""params.yaml as checked models: an unknown key or a wrong type is refused before anything runs, all errors at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines.errors import UsageError
from pipelines.experiments import Continual, Experiment, Protocol, Sweep
from pipelines.section import Section
from pipelines.sites.params import Service

DEFAULT = Path(__file__).parents[1] / "params.yaml"

Range = tuple[float, float]


class SiteRule(Section):
    """Where a case's site comes from: the same word for all, or the name of a folder of the source path."""

    constant: str | None = None
    folder: int | None = Field(None, description="which part of the path below the source, 0 is the first")

    @model_validator(mode="after")
    def _one_of(self):
        if (self.constant is None) == (self.folder is None):
            raise ValueError("give exactly one of 'constant' and 'folder'")
        return self


class Label(Section):
    """A target class and the segments of the source that make it."""

    name: str
    segments: list[str] = Field(min_length=1)
    text: str = Field(description="how a radiologist would name it, for the prompts")


class FileNames(Section):
    """What file names mean in a NIfTI source that does not name them as BIDS does."""

    pattern: str = Field(description="regular expression of the end of a path below the source, without .nii.gz; its groups 'subject' and 'file'")
    images: dict[str, str] = Field(min_length=1, description="'file' of the pattern -> modality of ingest.modalities")
    label: str = Field("", description="'file' of the label")

    @field_validator("pattern")
    @classmethod
    def _has_both_groups(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        if missing := {"subject", "file"} - set(groups):
            raise ValueError(f"it has no group (?P<{min(missing)}>...)")
        return pattern


class Outcome(Section):
    """What a whole case is to be told from: a column of the source's participants.tsv and the values that are the classes."""

    column: str
    values: list[str] = Field(min_length=2, description="as the table has them; a case with another value or none has no outcome")
    text: str = Field("", description="what it is, for the report")

    @field_validator("values", mode="before")
    @classmethod
    def _as_text(cls, values: object) -> object:
        return [str(value) for value in values] if isinstance(values, list) else values

    @field_validator("values")
    @classmethod
    def _differ(cls, values: list[str]) -> list[str]:
        if len(set(values)) < len(values):
            raise ValueError("two classes are the same; give every class a value of its own")
        return values


class Cohort(Section):
    """A named data set made of sites."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    source: str = Field(description="folder or zip with DICOM, NIfTI or BIDS")
    site: SiteRule
    names: FileNames | None = Field(None, description="for NIfTI files that are not named as BIDS names them")
    disease: str = Field(description="for the prompts, for example 'glioma'")
    labels: list[Label] = Field(description="may be empty where there is an outcome")
    outcome: Outcome | None = Field(None, description="for systems that answer a whole case; without it, they have nothing to learn")
    targets: list[str] | Literal["all"] = Field("all", description="sites to adapt to; the others can lend calibration cases")
    split_by: Literal["subject", "session"] = "subject"
    caveat: str = Field("", description="printed wherever results of this cohort are shown")
    pseudonym_key: str = Field("", description="file with the key of the pseudonyms; empty: the user's own, made at the first run")

    @model_validator(mode="after")
    def _something_to_learn(self):
        if not self.labels and self.outcome is None:
            raise ValueError("it has no labels and no outcome; give labels to segment, or an outcome of whole cases")
        return self


class ModalitySpec(Section):
    """How a modality is named in BIDS and in text."""

    datatype: str
    suffix: str
    entities: dict[str, str] = Field({}, description="BIDS entities that tell it from others of the suffix")
    text: list[str] = Field(min_length=1, description="names a radiologist uses")


class Rule(Section):
    """One header rule; a series that satisfies every condition given is `modality` (or a label with segment `label`). First match wins."""

    name: str
    modality: str | None = None
    label: str | None = None
    skip: str | None = Field(None, description="reason why such a series is not wanted")
    description: str | None = Field(None, description="regular expression searched in SeriesDescription, case ignored")
    dicom_modality: list[str] | None = None
    sop_class: list[str] | None = Field(None, description="names as pydicom spells them, for example 'MR Image Storage'")
    contrast_agent: bool | None = None
    tr_ms: Range | None = None
    te_ms: Range | None = None
    ti_ms: Range | None = None
    b_value: Range | None = Field(None, description="s/mm^2, of the volume")
    volume: str | None = Field(None, description="regular expression searched in a volume's name where a series has several, for example '^echo-2$'")

    @model_validator(mode="after")
    def _one_outcome(self):
        if sum(value is not None for value in (self.modality, self.label, self.skip)) != 1:
            raise ValueError("give exactly one of 'modality', 'label' and 'skip'")
        return self


class Simulate(Section):
    """A phantom cohort."""

    kind: Literal["glioma", "paired"] = Field("glioma", description="paired: MR and PET pairs with an outcome (pipelines/phantoms/paired.py)")
    seed: int
    subjects_per_site: int = Field(ge=1)
    missing_fraction: float = Field(ge=0, lt=1, description="share of subjects that lack one modality (never FLAIR)")


class Limits(Section):
    """What a source may hold at most: beyond it, a file or archive is refused before it fills a disk or the memory."""

    files: int = Field(1_000_000, ge=1)
    file_gb: float = Field(8.0, gt=0, description="one file, unpacked; larger than any clinical multi-frame object")
    total_gb: float = Field(256.0, gt=0, description="all files of an archive, unpacked")
    ratio: float = Field(200.0, gt=1, description="unpacked to packed size of an archive; images reach 10, bombs 1000")
    voxels: float = Field(2e9, gt=0, description="of one series, and of one NIfTI file")


class Deidentify(Section):
    """Options of the DICOM PS3.15 Basic Application Level Confidentiality Profile."""

    dates: Literal["remove", "shift"] = Field("remove", description="shift: by a keyed number of days per patient, so that intervals stay")
    device: Literal["keep", "remove"] = Field("keep", description="keep: vendor, model and field strength, which prompts use")


class Ingest(Section):
    modalities: dict[str, ModalitySpec]
    rules: list[Rule]
    repair: bool = Field(False, description="let dcm2niix resample tilted and unevenly spaced series (recorded in the manifest's note)")
    fractional_threshold: float = Field(0.5, gt=0, le=1, description="a voxel belongs to a segment of a fractional segmentation from this share on")
    limits: Limits = Limits()
    deidentify: Deidentify = Deidentify()

    @model_validator(mode="after")
    def _known_modalities(self):
        for rule in self.rules:
            if rule.modality is not None and rule.modality not in self.modalities:
                raise ValueError(f"rule {rule.name!r} names modality {rule.modality!r}, which ingest.modalities does not have")
        return self


class Resample(Section):
    reference: list[str] = Field(min_length=1, description="the first of these that a case has gives its grid")
    in_plane_mm: float = Field(gt=0)
    slice_mm: float | None = Field(None, gt=0, description="null: the reference's own, thick slices stay thick")
    register_frames: bool = Field(True, description="rigid mutual-information registration where frames of reference differ")


class Prompts(Section):
    templates: dict[str, list[str]] = Field(description="class kind (label | healthy | outside) -> templates")


class Embed(Section):
    backbone: str = Field(description="<adapter>:<folder>, for example 'atlas:models/atlas' or 'transformers:models/pubmed-clip'")
    jobs: int = Field(1, ge=1, description="images at a time, one core each")
    precision: Literal["float16", "int8"] = Field("float16", description="how tokens are stored; int8 takes half the space")


class Evaluate(Section):
    ece_bins: int = Field(15, ge=2)
    band_mm: float = Field(gt=0, description="how far the foreground band reaches beyond truth and prediction")
    nsd_tolerance_mm: float = Field(2.0, gt=0)
    conformal_levels: list[Annotated[float, Field(gt=0, lt=1)]] = Field([0.1, 0.2], description="false-negative rates to hold, by a threshold")
    bootstrap: int = Field(ge=100)
    confidence: float = Field(0.95, gt=0, lt=1)
    headline: str = Field(description="system that the others are compared with")


class Params(Section):
    """All of params.yaml."""

    root: str = Field(".", description="the project's folder, seen from this file's (for dvc.yaml)")
    file: str = Field("params.yaml", description="this file, seen from the project's folder (for dvc.yaml)")
    cohort: Cohort
    simulate: Simulate
    ingest: Ingest
    resample: Resample
    prompts: Prompts
    embed: Embed
    protocol: Protocol
    experiments: dict[str, Experiment]
    sweep: Sweep | None = Field(None, description="a matrix of experiments, for `make sweep`")
    continual: Continual | None = Field(None, description="sites one after another, for `make continual`")
    evaluate: Evaluate
    service: Service = Service()

    @model_validator(mode="after")
    def _names_are_of_modalities(self):
        for word, modality in (self.cohort.names.images if self.cohort.names else {}).items():
            if modality not in self.ingest.modalities:
                raise ValueError(f"cohort.names.images has {word!r} as {modality!r}, which ingest.modalities does not have")
        return self

    @field_validator("experiments")
    @classmethod
    def _systems_exist(cls, experiments: dict[str, Experiment]) -> dict[str, Experiment]:
        for name, experiment in experiments.items():
            _check_system(f"experiment {name!r}", experiment.system, experiment.params)
        return experiments

    @field_validator("service")
    @classmethod
    def _system_of_service_exists(cls, service: Service) -> Service:
        _check_system("service.adapt", service.adapt.system, service.adapt.params)
        return service

    @field_validator("sweep")
    @classmethod
    def _systems_of_arms_exist(cls, sweep: Sweep | None) -> Sweep | None:
        for name, arm in sweep.arms.items() if sweep else ():
            _check_system(f"arm {name!r}", arm.system, arm.params)
        return sweep

    @field_validator("continual")
    @classmethod
    def _systems_of_continual_exist(cls, continual: Continual | None) -> Continual | None:
        for name, arm in continual.arms.items() if continual else ():
            _check_system(f"continual.arms.{name}", arm.system, arm.params)
        return continual


def _check_system(user: str, system: str, params: dict) -> None:
    """Refuse a system that does not exist, or params that it does not have."""
    from pipelines.systems import params_model

    try:
        params_model(system)(**params)
    except UsageError as error:
        raise ValueError(f"{user}: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{user}: {'; '.join(explain(error))}") from None


def explain(error: ValidationError) -> list[str]:
    """Each problem of a pydantic error as 'dotted.key: what is wrong (got value)'."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(top)"
        hint = "; this key does not exist, look for a typo" if problem["type"] == "extra_forbidden" else ""
        value = problem["input"] if isinstance(problem["input"], (str, int, float, bool, type(None))) else type(problem["input"]).__name__
        lines.append(f"{where}: {problem['msg']} (got {value!r}{hint})")
    return lines


def load_params(path: Path | None = None) -> Params:
    """Read and check params.yaml (`path`, else the project's own). Every problem is named in one error."""
    path = Path(path) if path else DEFAULT
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give --params a params.yaml (the project's own is {DEFAULT.name} at its top)")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no sections; compare it with the project's own params.yaml")
    try:
        return Params(**content)
    except ValidationError as error:
        raise UsageError(f"{path} has {error.error_count()} problem(s): " + " | ".join(explain(error))) from None
