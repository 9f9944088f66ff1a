"""Does a site still send what its model was made for? Looks, tells on the run's page, and emits an event that an automation can act on."""

from __future__ import annotations

from pathlib import Path

import cyclopts
from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from pipelines import cli
from pipelines.drift.look import look
from pipelines.errors import UsageError
from pipelines.params import load_params
from tasks.artifacts import key_of, page, table
from tasks.deployed import DRIFT_EVENT, SITE_RESOURCE
from tasks.environment import PROJECT
from tasks.runs import WATCHED

app = cyclopts.App(name="python -m flows.drift", help_format="plaintext")


def _run_name() -> str:
    return f"drift-{flow_run.parameters.get('site')}"


@flow(name="drift", flow_run_name=_run_name, retries=0, validate_parameters=False, **WATCHED)
def drift(site: str, project: Path = PROJECT) -> State:
    """Bring sites/<site>/drift.json up to date, show it, and emit `semiflow.drift.detected` where a new look finds drift. The state's message is the
    sentence for a person, its data the report."""
    found, anew = look_at(site, project)
    get_run_logger().info(found["sentence"])
    show(found)
    if anew and found["verdict"] == "drift":
        tell(found)
    return Completed(message=f"{found['verdict']}: {found['sentence']}", data=found)


@task(cache_policy=NO_CACHE, persist_result=False)
def look_at(site: str, project: Path = PROJECT) -> tuple[dict[str, object], bool]:
    """The report on a site's drift, and whether it was made anew (else nothing has changed since the last)."""
    project = Path(project)
    params = load_params(project / "params.yaml")
    if site not in params.service.sites:
        raise UsageError(f"params.yaml has no site {site!r} in service.sites; it has {', '.join(params.service.sites) or 'none'}")
    workspace = project / params.service.root / site
    if not workspace.is_dir():
        return {"site": site, "verdict": "no-champion", "sentence": f"{site} has no workspace yet; run adapt_site once cases have arrived."}, False
    own = workspace / "params.yaml"
    return look(workspace, load_params(own).model_copy(update={"service": params.service}) if own.is_file() else params)


def show(found: dict) -> None:
    """The report on the run's page: the sentence, the tests, and what is new in the headers."""
    site = found["site"]
    lines = [f"**{found['verdict']}**: {found['sentence']}", ""]
    lines += [f"- {name}: distance {test['distance']:.3f}, p = {test['p']:.3g}" for name, test in found.get("tests", {}).items()]
    if errors := found.get("calibration"):
        lines.append(f"- ECE of the champion: {_number(errors['ece_before'])} on its own {errors['cases_before']} query cases, "
                     f"{_number(errors['ece_since'])} on {errors['cases_since']} labelled cases since")
    page(key_of("drift", site), "\n".join(lines))
    if found.get("facts"):
        table(key_of("drift", site, "headers"), [{**entry, "new": str(entry["new"]), "known": str(entry["known"])} for entry in found["facts"]])


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def tell(found: dict) -> None:
    """The event, once for each finding."""
    emit_event(DRIFT_EVENT, {"prefect.resource.id": f"{SITE_RESOURCE}{found['site']}", "prefect.resource.name": found["site"]},
               payload={name: found[name] for name in ("site", "verdict", "sentence", "p")})


@app.default
def main(site: str) -> None:
    """Say whether SITE, one of params' service.sites, still sends what its model was made for.

    Example: python -m flows.drift site-b
    """
    found = drift(site)
    print(f"{found['verdict']}: {found['sentence']}")


if __name__ == "__main__":
    cli.run(app)
