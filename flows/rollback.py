"""Take a site's champion out of service: the one before serves again, at once, and the reason is kept with the model.

The model that was rolled back stays in the registry as `previous`, and is not promoted again before there is something new to learn from.
"""

from __future__ import annotations

from pathlib import Path

import cyclopts
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from pipelines import cli
from pipelines.errors import UsageError
from tasks import artifacts, champions
from tasks.environment import PROJECT
from tasks.runs import WATCHED
from tasks.site import Workspace

app = cyclopts.App(name="python -m flows.rollback", help_format="plaintext")


@flow(name="rollback", flow_run_name="rollback-{site}", validate_parameters=False, **WATCHED)
def rollback(site: str, reason: str, project: Path = PROJECT) -> dict[str, object]:
    """Let the previous champion of a site serve again. Returns `model`, `version` and `reason`."""
    Workspace(site, Path(project))  # refuses a site that params do not name
    if not reason.strip():
        raise UsageError("a rollback needs a reason, which is kept with the model; give one")
    champion = go_back(site, reason.strip(), Path(project))
    artifacts.page(artifacts.key_of("rollback", site), f"# {champion.name} version {champion.version} serves {site} again\n\n{reason.strip()}\n")
    return {**champion.as_json(), "reason": reason.strip()}


@task(cache_policy=NO_CACHE, persist_result=False)
def go_back(site: str, reason: str, project: Path) -> champions.Champion:
    """`tasks.champions.rollback` as a task."""
    return champions.rollback(site, project, reason=reason)


@app.default
def main(site: str, reason: str) -> None:
    """Let the previous champion of SITE serve again, and keep the REASON with the model that is taken out of service.

    Example: python -m flows.rollback site-b "misses lesions in the posterior fossa"
    """
    done = rollback(site, reason)
    print(f"{site} is served by {done['model']} version {done['version']} again")


if __name__ == "__main__":
    cli.run(app)
