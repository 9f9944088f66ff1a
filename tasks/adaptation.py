"""What `adapt_site` asks of the outside world, a Prefect task each: fetch studies, give roles, write what is to be learned, promote, tell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from pipelines.outputs import write_json
from pipelines.sites.folders import Folders
from tasks import artifacts, champions
from tasks.site import Workspace, read_state

OPTIONS = {"cache_policy": NO_CACHE, "persist_result": False}


@task(**OPTIONS)
def receive(workspace: Workspace) -> str:
    """Fetch what the site's PACS has and the inbox lacks, de-identified on arrival. Returns a sentence; nothing where a folder is watched."""
    if workspace.settings.pacs is None:
        return ""
    from pipelines.ingest.pseudonyms import Pseudonyms, load_key
    from pipelines.params import Params
    from tasks.pacs.__main__ import deidentified
    from tasks.pacs.config import load_pacs
    from tasks.pacs.retrieve import retrieve

    params = Params(**workspace.params_content)
    key = params.cohort.pseudonym_key
    pseudonyms = Pseudonyms(load_key(workspace.project / key if key else None, data=[workspace.inbox]))
    change, content = deidentified(params, pseudonyms)
    summary = str(retrieve(load_pacs(workspace.project / workspace.settings.pacs), workspace.inbox, pseudonyms,
                           lambda dataset: change(not_made_by_machine(dataset)), content=content))
    get_run_logger().info("%s", summary)
    return summary


def not_made_by_machine(dataset):
    """The data set as it is; raises `Refused` for a segmentation that no person has drawn or corrected.

    Results go back to the archive that studies come from. Taken for labels, they would make a model its own teacher, and judge.
    """
    from pipelines.errors import Refused

    kinds = {str(segment.get("SegmentAlgorithmType", "")) for segment in dataset.get("SegmentSequence", [])}
    if kinds == {"AUTOMATIC"}:
        raise Refused("machine-made", "every segment of this segmentation is of SegmentAlgorithmType AUTOMATIC, so it is a prediction and no label",
                      "have a reader correct it and store it as SEMIAUTOMATIC or MANUAL")
    return dataset


@task(**OPTIONS)
def give_roles(workspace: Workspace) -> dict[str, int]:
    """Give every labelled patient without a role one. Returns how many have each role."""
    from pipelines.sites.lesson import labelled
    from pipelines.sites.roles import ROLES, extend, read_roles, write_roles

    before = read_roles(workspace.roles)
    given = extend(before, [case["subject"] for case in labelled(workspace.resampled).values()], workspace.service.roles)
    write_roles(workspace.roles, given)
    get_run_logger().info("%d new labelled patient(s)", len(given) - len(before))
    return {role: sum(entry.role == role for entry in given) for role in ROLES}


@task(**OPTIONS)
def write_lesson(workspace: Workspace, earlier: Sequence[Workspace]) -> list[str]:
    """Write what the next model is made of and judged on, and fetch the champion, which it may go on from. Returns what there is too little of."""
    from pipelines.sites.lesson import lacking, make_lesson

    champions.fetch(workspace.site, workspace.champion, workspace.project)
    lesson = make_lesson(workspace.site, workspace, {other.site: other.seen_from_project(other.folder) for other in earlier},
                         workspace.service.adapt.rehearsal, workspace.project)
    write_json(workspace.lesson, lesson)
    return lacking(lesson, workspace.service.gate)


@task(**OPTIONS)
def earlier_workspaces(workspace: Workspace) -> list[Workspace]:
    """The workspaces of the sites that were adapted before this one and are still served."""
    names = [name for name in champions.earlier_sites(workspace.site, workspace.project) if name in workspace.service.sites]
    return [other for name in names if (other := workspace.other(name)).resampled.is_dir()]


@task(**OPTIONS)
def settled(workspace: Workspace) -> dict | None:
    """The verdict on this very challenger, where it has been promoted or taken out of service before; else None, and `rival.json` says which
    champion to judge it against."""
    from pipelines.sites.lesson import digest

    champions.fetch(workspace.site, workspace.champion, workspace.project)
    champion, content = champions.serving(workspace.site, workspace.project), digest(workspace.challenger)
    before = json.loads(workspace.verdict.read_text()) if workspace.verdict.is_file() else {}
    if champion and champion.site == workspace.site and champion.content == content:
        if before and read_state(workspace).get("content") != content:  # a run that was killed before it could say so
            return before
        return {"decision": "keep", "reasons": ["no labelled case is new: the champion was made of these very cases"], "numbers": {}, "cases": []}
    if reason := champions.rolled_back(workspace.site, content, workspace.project):
        return {**before, "decision": "keep", "cases": [], "numbers": {},
                "reasons": [f"there is nothing new to learn from: what would be learned is the model that was rolled back ({reason})"]}
    write_json(workspace.rival, champion.as_json() if champion else dict(champions.NOBODY))
    return None


@task(**OPTIONS)
def promote(workspace: Workspace, verdict: Mapping) -> champions.Champion:
    """Record the challenger, give it the aliases that the verdict grants, and bring the site's own copy of its champion up to date."""
    version = champions.promote(workspace.site, workspace.challenger, verdict, workspace.project, tables={"verdict.md": markdown(verdict)})
    champions.fetch(workspace.site, workspace.champion, workspace.project)
    return version


def tell(workspace: Workspace, verdict: Mapping, version: champions.Champion | None = None) -> None:
    """The run's page in Prefect: the verdict, the cases, a picture, the way to MLflow."""
    key = artifacts.key_of("adapt", workspace.site)
    artifacts.page(key, markdown(verdict), f"{workspace.site}: {verdict['decision']}")
    if verdict.get("cases"):
        artifacts.table(f"{key}-cases", rows(verdict), "query cases, champion and challenger")
        if Folders(workspace.folder).picture.is_file():
            artifacts.picture(f"{key}-picture", workspace.picture, "a query case as both models outline it; yellow is the truth")
    if version and version.run_id:
        with champions.registry(workspace.project) as client:
            experiment = client.get_run(version.run_id).info.experiment_id
        artifacts.link(f"{key}-mlflow", artifacts.mlflow_address(experiment, version.run_id), f"{version.name} version {version.version} in MLflow")


def rows(verdict: Mapping) -> list[dict[str, object]]:
    """The cases of a verdict as a table to read."""
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    return [{"site": row["site"], "case": row["case"], "judged before": "yes" if row["known"] else "no", "champion": shown(row["champion_dice"]),
             "challenger": shown(row["dice"]), "ECE champion": shown(row["champion_ece"]), "ECE challenger": shown(row["ece"])}
            for row in verdict.get("cases", [])]


def markdown(verdict: Mapping) -> str:
    """The verdict as a page: what was decided, why, on which cases."""
    lines = [f"# {verdict['decision']}", "", *(f"- {reason}" for reason in verdict["reasons"])]
    table = rows(verdict)
    if table:
        lines += ["", "| " + " | ".join(table[0]) + " |", "|" + "---|" * len(table[0]),
                  *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in table)]
    return "\n".join(lines) + "\n"
