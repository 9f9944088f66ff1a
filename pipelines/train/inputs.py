"""What training and evaluation both start from: the task and the cohort's cases with their cached tokens."""

from __future__ import annotations

from pathlib import Path

from pipelines.backbones import load_backbone
from pipelines.cohort import Case, cases_of, read_outcomes
from pipelines.errors import DataError, UsageError
from pipelines.params import Params
from pipelines.prompts.bank import PromptBank
from pipelines.systems.protocol import Task


def load_task(source: Path, prompts: Path, embeddings: Path, params: Params) -> tuple[Task, list[Case]]:
    """The task of a resampled cohort and its cases, sorted by id. Raises `DataError` where a stage has not run or nothing is usable."""
    from pipelines.embed.cache import read_index, token_files

    for folder, stage in ((source, "resample"), (prompts, "prompts"), (embeddings, "embed")):
        if not Path(folder).is_dir():
            raise UsageError(f"{folder} does not exist; the {stage} stage makes it")
    outcome = params.cohort.outcome
    cases = cases_of(source, token_files(embeddings), read_outcomes(source, outcome.column, outcome.values) if outcome else None)
    if not cases:
        raise DataError(f"{source} holds no case with an image and a mask; its quarantine.tsv says why")
    backbone = load_backbone(params.embed.backbone)
    if any(fingerprint != backbone.fingerprint for fingerprint in read_index(embeddings).fingerprint):
        raise DataError(f"{embeddings} was made with another backbone than {params.embed.backbone} is now; run the embed stage again")
    present = {modality for case in cases for modality in case.images}
    known = [modality for modality in params.ingest.modalities if modality in present]
    task = Task(
        labels=tuple(label.name for label in params.cohort.labels),
        modalities=(*known, *sorted(present - set(known))),
        prompts=PromptBank.load(prompts, embeddings),
        backbone=backbone,
        outcomes=tuple(outcome.values) if outcome else (),
    )
    return task, cases


def experiment_of(params: Params, name: str):
    """The experiment that params call `name`."""
    if name not in params.experiments:
        raise UsageError(f"there is no experiment {name!r} in params.yaml; it has {', '.join(sorted(params.experiments))}")
    return params.experiments[name]
