"""What has to hold of a site after a harm: at once for its champion, and after the next run for everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults_hospital import ARCHIVED, Clinic
from pipelines.cohort import MANIFEST, read_manifest
from pipelines.ingest.pseudonyms import Pseudonyms
from pipelines.outputs import sha256
from pipelines.params import load_params
from pipelines.sites.lesson import digest, labelled
from pipelines.sites.roles import Given, read_roles
from tasks import champions
from tasks.dvc_stage import dvc_command, dvc_environment
from tasks.site import Workspace

#: Images of a study of the hospital (see tests/tiny_hospitals.py).
IMAGES = 4
#: Names shorter than this stand in other words.
SHORTEST_NAME = 5
#: How folders are called while they are not whole: pipelines/outputs.py. (The temporary of a killed `staged_file` stays; no stage reads it.)
UNFINISHED = re.compile(r"^\..*\.(partial|old)$")


def roles_before(workspace: Workspace) -> list[Given]:
    return read_roles(workspace.roles)


def check_now(clinic: Clinic, workspace: Workspace, had: bool) -> list[str]:
    """At any moment: the site's own copy of its champion and the model that the registry names are whole, and load."""
    try:
        return list(_champion(clinic, workspace, had=had, fresh=False))
    finally:
        _forget_store()


def check_after(clinic: Clinic, workspace: Workspace, before: list[Given]) -> list[str]:
    """After the next run: everything. `before`: the roles that had been given before the harm."""
    try:
        return [*_champion(clinic, workspace, had=True, fresh=True), *_cases(clinic, workspace, before), *_whole(workspace), *_versions(workspace),
                *_leaks(clinic)]
    finally:
        _forget_store()


def pseudonym(clinic: Clinic, patient: Path) -> str:
    """What the patient of a study is called in the outputs."""
    from pydicom import dcmread

    header = dcmread(next(patient.rglob("*.dcm")), stop_before_pixels=True)
    key = Path(load_params(clinic.project / "params.yaml").cohort.pseudonym_key)
    return Pseudonyms((clinic.project / key).read_bytes().strip())("subject", str(header.PatientID), str(header.get("IssuerOfPatientID", "")))


def _champion(clinic: Clinic, workspace: Workspace, *, had: bool, fresh: bool) -> Iterator[str]:
    """`had`: there has to be one; `fresh`: the site's copy is of the version that the registry names, and predicts."""
    if not clinic.registry.is_file():
        return
    served = champions.serving(workspace.site, workspace.project)
    copied = json.loads((workspace.champion / "champion.json").read_text()) if workspace.champion.exists() else None
    if copied is None:
        if (fresh and served) or (had and not fresh):
            yield "the site has no copy of its champion"
        return
    if fresh and (served is None or served.as_json() != {name: copied[name] for name in ("model", "version")}):
        yield f"the site's copy is version {copied['version']}, the registry's champion {served and served.version}"
    with champions.registry(workspace.project) as client:
        known = client.get_model_version(copied["model"], str(copied["version"])).tags[champions.CONTENT_TAG]
    if digest(workspace.champion) != known:
        yield f"the files of the site's copy of version {copied['version']} are not those that were registered"
    yield from _loads(workspace, workspace.champion, predict=fresh)
    if served and not fresh:
        with tempfile.TemporaryDirectory(dir=clinic.hospital.folder) as scratch:
            again = champions.fetch(workspace.site, Path(scratch, "champion"), workspace.project)
            if digest(again) != served.content:
                yield f"the registry's version {served.version} is not what its tag says"
            yield from _loads(workspace, again, predict=False)


def _loads(workspace: Workspace, bundle: Path, *, predict: bool) -> Iterator[str]:
    """Load a model as it is served, and predict the site's first labelled case."""
    import numpy as np

    from pipelines.drift.calibrated import load_champion
    from pipelines.params import Params
    from pipelines.sites.cases import fitting, load_cases

    try:
        fitted = load_champion(bundle, Params(**workspace.params_content))
        if predict:
            cases = load_cases(workspace.folder, fitted.task.backbone.fingerprint)
            probability = fitted.predict(fitting(cases[min(cases)], fitted))
            if not np.allclose(probability.sum(0), 1, atol=1e-3):  # of nothing but numbers, too
                yield "what the champion predicts is no probability"
    except Exception as error:  # whatever it is, the champion cannot serve
        yield f"the champion does not work: {type(error).__name__}: {error}"


