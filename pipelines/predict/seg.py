"""The answer as DICOM objects of the study: what was found, how probable it is, and where the model is unsure.

- a binary Segmentation (PS3.3 A.51), a coded segment a label: what every viewer shows over the images;
- a fractional one of the same labels (PROBABILITY, 8 bits), for those who want another threshold;
- the uncertainty (normalised entropy) as a Parametric Map (A.75) of 16-bit integers with a real-world mapping. Not as a fractional segmentation,
  although more viewers colour those: it is no segment's probability, and whoever reads segmentations back would take it for a label. Not as floats:
  archives and viewers that know nothing of maps still show integers as a grey image.

The objects carry the identifiers of the study that they are filed with, and must. Their UIDs depend on study, model and settings alone, so that
the same prediction is the same object however often it is made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import DataError
from pipelines.ingest.headers import quiet
from pipelines.ingest.pseudonyms import Pseudonyms
from pipelines.params import Params
from pipelines.predict.bundle import Model
from pipelines.predict.codes import ABNORMAL, Code, code_of
from pipelines.predict.study import Study

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

#: Counts among what the UIDs depend on: raise it when the same model would write something else into the same objects.
FORMAT = 1
MAKER, PRODUCT = "Semiflow", "Semiflow predict"
#: kind -> (series number, series description, by which `own.OWN_RULE` knows it). Numbers far above a scanner's.
SERIES = {"seg": (9101, "Semiflow research segmentation map"), "probability": (9102, "Semiflow research segmentation map, probability"),
          "uncertainty": (9103, "Semiflow research map, uncertainty")}
STEPS = 10_000  # of the stored uncertainty from 0 to 1
MOST_PROBABLE = 255
#: Attributes of the patient and study modules that have to be there, empty or not (type 2), and may be missing in what a scanner sent.
EXPECTED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
            "ReferringPhysicianName")
LEARNED = Code("123110", "DCM", "Artificial Intelligence")  # CID 7162
SEXES = ("M", "F", "O", "")
#: Red, blue, green, violet: apart for most colour visions, in the order of the labels.
COLOURS = ((214, 69, 65), (52, 120, 246), (46, 160, 67), (163, 113, 247))


@dataclass(frozen=True)
class Answer:
    """What a model says about a study, on the slices of its reference series.

    `segmented`: label values `(frames, rows, columns)`; `probabilities`: `(frames, rows, columns, labels)` in 0..1; `uncertainty`: 0..1.
    """

    segmented: np.ndarray
    probabilities: np.ndarray
    uncertainty: np.ndarray


@dataclass(frozen=True)
class Names:
    """UIDs of everything that is made of a study with a model. Keyed: nobody without the key can tell from one which study or model it is of."""

    pseudonyms: Pseudonyms
    study: str
    model: str  # digest
    settings: str

    def __call__(self, kind: str, what: str) -> str:
        return self.pseudonyms.uid("\0".join(["prediction", self.study, self.model, self.settings, kind, what]))


def names_of(study_uid: str, model: Model, params: Params, pseudonyms: Pseudonyms) -> Names:
    """The UIDs for a study, before or after it was predicted."""
    settings = [FORMAT, params.ingest.model_dump(mode="json"), params.resample.model_dump(mode="json")]
    return Names(pseudonyms, study_uid, model.digest, sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest())


def objects(study: Study, answer: Answer, model: Model, names: Names) -> dict[str, Dataset]:
    """The three objects, by kind. Raises `DataError` where the study's headers do not allow one."""
    labels = model.fitted.task.labels
    masks = answer.segmented[..., None] == np.arange(1, len(labels) + 1)
    try:
        with quiet():  # highdicom also tells its loggers names and UIDs of what it copies
            sources = [_complete(dataset) for dataset in study.datasets]
            made = {"seg": _segmentation(sources, masks.astype(np.uint8), "BINARY", study=study, model=model, names=names, kind="seg"),
                    "probability": _segmentation(sources, answer.probabilities.astype(np.float32), "FRACTIONAL", study=study, model=model,
                                                 names=names, kind="probability"),
                    "uncertainty": _map(sources, answer.uncertainty, study=study, model=model, names=names)}
            for kind, dataset in made.items():
                _finish(dataset, sources[0], names, kind)
            return made
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # their texts quote headers
        raise DataError(f"the headers of the reference series ({study.modality}) do not allow a segmentation object ({type(error).__name__} while "
                        "writing it); check the series with dciodvfy, or have it exported again") from None


