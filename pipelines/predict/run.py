"""All of a prediction in order: a study in, a folder out that is whole or absent.

Predictions in one process take turns: the libraries below keep settings in global places (torch its threads and seed, pydicom how strictly it
reads, matplotlib its figures). Predictions side by side are processes side by side.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.errors import UsageError
from pipelines.evaluate.uncertainty import entropy
from pipelines.outputs import staged_folder, write_json
from pipelines.params import Params
from pipelines.predict.back import on_slices, onto_grid
from pipelines.predict.bundle import Model
from pipelines.predict.picture import draw_overlay
from pipelines.predict.qc import Verdict, check_inputs, check_series, check_typical, check_volume, volumes
from pipelines.predict.seg import Answer, names_of, objects
from pipelines.predict.study import Study, opened
from pipelines.sites.typical import with_tokens
from pipelines.threads import one_thread

QC, OVERLAY = "qc.json", "overlay.png"
_TURN = threading.Lock()


def predict_study(source: Path, out: Path, model: Model, params: Params, *, key_file: Path | None = None,
                  even_if_withheld: bool = False) -> Verdict:
    """Predict the one study in `source` (folder or archive of DICOM) with `model`, and write `out`: qc.json always; overlay.png and the three
    objects of `pipelines.predict.seg` unless the verdict withholds them and nobody asked for them all the same.

    `params` say how to ingest and resample (as the model's cases were), and in `service.quality` what to withhold. `out` is replaced when it
    holds an earlier prediction or nothing. Raises `UsageError` for an `out` that holds something else, `DataError` for a study that cannot be used.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / QC).is_file())):
        raise UsageError(f"--out {out} holds something other than a prediction; give a new or empty folder")
    with _TURN, opened(source, params, model.site, key_file) as study, staged_folder(out) as folder:
        folder.chmod(0o700)  # the objects carry the patient's name
        verdict = _predict(study, folder, model, params, even_if_withheld)
        written = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        write_json(folder / QC, verdict.record() | {
            "study": study.name, "model": model.facts(), "reference": study.modality, "modalities": sorted(study.case.images), "files": written})
    return verdict


def _predict(study: Study, folder: Path, model: Model, params: Params, even_if_withheld: bool) -> Verdict:
    quality, task = params.service.quality, model.fitted.task
    findings = [*check_series(study.refused), *check_inputs(study.case, model, quality)]
    verdict = Verdict(tuple(findings), released=even_if_withheld and any(finding.withholds for finding in findings))
    if not set(study.case.images) & set(task.modalities) or not verdict.delivered:
        return replace(verdict, released=False)
    with one_thread():
        print(f"predict: encoding {len(set(study.case.images) & set(task.modalities))} image(s)", flush=True)
        case = with_tokens(study.case, task)
        odd, typicality = check_typical(case, model, quality)
        print(f"predict: {model.name} version {model.version} looks at it", flush=True)
        probabilities = model.fitted.predict(case)
    at_home = onto_grid(probabilities, case.slice_axis, study.working, study.home)
    segmented = at_home.argmax(axis=0).astype(np.uint8)
    measured = volumes(task.labels, segmented, study.home.voxel_ml)
    findings += [*odd, *check_volume(measured, quality)]
    withheld = any(finding.withholds for finding in findings)
    verdict = Verdict(tuple(findings), typicality, measured, released=even_if_withheld and withheld)
    if verdict.delivered:
        _write(study, at_home, folder, model, params)
        draw_overlay(_plain(case), probabilities, task.labels, folder / OVERLAY)
    return verdict


def _write(study: Study, probabilities: np.ndarray, folder: Path, model: Model, params: Params) -> None:
    """The objects, on the slices of the reference series. `probabilities`: on its grid."""
    def sliced(volume: np.ndarray) -> np.ndarray:
        return on_slices(volume, study.home, study.frames)

    answer = Answer(sliced(probabilities.argmax(axis=0).astype(np.uint8)), np.stack([sliced(channel) for channel in probabilities[1:]], axis=-1),
                    sliced(entropy(probabilities)))
    print("predict: writing the segmentation", flush=True)
    for kind, dataset in objects(study, answer, model, names_of(study.uid, model, params, study.pseudonyms)).items():
        dataset.save_as(folder / f"{study.name}_{kind}.dcm", enforce_file_format=True)


def _plain(case: Case) -> Case:
    return replace(case, tokens={})
