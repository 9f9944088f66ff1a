"""Serve the flows: a process that waits for the Prefect server to ask for a run, by hand in its UI, by schedule, or by an automation.

What is served is in params.yaml, section `service`. A schedule that params do not give is there but off until someone turns it on, in params or in
the UI: a laptop should not start to train by itself.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

import cyclopts
from prefect import Flow
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.exceptions import TerminationSignal
from prefect.runner import Runner
from prefect.schedules import Cron, Interval, Schedule

from flows.adapt_site import adapt_site
from flows.drift import drift
from flows.janitor import janitor
from flows.predict import predict
from flows.reproduce import reproduce
from flows.rollback import rollback
from pipelines import cli
from pipelines.errors import UsageError
from pipelines.params import load_params
from pipelines.sites.params import Schedule as Given
from pipelines.sites.params import Service
from tasks.deployed import automations, catch_up, fill_secrets, start
from tasks.environment import PROJECT
from tasks.runs import AGAIN, TAG
from tasks.services import SERVED

DEPLOYMENT = "semiflow"
NIGHTLY, MORNING = "0 3 * * *", "0 6 * * *"
#: Runs of one site that predict at once; more wait in the order they came.
PREDICTIONS = max(2, os.cpu_count() or 2)

app = cyclopts.App(name="python -m flows.serve", help_format="plaintext")


@app.default
def main(cohort: str | None = None, schedule: str | None = None) -> None:
    """Serve every flow until stopped: adapt-site, predict, drift and rollback of each site of params' section service; janitor; reproduce.

    One run at a time for each site; two sites may run side by side. COHORT and SCHEDULE are for `reproduce`: a file of conf/cohort/, else the
    cohort of params.yaml; and five cron fields, or a number of seconds between runs (or $SEMIFLOW_SCHEDULE). Without SCHEDULE there is a nightly one,
    switched off. The sites' schedules are in params.

    Example: python -m flows.serve --cohort tcga-lgg --schedule "0 3 * * *"
    """
    chosen = schedule_of(schedule or os.environ.get("SEMIFLOW_SCHEDULE"))
    os.chdir(PROJECT)  # runs are started from here
    service = load_params(PROJECT / "params.yaml").service
    fill_secrets(PROJECT / site.pacs for site in service.sites.values() if site.pacs)
    wanted = deployments(service, reproduce_as=(cohort, chosen))
    runner = Runner(name=DEPLOYMENT, limit=len(wanted) + PREDICTIONS)  # every deployment has a limit of its own; no long run holds up a short one
    served = {runner.add_deployment(one): one for one in wanted}
    known = {f"{one.flow_name}/{one.name}": key for key, one in served.items()}
    automations({site: known[f"{adapt_site.name}/{site}"] for site in service.sites})
    catch_up({key: one.schedules[0].schedule for key, one in served.items() if one.schedules and one.schedules[0].active})
    start(known[f"janitor/{DEPLOYMENT}"])  # whatever was running when the machine went down is closed first
    print(f"{SERVED}: {', '.join(known)}", flush=True)
    try:
        asyncio.run(runner.start())
    except (KeyboardInterrupt, TerminationSignal):
        print("stopped", flush=True)


def deployments(service: Service, reproduce_as: tuple[str | None, Schedule]) -> list[RunnerDeployment]:
    """What is served, with schedules, tags and limits."""
    cohort, when = reproduce_as
    found = [_deployment(reproduce, DEPLOYMENT, when, parameters={"cohort": cohort}),
             _deployment(janitor, DEPLOYMENT, scheduled(service.janitor), limit=None)]  # one that was killed must not hold up the next
    for site, settings in service.sites.items():
        of_site = {"site": site}
        found += [_deployment(adapt_site, site, scheduled(settings.adapt, NIGHTLY), parameters=of_site, tags=(site, AGAIN)),
                  _deployment(drift, site, scheduled(settings.drift, MORNING), parameters=of_site, tags=(site,)),
                  _deployment(predict, site, parameters=of_site, tags=(site,), limit=PREDICTIONS),
                  _deployment(rollback, site, parameters={**of_site, "reason": "asked for in the Prefect UI"}, tags=(site,))]
    return found


def _deployment(flow: Flow, name: str, schedule: Schedule | None = None, *, parameters: dict | None = None, tags: tuple[str, ...] = (),
                limit: int | None = 1) -> RunnerDeployment:
    return flow.to_deployment(name=name, schedules=[schedule] if schedule else None, parameters=parameters, tags=[TAG, *tags],
                              concurrency_limit=limit, description=flow.fn.__doc__, entrypoint_type=EntrypointType.MODULE_PATH)


def scheduled(given: Given | None, otherwise: str = NIGHTLY) -> Schedule:
    """A schedule of params; where there is none, `otherwise` (cron fields), switched off."""
    if given is None:
        return Cron(otherwise, active=False)
    return schedule_of(given.cron if given.cron else f"{given.every_s:f}")


def schedule_of(text: str | None) -> Schedule:
    """The one schedule of `reproduce`: active where `text` gives it, else nightly and off."""
    if not text:
        return Cron(NIGHTLY, active=False)
    if text.replace(".", "", 1).isdecimal():
        if float(text) <= 0:
            raise UsageError(f"the schedule is every {text} seconds; give a number above 0")
        return Interval(timedelta(seconds=float(text)))
    try:
        return Cron(text)
    except ValueError as error:
        raise UsageError(f"the schedule {text!r} cannot be read ({error}); give cron fields such as {NIGHTLY!r}, or seconds") from None


if __name__ == "__main__":
    cli.run(app)
