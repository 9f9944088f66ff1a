"""A site's next model, the challenger: one fit on its support cases, rehearsing support cases of earlier sites.

A system that can go on from where it is (`pipelines.systems.incremental`) starts from the champion that serves the site, which may be an earlier
site's, and sees no case of an earlier site; where that champion does not fit, it learns anew like any other system. A new champion alone is no reason
to adapt again: new cases are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.backbones import Backbone, load_backbone
from pipelines.cohort import Case, read_manifest
from pipelines.errors import DataError, UsageError
from pipelines.outputs import staged_folder, write_json
from pipelines.params import Params
from pipelines.prompts.bank import PromptBank
from pipelines.prompts.stage import phrase
from pipelines.prompts.vectors import read_vectors, write_vectors
from pipelines.sites.cases import load_cases
from pipelines.sites.folders import Folders
from pipelines.sites.lesson import CARD, lacking, named, read_lesson
from pipelines.sites.typical import reference_of
from pipelines.systems import create, params_model
from pipelines.systems.incremental import Incremental
from pipelines.systems.protocol import Task
from pipelines.train.fitted import RECORD
from pipelines.train.one import Job, save_fit, train_one
from pipelines.train.split import Split


def adapt(folders: Folders, params: Params) -> dict:
    """Write `challenger/` (`fit/`, `text/`) of the lesson in the workspace. Returns what `fit.json` holds.

    Raises `UsageError` without a lesson, `DataError` where the site has too few cases or a case of the lesson is gone.
    """
    lesson = read_lesson(folders.lesson)
    if lesson is None:
        raise UsageError(f"{folders.lesson} does not exist; flows.adapt_site writes it before this stage")
    if missing := lacking(lesson, params.service.gate):
        raise DataError(f"site {lesson['site']!r} has too few labelled cases: {'; '.join(missing)}")
    backbone = load_backbone(params.embed.backbone)
    workspaces = {lesson["site"]: folders.folder} | {other["site"]: Path(other["folder"]) for other in lesson["earlier"]}
    split = split_of(lesson, {site: load_cases(folder, backbone.fingerprint) for site, folder in workspaces.items()})
    task = task_of(workspaces, backbone, params)
    settings = params.service.adapt
    job = Job(f"site {lesson['site']}", settings.system, params_model(settings.system)(**settings.params).model_dump(mode="json"),
              len(split.support), lesson["site"], settings.seed, split, params.evaluate.band_mm, "transfer" if split.source else "within")
    before = start_of(folders.champion / "fit", job, task)
    if before:
        job = replace(job, split=replace(split, source=()), protocol="incremental")
    with staged_folder(folders.challenger) as out:
        fitted = train_one(job, task, before)
        record = save_fit(fitted, out / "fit")
        reference_of([*split.support, *split.calibration, *split.query], task, lesson["site"]).save(out / "fit")  # what studies here look like
        write_json(out / "fit" / CARD, card(lesson, params))
        write_bank(out / "text", task.prompts, backbone)
    return record


def start_of(champion: Path, job: Job, task: Task) -> Path | None:
    """The champion's fit, where the system can go on from it: made by the same system with the same params for the same labels and modalities.

    None where it has to learn anew.
    """
    if not (champion / RECORD).is_file() or not isinstance(create(job.system, params_model(job.system)(**job.params)), Incremental):
        return None
    record = json.loads((champion / RECORD).read_text())
    same = {"system": job.system, "params": job.params, "labels": list(task.labels), "modalities": list(task.modalities),
            "backbone": task.backbone.fingerprint}
    return champion if all(record[name] == value for name, value in same.items()) else None


def split_of(lesson: Mapping, cases: Mapping[str, Mapping[str, Case]]) -> Split:
    """The lesson's cases by role; `cases`: site -> id -> case. The earlier sites' support cases are source."""
    site = lesson["site"]
    own = {role: tuple(_case(cases, site, name) for name in named(lesson["cases"], role)) for role in ("support", "calibration", "query")}
    source = tuple(_case(cases, other["site"], name) for other in lesson["earlier"] for name in named(other["cases"], "support"))
    return Split(own["support"], own["calibration"], own["query"], "site" if own["calibration"] else "none", source)


def _case(cases: Mapping[str, Mapping[str, Case]], site: str, name: str) -> Case:
    if name not in cases[site]:
        raise DataError(f"{name}, which the lesson has of site {site!r}, is no longer among the resampled cases; run flows.adapt_site again")
    return cases[site][name]


def task_of(workspaces: Mapping[str, Path], backbone: Backbone, params: Params) -> Task:
    """The task over several sites, which has text for every site.

    Each workspace has text of its own site and modalities only. A model that learns from two sites asks for the text of a modality at a site that
    never acquired it, so the texts are made anew from the images of all of them, as one cohort of these sites would have them; vectors that a
    workspace holds already are taken from there, the few others are encoded.
    """
    import pandas as pd

    tables = [read_manifest(Folders(folder).resampled) for folder in workspaces.values()]
    images = pd.concat([table[table.kind == "image"] for table in tables])
    present = set(images.modality)
    phrasings = phrase(images, params)
    vectors: dict[str, np.ndarray] = {}
    for folder in workspaces.values():
        fingerprint, known = read_vectors(Folders(folder).embeddings)
        vectors |= known if fingerprint == backbone.fingerprint else {}
    texts = PromptBank(phrasings, {}).texts()
    new = [text for text in texts if text not in vectors]
    vectors |= dict(zip(new, backbone.encode_text(new), strict=True)) if new else {}
    return Task(labels=tuple(label.name for label in params.cohort.labels),
                modalities=tuple(modality for modality in params.ingest.modalities if modality in present),
                prompts=PromptBank(phrasings, {text: vectors[text] for text in texts}), backbone=backbone)


def write_bank(folder: Path, prompts: PromptBank, backbone: Backbone) -> None:
    """Prompts with their vectors in one folder, as `PromptBank.load(folder, folder)` reads them."""
    folder.mkdir(parents=True)
    texts: Sequence[str] = prompts.texts()
    write_json(folder / "prompts.json", prompts.phrasings)
    write_vectors(folder, backbone.fingerprint, texts, np.stack([prompts.vectors[text] for text in texts]).astype(np.float32))


def card(lesson: Mapping, params: Params) -> dict[str, object]:
    """What a model says of its making: later runs tell from it which cases an accepted model was made with and judged on."""
    earlier = {other["site"]: {name: case["label"] for name, case in other["cases"].items()} for other in lesson["earlier"]}
    return {"site": lesson["site"], "backbone": params.embed.backbone, "earlier": earlier,
            "labels": {name: case["label"] for name, case in lesson["cases"].items()}}
