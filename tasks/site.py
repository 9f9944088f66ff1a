"""A site's workspace on disk: laid out from params, locked while one run is at work, and what is new in it.

The workspace is a DVC project of its own below the project's folder (`service.root`, git-ignored), with a params.yaml and a dvc.yaml made from the
project's params and conf/site.yaml. What decides whether a run has anything to do looks at names, sizes and times only: it imports neither torch nor
DVC, and reads no image.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import yaml
from pydantic import ValidationError

from pipelines.embed.remembered import Remembered
from pipelines.errors import UsageError
from pipelines.outputs import write_json
from pipelines.params import Params, Rule, explain, load_params
from pipelines.predict.own import OWN_RULE
from pipelines.sites.folders import Folders
from pipelines.sites.params import Service, Site
from tasks.environment import PROJECT
from tasks.lay_out import CONF, write_if_changed

TEMPLATE = "conf/site.yaml"
#: All that `dvc init --no-scm` would make, and that DVC asks nobody for a newer version of itself, which it does in a process of its own.
DVC_CONFIG = "[core]\n    no_scm = True\n    analytics = false\n    check_update = false\n"
#: Deps of the template that are code or weights of the project; the others are data of the workspace.
PROJECT_DEPS = ("requirements.lock", "pipelines", "models")
STAGES = ("ingest", "resample", "prompts", "embed")
#: Sections of params that a workspace has no use for.
UNUSED = {"experiments": {}, "sweep": None}


class Workspace(Folders):
    """The workspace of `site`: the paths of `Folders`, and where its studies come from. Raises `UsageError` for a site that params do not name."""

    site: str
    project: Path
    service: Service

    def __init__(self, site: str, project: Path = PROJECT) -> None:
        settings = service(project)
        if site not in settings.sites:
            raise UsageError(f"there is no site {site!r} in params service.sites; known: {', '.join(sorted(settings.sites)) or 'none'}")
        super().__init__(Path(project).resolve() / settings.root / site)
        self.__dict__.update(site=site, project=Path(project).resolve(), service=settings)  # frozen, as Folders is

    @property
    def settings(self) -> Site:
        """What params say of this site."""
        return self.service.sites[self.site]

    @property
    def source(self) -> Path:
        """The folder of studies that stage ingest reads: the watched one, else the inbox."""
        return self.project / self.settings.folder if self.settings.folder else self.inbox

    @cached_property
    def params_content(self) -> dict:
        """params.yaml of this workspace, checked, every default spelled out (DVC wants every key it tracks)."""
        return compose(self)

    def seen_from_project(self, path: Path) -> str:
        """A path as commands have it, which run from the project's folder."""
        return str(path.relative_to(self.project)) if path.is_relative_to(self.project) else str(path)

    def other(self, site: str) -> Workspace:
        return Workspace(site, self.project)


def service(project: Path = PROJECT) -> Service:
    """Section `service` of the project's params."""
    return load_params(Path(project) / "params.yaml").service


def compose(workspace: Workspace) -> dict:
    """The project's params with the sections of `service.cohort`, for this site's studies."""
    project, cohort = workspace.project, workspace.service.cohort
    content = yaml.safe_load((project / "params.yaml").read_text())
    conf = project / CONF / f"{cohort}.yaml"
    if content["cohort"]["name"] != cohort:
        if not conf.is_file():
            raise UsageError(f"params service.cohort is {cohort!r}, which is neither params.yaml's own nor a file of {CONF}")
        content |= {name: section for name, section in yaml.safe_load(conf.read_text()).items() if name not in UNUSED}
    content["cohort"] = content["cohort"] | {"name": workspace.site, "source": workspace.seen_from_project(workspace.source),
                                             "site": {"constant": workspace.site}, "targets": "all"}
    content |= UNUSED | {"root": os.path.relpath(project, workspace.folder), "file": workspace.seen_from_project(workspace.params)}
    try:
        return Params(**content).model_dump(mode="json")
    except ValidationError as error:
        raise UsageError(f"the params of site {workspace.site!r} have {error.error_count()} problem(s): " + " | ".join(explain(error))) from None


def guarded(content: Mapping) -> dict:
    """The params with a rule before all others that leaves out what flows.predict has stored back: a prediction is not a label to learn from."""
    rules = [Rule(**OWN_RULE).model_dump(mode="json"), *content["ingest"]["rules"]]
    return {**content, "ingest": {**content["ingest"], "rules": rules}}


def lay_out_site(site: str, project: Path = PROJECT) -> Workspace:
    """Make the workspace, or bring its params, graph and digests of code up to date. What has not changed is not written."""
    workspace = Workspace(site, project)
    workspace.inbox.mkdir(parents=True, exist_ok=True)
    _dvc_project(workspace.folder)
    note = f"# Laid out from params.yaml and {TEMPLATE} by tasks/site.py. Edit those; this file is overwritten.\n"
    graph, code = site_graph(workspace)
    for path, content in ((workspace.params, guarded(workspace.params_content)), (workspace.folder / "dvc.yaml", graph)):
        write_if_changed(path, note + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=150))
    for stage, digests in code_digests(workspace, code).items():
        write_if_changed(workspace.folder / "code" / f"{stage}.tsv", "".join(f"{digest}\t{path}\n" for path, digest in digests.items()))
    write_if_changed(workspace.folder / "inbox.json", json.dumps(arrivals(workspace), indent=2) + "\n")
    return workspace


