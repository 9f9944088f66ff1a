"""The cases of one site's workspace, and a case as a given model can take it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.cohort import Case, cases_of
from pipelines.errors import DataError
from pipelines.sites.folders import Folders
from pipelines.train.fitted import Fitted


def load_cases(folder: Path, fingerprint: str) -> dict[str, Case]:
    """Every resampled case of the workspace at `folder` by its id, with tokens. Raises `DataError` where another backbone made them."""
    from pipelines.embed.cache import read_index, token_files

    folders = Folders(Path(folder))
    if set(read_index(folders.embeddings).fingerprint) != {fingerprint}:
        raise DataError(f"{folders.embeddings} was made with another backbone than params name now; run flows.adapt_site for site {folder.name!r} "
                        "first")
    return {case.id: case for case in cases_of(folders.resampled, token_files(folders.embeddings))}


def fitting(case: Case, fitted: Fitted) -> Case | None:
    """The case with the modalities that the model knows, None where it knows none of them.

    A model has text of the sites that it was made for; a case of any other site is described with the words of the model's own.
    """
    known = [modality for modality in case.images if modality in fitted.task.modalities]
    if not known:
        return None
    worded = {site for classes in fitted.task.prompts.phrasings.values() for sites in classes.values() for site in sites}
    site = case.site if case.site in worded else str(fitted.record["site"])
    return replace(case.only(known), site=site)
