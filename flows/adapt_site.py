"""Adapt to one site: what has arrived is ingested and embedded, a challenger is trained, judged against the champion, and promoted or not.

Run it as often as you like: what is finished is not done again, a killed run is taken up where it was, and a run that finds nothing new reads no
image. One run works on a site at a time; several sites may be adapted to at once.
"""

from __future__ import annotations

import json
from pathlib import Path

import cyclopts
from prefect import State, flow
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.states import Completed

from pipelines import cli
from tasks.adaptation import earlier_workspaces, give_roles, promote, receive, settled, tell, write_lesson
from tasks.dvc_stage import run_stage
from tasks.environment import PROJECT
from tasks.runs import WATCHED
from tasks.site import STAGES, Workspace, arrivals, at_work, data_of, inputs, lay_out_site, read_state, still_arriving, write_state

ASK_AGAIN_S = 3  # how often a run that waits for a person asks the server for the answer

app = cyclopts.App(name="python -m flows.adapt_site", help_format="plaintext")


class Approval(RunInput):
    """The answer of a person to a challenger that has passed the gate."""

    promote: bool
    reason: str = ""


@flow(name="adapt-site", flow_run_name="adapt-{site}", validate_parameters=False, **WATCHED)
def adapt_site(site: str, project: Path = PROJECT) -> State:
    """Adapt to what is new at a site. The state's message says what came of it; its data hold `outcome` and `reasons`."""
    workspace = Workspace(site, Path(project))
    with at_work(workspace) as free:
        if not free:
            return ended(workspace, "busy", ["another run is at work on this site"])
        receive(workspace)
        if files := still_arriving(workspace):
            return ended(workspace, "arriving", [f"{files} file(s) changed in the last {workspace.settings.settle_s:g} s; the next run reads them"])
        if not arrivals(workspace)["files"]:
            return ended(workspace, "empty", ["no study has arrived yet"])
        seen = inputs(workspace)
        if read_state(workspace).get("inputs") == seen:
            return ended(workspace, "unchanged", ["nothing new has arrived since the last run"])
        verdict = adapt_to_what_is_new(lay_out_site(site, workspace.project))
        write_state(workspace, seen, {"outcome": verdict["decision"], "reasons": verdict["reasons"], "asked": verdict.get("asked", {}),
                                      "content": verdict.get("challenger") or read_state(workspace).get("content")})
        return ended(workspace, verdict["decision"], verdict["reasons"], told=True)


def adapt_to_what_is_new(workspace: Workspace) -> dict:
    """The stages, the gate, the promotion. Returns the verdict."""
    stage = run_stage.with_options(retries=workspace.service.retries)
    asked = earlier_workspaces.submit(workspace)  # beside the stages, because loading MLflow takes seconds
    with data_of([workspace], change=True):
        stage(" ".join(STAGES), workspace.folder, workspace.service.timeout_s)
        give_roles(workspace)
    earlier = asked.result()
    with data_of(earlier):
        if lacking := write_lesson(workspace, earlier):
            verdict = {"decision": "wait", "reasons": [f"too few cases: {'; '.join(lacking)}"]}
            tell(workspace, verdict)
            return verdict
        stage("adapt", workspace.folder, workspace.service.timeout_s)
        if verdict := settled(workspace):
            tell(workspace, verdict)
            return verdict
        stage("judge", workspace.folder, workspace.service.timeout_s)
    verdict = approved(workspace, json.loads(workspace.verdict.read_text()))
    tell(workspace, verdict, promote(workspace, verdict))
    return verdict


def approved(workspace: Workspace, verdict: dict) -> dict:
    """The verdict after a person has been asked, where params want that. No answer is a no. An answer holds for the challenger it was given on."""
    gate = workspace.service.gate
    if verdict["decision"] != "promote" or not gate.approval:
        return verdict
    answer = read_state(workspace).get("asked", {}).get(verdict["challenger"])
    if answer is None:
        tell(workspace, verdict)
        try:
            given = pause_flow_run(wait_for_input=Approval, timeout=int(gate.approval_hours * 3600), poll_interval=ASK_AGAIN_S)
            answer = {"promote": given.promote, "reason": given.reason}
        except FlowPauseTimeout:
            answer = {"promote": False, "reason": f"no answer in {gate.approval_hours:g} hours"}
    said = "approved by a person" if answer["promote"] else "the gate passed it, a person did not"
    reason = said + (f": {answer['reason']}" if answer["reason"] else "")
    return {**verdict, "decision": "promote" if answer["promote"] else "keep", "reasons": [reason, *verdict["reasons"]],
            "asked": {verdict["challenger"]: answer}}


def ended(workspace: Workspace, outcome: str, reasons: list[str], *, told: bool = False) -> State:
    """The end of a run that went as it should, whatever was decided."""
    get_run_logger().info("%s: %s", outcome, reasons[0])
    if not told:
        tell(workspace, {"decision": outcome, "reasons": reasons})
    return Completed(message=f"{outcome}: {reasons[0]}", data={"site": workspace.site, "outcome": outcome, "reasons": reasons})


@app.default
def main(site: str) -> None:
    """Adapt to what is new at SITE, a name of params service.sites. Works without a server; with `make up` the run shows in its UI.

    Example: python -m flows.adapt_site site-b
    """
    result = adapt_site(site)
    print(f"{site}: {result['outcome']}", *result["reasons"], sep="\n- ")


if __name__ == "__main__":
    cli.run(app)