def _dvc_project(folder: Path) -> None:
    """Make a folder a DVC project, and take away what a kill or a full disk has left of DVC's own notes.

    DVC writes them in place and will not work beside half of one. Without them it finds out again: at worst, stages run again.
    """
    lock = folder / "dvc.lock"
    (folder / ".dvc").mkdir(exist_ok=True)
    write_if_changed(folder / ".dvc" / "config", DVC_CONFIG)
    (folder / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)  # of processes that are gone: one run works here at a time
    if lock.is_file() and not _valid(lock):
        lock.unlink()


def _valid(lock: Path) -> bool:
    """Whether DVC can read a dvc.lock."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(lock.read_text(), yaml.CSafeLoader))
    except (Invalid, yaml.YAMLError, ValueError):
        return False
    return True


def site_graph(workspace: Workspace) -> tuple[dict, dict[str, list[str]]]:
    """dvc.yaml of the workspace, and stage -> the code that it depends on, as the template names it."""
    text = (workspace.project / TEMPLATE).read_text()
    values = {"root": workspace.params_content["root"], "workspace": workspace.seen_from_project(workspace.folder),
              "source": workspace.seen_from_project(workspace.source)}
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", shlex.quote(value))
    graph, code = yaml.safe_load(text.replace("${site}", workspace.site)), {}
    for name, stage in graph["stages"].items():
        code[name] = [dep for dep in stage["deps"] if dep.split("/")[0] in PROJECT_DEPS]
        stage["deps"] = [f"code/{name}.tsv", *(dep for dep in stage["deps"] if dep not in code[name])]
    return graph, code


def code_digests(workspace: Workspace, code: Mapping[str, list[str]]) -> dict[str, dict[str, str]]:
    """Stage -> file -> SHA-256 of everything that the stage's code deps name. Files that have not been touched since are not read again."""
    notes = workspace.folder / ".code.json"
    remembered, before = Remembered(notes), notes.stat().st_mtime_ns if notes.is_file() else None
    files = {stage: [path for dep in deps for path in _files(workspace.project / dep)] for stage, deps in code.items()}
    found = {stage: {path.relative_to(workspace.project).as_posix(): remembered.sha256(path) for path in paths} for stage, paths in files.items()}
    text = json.dumps(found, sort_keys=True)
    if before is None or remembered.of_key("digests", "all") != text:
        remembered.keep_of_key("digests", "all", text)
        remembered.save()
    return found


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return sorted(path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."))


def arrivals(workspace: Workspace) -> dict[str, object]:
    """How many files have arrived, and a digest of their names, sizes and times. No name is kept: it may be a patient's."""
    digest, count, size = hashlib.sha256(), 0, 0
    for path, stat in _listing(workspace.source):
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        count, size = count + 1, size + stat.st_size
    return {"files": count, "bytes": size, "digest": digest.hexdigest()}


def still_arriving(workspace: Workspace) -> int:
    """Files of a watched folder that changed in the last `settle_s` seconds. What a PACS sent is seen only when whole."""
    if workspace.settings.pacs is not None or workspace.settings.settle_s == 0:
        return 0
    limit = time.time() - workspace.settings.settle_s
    return sum(stat.st_ctime > limit for _, stat in _listing(workspace.source))  # ctime: copying may keep the time of the original


def _listing(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Files below a folder that ingest would look at, sorted."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.parent / name != folder / "quarantine.tsv":
                with contextlib.suppress(FileNotFoundError):
                    yield str(path.relative_to(folder)), path.stat()


def inputs(workspace: Workspace) -> str:
    """Everything that a run of the site depends on by itself, as hex: studies, params and code."""
    _, code = site_graph(workspace)
    settings = workspace.service.model_dump(mode="json", include={"cohort", "adapt", "roles", "gate"}) | {"checked": workspace.settings.checked}
    content = {"arrivals": arrivals(workspace), "params": workspace.params_content | {"service": settings}, "code": code_digests(workspace, code),
               "graph": (workspace.project / TEMPLATE).read_text()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_state(workspace: Workspace) -> dict:
    """What the last finished run left; empty before the first."""
    return json.loads(workspace.state.read_text()) if workspace.state.is_file() else {}


def write_state(workspace: Workspace, inputs_digest: str, outcome: Mapping[str, object]) -> None:
    """The last thing that a run does: what it had seen, and what came of it."""
    write_json(workspace.state, {"inputs": inputs_digest, **outcome})


@contextlib.contextmanager
def at_work(workspace: Workspace) -> Iterator[bool]:
    """Whether this run may work on the site: False while another one does. Freed by the kernel when the process dies."""
    workspace.folder.mkdir(parents=True, exist_ok=True)
    with (workspace.folder / ".run.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def data_of(workspaces: list[Workspace], *, change: bool = False) -> Iterator[None]:
    """Hold the data of sites still while they are read, or keep readers away while a site's data change. Waits for the others.

    A site reads earlier sites only, so that no two ever wait for each other.
    """
    with contextlib.ExitStack() as stack:
        for workspace in workspaces:
            workspace.folder.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context((workspace.folder / ".data.lock").open("w"))
            fcntl.flock(handle, fcntl.LOCK_EX if change else fcntl.LOCK_SH)
        yield
