"""Which model serves which site: the registry's aliases, and a site's own copy of the model that they name.

The registered model of a site is `semiflow-site-<site>`; its alias `champion` is the model served, `previous` the one before, `challenger` the one
judged last. A site without a model of its own is served by the champion of the site that was adapted before it.

A model is registered whole before any alias names it, an alias is set by one transaction, and a site's folder `champion` is a link that is
replaced by one rename. So whatever is killed when, the champion is a complete model: the old one or the new one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines.errors import DataError
from pipelines.outputs import locked, staged_folder, write_json
from pipelines.sites.lesson import CARD
from tasks.environment import PROJECT, tracking_uri
from tasks.site import Workspace
from tasks.verdicts import MODEL_TAG, VERDICT_TAG, digest_of, run_of

MODEL = "semiflow-site-"
MLFLOW_EXPERIMENT = "semiflow-sites"
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
#: Of a model version: what it is, as hex.
CONTENT_TAG = "semiflow.content"
ROLLED_BACK_TAG = "semiflow.rolled_back"
#: Of a registered model: when the site had its first champion.
SINCE_TAG = "semiflow.since"
RECORD = "champion.json"
#: Copies of models that a workspace keeps beside the one its link names: the one to roll back to.
COPIES = 2


@dataclass(frozen=True)
class Champion:
    """A version of a registered model. `site`: the one it was made at; `content`: what it is, as hex (`pipelines.sites.lesson.digest`)."""

    site: str
    name: str
    version: int
    uri: str
    run_id: str
    content: str

    def as_json(self) -> dict[str, object]:
        """How rival.json and verdict.json name a champion."""
        return {"model": self.name, "version": self.version}


#: No champion, as rival.json and verdict.json name it.
NOBODY: Mapping[str, object] = {"model": None, "version": None}


def model_name(site: str) -> str:
    return MODEL + site


@contextlib.contextmanager
def registry(project: Path = PROJECT, *, write: bool = False) -> Iterator:
    """The client of the project's MLflow store. Writers take turns, because aliases are compared and set; readers do not wait for them."""
    import mlflow

    from tasks.record import lock_file

    uri = tracking_uri(project)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    new = uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file()  # its first client makes the tables
    with locked(lock_file(uri, project).with_name(".registry.lock")) if write or new else contextlib.nullcontext():
        yield mlflow.MlflowClient()


def serving(site: str, project: Path = PROJECT) -> Champion | None:
    """The model that serves a site: its own champion, else the champion of the site adapted last before it; None where there is none."""
    with registry(project) as client:
        own = at_alias(client, site, CHAMPION)
        others = [] if own else _earlier(client, site)
        return at_alias(client, others[-1], CHAMPION) if others else own


def earlier_sites(site: str, project: Path = PROJECT) -> list[str]:
    """Sites that had a champion before this one had its first, oldest first. All that have one, where this site never had any."""
    with registry(project) as client:
        return _earlier(client, site)


def _earlier(client, site: str) -> list[str]:
    """Oldest first. A site whose first champion was rolled back keeps its place: it is served as it was before."""
    models = {model.name.removeprefix(MODEL): model for model in client.search_registered_models(f"name LIKE '{MODEL}%'")}
    since = {name: model.tags.get(SINCE_TAG, "") for name, model in models.items()
             if CHAMPION in model.aliases or (name == site and SINCE_TAG in model.tags)}
    order = sorted(since, key=lambda name: (since[name], name))
    return order[:order.index(site)] if site in order else order


