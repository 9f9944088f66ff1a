"""Serve the flows: a process that waits for the Prefect server to ask for a run, by hand in its UI or by schedule.

The schedule is there but off until someone turns it on, here or in the UI: a laptop should not start to train by itself.
"""

from __future__ import annotations

import os
from datetime import timedelta

import cyclopts
from prefect.deployments.runner import EntrypointType
from prefect.schedules import Cron, Interval, Schedule

from flows.reproduce import reproduce
from pipelines import cli
from pipelines.errors import UsageError
from tasks.environment import PROJECT

DEPLOYMENT = "semiflow"
NIGHTLY = "0 3 * * *"

app = cyclopts.App(name="python -m flows.serve", help_format="plaintext")


@app.default
def main(cohort: str | None = None, schedule: str | None = None) -> None:
    """Serve `reproduce` until stopped, one run at a time.

    COHORT is a file of conf/cohort/, else the cohort of params.yaml. SCHEDULE (or $SEMIFLOW_SCHEDULE) turns the schedule on: five cron
    fields, or a number of seconds between runs. Without it there is a nightly one, switched off.

    Example: python -m flows.serve --cohort tcga-lgg --schedule "0 3 * * *"
    """
    chosen = schedule_of(schedule or os.environ.get("SEMIFLOW_SCHEDULE"))
    os.chdir(PROJECT)  # runs are started from here
    reproduce.serve(name=DEPLOYMENT, schedules=[chosen], parameters={"cohort": cohort}, limit=1, global_limit=1, description=reproduce.__doc__,
                    entrypoint_type=EntrypointType.MODULE_PATH)


def schedule_of(text: str | None) -> Schedule:
    """The one schedule of the deployment: active where `text` gives it, else nightly and off."""
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
