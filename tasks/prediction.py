"""A site's studies on their way through its champion: which wait, from the archive, through the model, back to the archive.

Studies go by keyed names everywhere: in parameters, logs and on disk. What carries a patient's name (the study as it was sent, the objects made of
it) lies in a private folder that is gone when the flow is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Container, Iterator
from functools import lru_cache
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from pipelines.errors import DataError, UsageError
from pipelines.ingest.pseudonyms import Pseudonyms, load_key
from pipelines.outputs import staged_folder, write_json
from pipelines.params import Params, load_params
from pipelines.predict.bundle import Model, backbone_of, digest_of, load_model
from pipelines.predict.qc import Finding, Verdict
from pipelines.predict.run import OVERLAY, QC, predict_study
from tasks.environment import PROJECT
from tasks.pacs.config import load_pacs
from tasks.pacs.inbox import keyed_name
from tasks.site import Workspace

#: Below a site's workspace: what is kept of each prediction, by the keyed name of its study.
KEPT = "predictions"
#: Series of these say that somebody, or an earlier prediction, has outlined the study already.
OUTLINED = ("SEG", "RTSTRUCT")


def model_in(folder: Path, params: Params) -> Model:
    """The model in a bundle, with its frozen backbone, wherever that lies on this machine."""
    return _model_in(Path(folder).resolve(), params.embed.backbone)


@lru_cache(maxsize=2)
def _model_in(folder: Path, backbone: str) -> Model:
    from pipelines.backbones import find_backbone

    return load_model(folder, find_backbone(*backbone_of(folder, backbone)))


def champion_folder(site: str, project: Path = PROJECT) -> tuple[Path, Params]:
    """The bundle of the model that serves a site, and the params that its studies are read with. Raises `DataError` where no model serves it yet."""
    from tasks.champions import fetch

    workspace = Workspace(site, project)
    folder = fetch(site, project=workspace.project)
    if folder is None:
        raise DataError(f"no model serves site {site!r} yet; adapt one with flows.adapt_site, or give a model's folder with --model")
    return folder, Params(**workspace.params_content)


def champion_of(site: str, project: Path = PROJECT) -> tuple[Model, Params]:
    """The model that serves a site, loaded, and the params that its studies are read with."""
    folder, params = champion_folder(site, project)
    return model_in(folder, params), params


def params_of(path: Path | None, project: Path = PROJECT) -> Params:
    """A params.yaml, or the project's own."""
    return load_params(path or project / "params.yaml")


@task(cache_policy=NO_CACHE, persist_result=False)
def waiting(site: str, project: Path = PROJECT) -> list[str]:
    """Keyed names of the site's studies that nobody has outlined and that its present champion has not looked at."""
    workspace = Workspace(site, project)
    folder, params = champion_folder(site, project)
    model = digest_of(folder)
    studies = _studies(workspace, _pseudonyms(params), lambda name: _looked_at(workspace, name, model))
    return [name for name, outlined in studies if not outlined]


@task(cache_policy=NO_CACHE, persist_result=False)
def retrieve_study(site: str, study: str, folder: Path, project: Path = PROJECT) -> Path:
    """The study of that keyed name as the archive sends it, below `folder`, which must be private; a link to one of a watched folder."""
    workspace = Workspace(site, project)
    pseudonyms = _pseudonyms(Params(**workspace.params_content))
    if workspace.settings.pacs is None:
        there = _folder_studies(workspace.source, pseudonyms)
        (folder / "study").symlink_to(there[_known(study, there, site)].resolve())  # its own name may be a patient's, and errors name their source
        return folder / "study"
    from tasks.pacs.config import IdList
    from tasks.pacs.retrieve import retrieve

    config = load_pacs(_pacs_file(workspace))
    uids = {keyed_name(pseudonyms, "study", found.uid): found.uid for found in _listed(config)}
    wanted = folder / "study.txt"
    wanted.write_text(uids[_known(study, uids, site)])
    query = config.query.model_copy(update={"ids": IdList(attribute="StudyInstanceUID", file=wanted)})
    summary = retrieve(config.model_copy(update={"query": query}), folder / "inbox", pseudonyms, lambda dataset: dataset, content="identified")
    if summary.unfinished or not (folder / "inbox" / study).is_dir():
        raise DataError("; ".join(summary.unfinished) or f"the archive sent nothing of study {study}; run again later")
    return folder / "inbox" / study