def at_alias(client, site: str, alias: str) -> Champion | None:
    """The version that an alias of a site's model names, if any."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(model_name(site), alias)
    except MlflowException:
        return None
    return _champion(site, version)


def _champion(site: str, version) -> Champion:
    return Champion(site, version.name, int(version.version), f"models:/{version.name}/{version.version}", version.run_id or "",
                    version.tags.get(CONTENT_TAG, ""))


def fetch(site: str, folder: Path | None = None, project: Path = PROJECT) -> Path | None:
    """The bundle (`fit/`, `text/`, `champion.json`) of the model that serves `site` in `folder`, by default the workspace's `champion`.

    Nothing is downloaded where that version is there. `folder` becomes a link to a copy beside it and is replaced at once. None where no model
    serves the site; then `folder` goes.
    """
    folder = Path(folder) if folder else Workspace(site, project).champion
    found = serving(site, project)
    if found is None:
        folder.unlink(missing_ok=True)
        return None
    copy = folder.parent / ".models" / f"{found.name}-{found.version}"
    if not (copy / RECORD).is_file():
        _download(found, copy, project)
    _point(folder, copy)
    _forget_others(copy)
    return folder


def _download(champion: Champion, copy: Path, project: Path) -> None:
    import mlflow

    with registry(project), tempfile.TemporaryDirectory() as temporary:
        fit = Path(mlflow.artifacts.download_artifacts(f"{champion.uri}/artifacts/fit", dst_path=temporary))
        with staged_folder(copy) as folder:
            shutil.copytree(fit / "weights", folder / "fit")
            shutil.copytree(fit / "text", folder / "text")
            card = json.loads((folder / "fit" / CARD).read_text())
            write_json(folder / RECORD, champion.as_json() | {"source": champion.site, "backbone": card["backbone"], "run": champion.run_id,
                                                              "content": champion.content})


def _point(link: Path, copy: Path) -> None:
    """Make `link` lead to `copy`, in one rename."""
    target = os.path.relpath(copy, link.parent)
    if link.is_symlink() and str(link.readlink()) == target:
        return
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)  # of a version that kept a folder here
    temporary = link.with_name(f".{os.getpid()}.{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _forget_others(copy: Path) -> None:
    copies = sorted((path for path in copy.parent.iterdir() if path.is_dir() and not path.name.startswith(".") and path != copy),
                    key=lambda path: path.stat().st_mtime_ns)
    for path in copies[:-(COPIES - 1)]:
        shutil.rmtree(path, ignore_errors=True)


def promote(site: str, challenger: Path, verdict: Mapping, project: Path = PROJECT, *, tables: Mapping[str, str] | None = None) -> Champion:
    """Record a judged challenger, and make it the site's champion where the verdict says `promote`. Doing it again changes nothing.

    Raises `DataError` where the site's champion is no longer the one that the challenger was judged against.
    """
    with registry(project, write=True) as client:
        version = _recorded(client, site, verdict) or _record(client, site, challenger, verdict, project=project, tables=tables or {})
        client.set_registered_model_alias(version.name, CHALLENGER, str(version.version))
        now, rival = at_alias(client, site, CHAMPION), verdict["champion"]
        if verdict["decision"] != "promote" or (now and now.version == version.version):
            return version
        if (now and now.as_json() != {"model": rival["model"], "version": rival["version"]}) or (not now and rival["model"] == version.name):
            raise DataError(f"the champion of site {site!r} is now {f'version {now.version}' if now else 'none of its own'}, and the challenger was "
                            f"judged against {rival['model'] or 'none'} {rival['version'] or ''}; the next run judges it again")
        if now:
            client.set_registered_model_alias(version.name, PREVIOUS, str(now.version))
        elif SINCE_TAG not in client.get_registered_model(version.name).tags:
            client.set_registered_model_tag(version.name, SINCE_TAG, datetime.now(UTC).isoformat())
        elif at_alias(client, site, PREVIOUS):  # a first champion that was rolled back: what served before this one is another site's
            client.delete_registered_model_alias(version.name, PREVIOUS)
        client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
    return version


def _recorded(client, site: str, verdict: Mapping) -> Champion | None:
    """The version that was registered with this very verdict."""
    known = [version for version in client.search_model_versions(f"name = '{model_name(site)}'")
             if version.tags.get(VERDICT_TAG) == digest_of(verdict)]
    return _champion(site, max(known, key=lambda version: int(version.version))) if known else None


def _record(client, site: str, challenger: Path, verdict: Mapping, *, project: Path, tables: Mapping[str, str]) -> Champion:
    """A run with params, numbers and verdict, then the challenger as a version of the site's model, tagged as what it is from its first moment.

    `tables`: file name -> text, kept as artifacts of the run.
    """
    import mlflow

    from tasks.record import experiment_id

    name, content = model_name(site), str(verdict["challenger"])
    run_id = run_of(client, experiment_id(MLFLOW_EXPERIMENT, tracking_uri(project)), site, challenger, verdict, tables=tables)
    with contextlib.suppress(mlflow.exceptions.MlflowException):  # it is there
        client.create_registered_model(name, tags={"site": site})
    version = mlflow.register_model(client.get_run(run_id).data.tags[MODEL_TAG], name, tags={
        CONTENT_TAG: content, VERDICT_TAG: digest_of(verdict), "site": site, "semiflow.decision": str(verdict["decision"])})
    return Champion(site, name, int(version.version), f"models:/{name}/{version.version}", run_id, content)


def rollback(site: str, project: Path = PROJECT, *, reason: str) -> Champion:
    """Let what served a site before serve again, and the present champion become `previous`: its own previous model, or, where the champion is the
    first that the site has of its own, the champion of the site adapted before it. Again goes forward again. Raises `DataError` where there is no
    other to go to.
    """
    with registry(project, write=True) as client:
        now, before = at_alias(client, site, CHAMPION), at_alias(client, site, PREVIOUS)
        if now is None and before is None:
            raise DataError(f"site {site!r} has no champion of its own, so there is nothing to roll back; see flows.adapt_site")
        if before is None:
            before = next((found for other in reversed(_earlier(client, site)) if (found := at_alias(client, other, CHAMPION))), None)
        if before is None or (now and before.uri == now.uri):
            raise DataError(f"site {site!r} has no other champion to go back to than version {now.version}; the first one cannot be rolled back")
        _swap(client, site, now, before, reason)
    fetch(site, project=project)
    return before


def _swap(client, site: str, now: Champion | None, before: Champion, reason: str) -> None:
    """Let `before` serve instead of `now`, which is None where another site's champion serves. First of all aliases comes the one that serves."""
    name = model_name(site)
    if now is not None:
        client.set_model_version_tag(name, str(now.version), ROLLED_BACK_TAG, reason)
    if before.site == site:
        client.set_registered_model_alias(name, CHAMPION, str(before.version))
    else:
        client.delete_registered_model_alias(name, CHAMPION)
    if now is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(now.version))
    else:
        client.delete_registered_model_alias(name, PREVIOUS)


def rolled_back(site: str, content: str, project: Path = PROJECT) -> str | None:
    """Why a model of this content was taken out of service, if it was."""
    with registry(project) as client:
        reasons = [version.tags[ROLLED_BACK_TAG] for version in client.search_model_versions(f"name = '{model_name(site)}'")
                   if version.tags.get(CONTENT_TAG) == content and ROLLED_BACK_TAG in version.tags]
        now = at_alias(client, site, CHAMPION)
        return reasons[-1] if reasons and (now is None or now.content != content) else None