def _segmentation(sources: Sequence[Dataset], pixels: np.ndarray, kind_of_values: str, *, study: Study, model: Model, names: Names,
                  kind: str) -> hd.seg.Segmentation:
    import highdicom as hd

    number, description = SERIES[kind]
    return hd.seg.Segmentation(
        sources, pixels, kind_of_values, _segments(model, names), names(kind, "series"), number, names(kind, "instance"), 1, MAKER, PRODUCT,
        version("semiflow"), model.digest, fractional_type="PROBABILITY", max_fractional_value=MOST_PROBABLE, content_label="SEMIFLOW",
        content_description=f"{kind} by {model.name}"[:64], content_creator_name=f"{MAKER}^{PRODUCT}", series_description=description,
        **_placing(study))


def _segments(model: Model, names: Names) -> list[hd.seg.SegmentDescription]:
    """A segment a label, coded, with who found it. The same tracking UID in both segmentations says that it is the same thing."""
    import highdicom as hd

    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"{MAKER} {model.fitted.record['system']}"[:64], family=_concept(LEARNED), version=_version(model),
        source=MAKER, parameters={"model": model.name, "version": model.version, "digest": model.digest})
    return [hd.seg.SegmentDescription(
        index, label, _concept(ABNORMAL), _concept(code_of(label)), "AUTOMATIC", algorithm, names("segment", label), f"{label} 1",
        display_color=hd.color.CIELabColor.from_rgb(*COLOURS[(index - 1) % len(COLOURS)])) for index, label in enumerate(model.fitted.task.labels, 1)]


def _map(sources: Sequence[Dataset], uncertainty: np.ndarray, *, study: Study, model: Model, names: Names) -> hd.pm.ParametricMap:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    number, description = SERIES["uncertainty"]
    mapping = hd.pm.RealWorldValueMapping("UNCERTAINTY", "normalised entropy: 0 is certain, 1 knows nothing", codes.UCUM.NoUnits, (0, STEPS),
                                          slope=1 / STEPS, intercept=0)
    stored = np.rint(np.clip(uncertainty, 0, 1) * STEPS).astype(np.uint16)
    return hd.pm.ParametricMap(
        sources, stored, names("uncertainty", "series"), number, names("uncertainty", "instance"), 1, MAKER, PRODUCT, version("semiflow"),
        model.digest, contains_recognizable_visual_features=False, real_world_value_mappings=[mapping], content_label="UNCERTAINTY",
        content_description=f"uncertainty by {model.name}"[:64], content_creator_name=f"{MAKER}^{PRODUCT}", series_description=description,
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=STEPS / 2, window_width=STEPS)], **_placing(study))


def _placing(study: Study) -> dict:
    """Where the frames lie, for a multi-frame source, of which the volume may be a part; single-frame sources say it themselves."""
    if len(study.datasets) == len(study.frames):
        return {}
    import highdicom as hd

    first = study.frames[0]
    measures = hd.PixelMeasuresSequence(pixel_spacing=first.spacing, slice_thickness=float(study.home.spacing[study.case.slice_axis]))
    return {"plane_positions": [hd.PlanePositionSequence("PATIENT", frame.position) for frame in study.frames],
            "plane_orientation": hd.PlaneOrientationSequence("PATIENT", first.orientation), "pixel_measures": measures}


def _complete(dataset: Dataset) -> Dataset:
    """A source's header with the attributes that every object must have; what a library would refuse is left empty, not guessed."""
    for name in EXPECTED:
        if name not in dataset or dataset[name].value is None:
            setattr(dataset, name, "")
    if str(dataset.PatientSex).strip() not in SEXES:
        dataset.PatientSex = ""
    return dataset


def _finish(dataset: Dataset, source: Dataset, names: Names, kind: str) -> None:
    """What the library draws at random is set, and what it does not take along from the study is added."""
    for element in dataset.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = names(kind, "dimensions")
    for name in ("IssuerOfPatientID", "StudyDescription", "BodyPartExamined"):
        if source.get(name) and name not in dataset:
            setattr(dataset, name, source[name].value)
    dataset.SeriesDate, dataset.SeriesTime = dataset.ContentDate, dataset.ContentTime


def _version(model: Model) -> str:
    return f"{version('semiflow')}, {model.name} {model.version}"[:64]


def _concept(code: Code) -> hd.sr.CodedConcept:
    import highdicom as hd

    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)