@task(cache_policy=NO_CACHE, persist_result=False)
def predict_one(site: str, source: Path, out: Path, project: Path = PROJECT, even_if_withheld: bool = False) -> Verdict:
    """Let the site's champion predict the study in `source` into `out`. A study that cannot be used is a verdict too: it would fail for ever."""
    model, params = champion_of(site, project)
    try:
        return predict_study(source, out, model, params, even_if_withheld=even_if_withheld)
    except DataError as error:
        verdict = Verdict((Finding("study", True, str(error)),))
        write_json(out / QC, verdict.record() | {"model": model.facts(), "files": []})
        return verdict


@task(cache_policy=NO_CACHE, persist_result=False)
def store_back(site: str, out: Path, project: Path = PROJECT) -> str:
    """Send the objects in `out` to the archive that the site's studies come from; returns what was done, in words."""
    from tasks.pacs.store import files_of, store

    workspace = Workspace(site, project)
    if workspace.settings.pacs is None:
        return f"the site has no PACS; the objects are kept in {KEPT}/ of its workspace"
    return str(store(load_pacs(_pacs_file(workspace)), files_of([out])))


@task(cache_policy=NO_CACHE, persist_result=False)
def keep(site: str, study: str, out: Path, project: Path = PROJECT) -> Path:
    """Keep the verdict and the picture in the site's workspace; the objects too where there is no archive to keep them."""
    workspace = Workspace(site, project)
    with staged_folder(_kept(workspace, study)) as folder:
        folder.chmod(0o700)
        for path in sorted(out.iterdir()):
            if path.name in (QC, OVERLAY) or (workspace.settings.pacs is None and not path.name.startswith(".")):
                shutil.copyfile(path, folder / path.name)
    return _kept(workspace, study)


@contextlib.contextmanager
def claimed(site: str, study: str, again: bool, project: Path = PROJECT) -> Iterator[bool]:
    """Whether this run may do a study: False while another does it, and, unless `again`, when one has done it since the study was found waiting."""
    workspace = Workspace(site, project)
    lock = _kept(workspace, f".{study}.run")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it, however its holder ends
        except BlockingIOError:
            yield False
            return
        yield again or not _looked_at(workspace, study, digest_of(champion_folder(site, project)[0]))


def _kept(workspace: Workspace, study: str) -> Path:
    return workspace.folder / KEPT / study


def _looked_at(workspace: Workspace, study: str, model: str) -> bool:
    """Whether a verdict of this very model on a study is kept, whatever it was."""
    record = _kept(workspace, study) / QC
    return record.is_file() and json.loads(record.read_text())["model"]["digest"] == model


def _pseudonyms(params: Params) -> Pseudonyms:
    return Pseudonyms(load_key(Path(params.cohort.pseudonym_key) if params.cohort.pseudonym_key else None))


def _pacs_file(workspace: Workspace) -> Path:
    return workspace.project / workspace.settings.pacs


def _known(study: str, studies: Container[str], site: str) -> str:
    if study not in studies:
        raise UsageError(f"site {site!r} has no study {study!r}; the names are those that `python -m tasks.pacs find` prints, or that a "
                         "run of predict without one finds")
    return study


def _studies(workspace: Workspace, pseudonyms: Pseudonyms, skip: Callable[[str], bool]) -> Iterator[tuple[str, bool]]:
    """Keyed names of the site's studies, and whether each has an outline already, which is not asked of those to skip."""
    if workspace.settings.pacs is None:
        for name, path in _folder_studies(workspace.source, pseudonyms).items():
            if not skip(name):
                yield name, any(_tag(file, "Modality") in OUTLINED for file in _files(path))
        return
    from tasks.pacs.archive import open_archive, patiently

    config = load_pacs(_pacs_file(workspace))
    with open_archive(config) as archive:
        for study in patiently(config.retries, archive.find_studies, config.query):
            if not skip(name := keyed_name(pseudonyms, "study", study.uid)):
                listing = patiently(config.retries, archive.list_study, study.uid, ())
                yield name, any(series.modality in OUTLINED for series, _ in listing.series)


def _listed(config) -> list:
    from tasks.pacs.archive import open_archive, patiently

    with open_archive(config) as archive:
        return patiently(config.retries, archive.find_studies, config.query)


def _folder_studies(source: Path, pseudonyms: Pseudonyms) -> dict[str, Path]:
    """Keyed name -> folder of each study of a watched folder, in which every folder is a study."""
    found = {}
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")) if source.is_dir() else ():
        if uid := next(filter(None, (_tag(file, "StudyInstanceUID") for file in _files(folder))), ""):
            found[keyed_name(pseudonyms, "study", uid)] = folder
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))


def _tag(path: Path, name: str) -> str:
    """One tag of a file, '' where it is no DICOM or has none."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    from pipelines.ingest.headers import quiet

    with quiet():
        try:
            return str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[name]).get(name, ""))
        except (InvalidDicomError, OSError, EOFError, ValueError):
            return ""