def _cases(clinic: Clinic, workspace: Workspace, before: list[Given]) -> Iterator[str]:
    """Every study that has arrived is a case, once, everywhere."""
    wanted = Counter(pseudonym(clinic, folder) for folder in clinic.arrived[workspace.site])
    for folder in (workspace.bids, workspace.resampled):
        table = read_manifest(folder)
        for kind, each in (("image", IMAGES), ("label", 1)):
            if Counter(table[table.kind == kind].subject) != Counter(dict.fromkeys(wanted, each)):
                yield f"{folder.name} has {int((table.kind == kind).sum())} {kind}s of {table.subject.nunique()} patients, {len(wanted)} arrived"
    cases, roles = labelled(workspace.resampled), read_roles(workspace.roles)
    lesson = json.loads(workspace.lesson.read_text())["cases"]
    if Counter(entry.subject for entry in roles) != wanted:
        yield f"{len(roles)} roles for {len(wanted)} patients"
    if roles[:len(before)] != before:
        yield "a role has changed"
    given = {entry.subject: entry.role for entry in roles}
    if set(lesson) != set(cases) or any(case["role"] != given.get(case["subject"]) for case in lesson.values()):
        yield f"the lesson has {len(lesson)} cases, or other roles; {len(cases)} are there"
    judged = Counter((row["site"], row["case"]) for row in json.loads(workspace.verdict.read_text())["cases"])
    query = {name for name, case in lesson.items() if case["role"] == "query"}
    if set(judged.values()) - {1} or {name for site, name in judged if site == workspace.site} - query:
        yield "the verdict has a case twice, or one that is no query case"


def _whole(workspace: Workspace) -> Iterator[str]:
    """No half-written file is where a stage looks, and DVC finds nothing to do."""
    for folder in (workspace.bids, workspace.resampled):
        written = {row.path: row.sha256 for row in read_manifest(folder).itertuples()}
        found = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*.nii.gz") if not path.name.startswith(".")}
        if found != written:
            yield f"{folder.name} has {len(set(found.items()) ^ set(written.items()))} volume(s) that {MANIFEST} does not know, or knows otherwise"
    for path in workspace.folder.rglob("*"):
        if UNFINISHED.match(path.name) and ".dvc" not in path.relative_to(workspace.folder).parts:
            yield f"{path.relative_to(workspace.folder)} was left behind"
    command = [*dvc_command(), "status", "--json"]
    status = subprocess.run(command, cwd=workspace.folder, env=dvc_environment(), capture_output=True, text=True, check=False)
    if status.returncode or json.loads(status.stdout) != {}:
        yield f"dvc status: {status.stdout.strip() or status.stderr.strip()}"


def _versions(workspace: Workspace) -> Iterator[str]:
    """No model is registered twice, and no run of the registry is left open."""
    with champions.registry(workspace.project) as client:
        versions = client.search_model_versions(f"name = '{champions.model_name(workspace.site)}'")
        if twice := [content for content, times in Counter(version.tags[champions.CONTENT_TAG] for version in versions).items() if times > 1]:
            yield f"{len(twice)} model(s) registered more than once"
        runs = client.search_runs([client.get_experiment_by_name(champions.MLFLOW_EXPERIMENT).experiment_id], f"tags.site = '{workspace.site}'")
        states = Counter(run.info.status for run in runs)
        if states["RUNNING"]:
            yield f"{states['RUNNING']} run(s) of the registry left open"
        if states["FINISHED"] != len(versions):
            yield f"{states['FINISHED']} finished runs of {len(versions)} versions"


def _leaks(clinic: Clinic) -> Iterator[str]:
    """No identifier of any patient in a file or a file's name outside the watched folder's inbox."""
    from pydicom import dcmread

    words = set()
    for patient in (folder for site in clinic.arrived.values() for folder in site):
        words |= {patient.name, *(part for part in patient.name.split("_") if len(part) >= SHORTEST_NAME)}
        for series in patient.iterdir():
            header = dcmread(next(series.glob("*.dcm")), stop_before_pixels=True)
            words |= {str(header.PatientName), str(header.AccessionNumber), str(header.StudyInstanceUID), str(header.SeriesInstanceUID)}
    places = [clinic.sites, clinic.project / "mlruns", clinic.hospital.folder / "prefect", clinic.hospital.folder / "logs",
              clinic.hospital.folder / ".run"]
    watched = ["--exclude-dir=inbox", "--exclude=identity.py"]  # a model holds its code, and the phantoms' code the names that it invents
    given = "\n".join(sorted(word for word in words if word)) + "\n"
    searches = [[*watched, *places], [clinic.workspace(ARCHIVED).inbox]]  # what an archive sent is de-identified on arrival
    for options in searches:
        found = subprocess.run(["grep", "-rlaFf", "-", *map(str, options)], input=given, capture_output=True, text=True, check=False).stdout
        yield from (f"{Path(name).relative_to(clinic.hospital.folder)} holds an identifier" for name in found.splitlines())
    for place in places:
        for parent, folders, files in os.walk(place):
            folders[:] = [name for name in folders if name != "inbox"]
            if any(word in name for name in [*folders, *files] for word in words if word):
                yield f"a name in {Path(parent).relative_to(clinic.hospital.folder)} holds an identifier"


def _forget_store() -> None:
    """MLflow keeps the store that it was last pointed at in the environment, where the next project would find it."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
