"""What serving sees to beside the deployments: runs that make up for missed ones, automations for a person to turn on, secrets."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import yaml
from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.actions import RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from tasks.runs import TAG

DRIFT_EVENT = "semiflow.drift.detected"
SITE_RESOURCE = "semiflow.site."  # and the site's name
#: The name of the Prefect block that tells someone; a person makes it, because its address is a secret.
NOTIFY_BLOCK = "semiflow-notify"
TELL = "semiflow: tell someone when a site drifts"


def missed(schedule: CronSchedule | IntervalSchedule, last: datetime, now: datetime) -> bool:
    """Whether a run was due after `last` and before `now`."""
    if isinstance(schedule, IntervalSchedule):
        return last + schedule.interval <= now
    from prefect.server.schemas.schedules import CronSchedule as Dates

    cron = Dates(cron=schedule.cron, timezone=schedule.timezone or "UTC")
    return bool(asyncio.run(cron.get_dates(n=1, start=last + timedelta(seconds=1), end=now)))


def catch_up(served: Mapping[UUID, CronSchedule | IntervalSchedule]) -> list[UUID]:
    """Ask for one run of each deployment (`served`, by its active schedule) whose last completed run is older than the schedule's last date.

    The machine was off, or nothing served. One run is enough, however many were missed: it works off all that is new. A deployment that never
    completed a run waits for its first date.
    """
    caught, now = [], datetime.now(UTC)
    completed = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED])))
    with get_client(sync_client=True) as client:
        for deployment, schedule in served.items():
            last = client.read_flow_runs(flow_run_filter=completed, deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
                                         sort=FlowRunSort.END_TIME_DESC, limit=1)
            if last and missed(schedule, last[0].start_time or last[0].created, now):
                client.create_flow_run_from_deployment(deployment, tags=["catch-up"])
                caught.append(deployment)
    return caught


def start(deployment: UUID) -> None:
    """Ask for one run of a deployment now."""
    with get_client(sync_client=True) as client:
        client.create_flow_run_from_deployment(deployment)


def automations(adapt: Mapping[str, UUID]) -> list[str]:
    """Offer to adapt a site when it drifts (`adapt`: site -> its deployment), and to tell someone where a block `semiflow-notify` exists.

    They begin switched off; whether they are on is a person's choice and is kept. Returns the names of all there are.
    """
    wanted = [_automation(f"semiflow: adapt {site} when it drifts", site, RunDeployment(source="selected", deployment_id=deployment))
              for site, deployment in adapt.items()]
    with get_client(sync_client=True) as client:
        block = next((block.id for block in client.read_block_documents(include_secrets=False) if block.name == NOTIFY_BLOCK), None)
        if block:
            body = "{{ event.payload['sentence'] }}"
            wanted.append(_automation(TELL, "*", SendNotification(block_document_id=block, subject="semiflow: {{ event.resource.name }}", body=body)))
        for automation in wanted:
            _keep(client, automation)
    return [automation.name for automation in wanted]


def _automation(name: str, site: str, action: RunDeployment | SendNotification) -> AutomationCore:
    trigger = EventTrigger(expect={DRIFT_EVENT}, match={"prefect.resource.id": f"{SITE_RESOURCE}{site}"}, for_each={"prefect.resource.id"},
                           posture=Posture.Reactive, threshold=1, within=timedelta(0))
    return AutomationCore(name=name, description="Off until a person turns it on.", enabled=False, trigger=trigger, actions=[action], tags=[TAG])


def _keep(client, automation: AutomationCore) -> None:
    """Create an automation, or bring the one of that name up to date."""
    found, *more = client.read_automations_by_name(automation.name) or [None]
    if found is None:
        client.create_automation(automation)
        return
    for extra in more:
        client.delete_automation(extra.id)
    if [found.trigger.match, found.actions] != [automation.trigger.match, automation.actions]:
        client.update_automation(found.id, automation.model_copy(update={"enabled": found.enabled}))


def fill_secrets(files: Iterable[Path]) -> list[str]:
    """Set the environment variables that PACS files name for their secrets and that are not set, from Prefect blocks of type Secret.

    PACS_PASSWORD comes from the block `pacs-password`. Returns the names of those that were set; the runs that are started from here inherit them.
    """
    from prefect.blocks.system import Secret

    filled = []
    for name in sorted({name for path in files if path.is_file() for name in _variables(yaml.safe_load(path.read_text()))}):
        if os.environ.get(name):
            continue
        with contextlib.suppress(ValueError):  # there is no such block; who needs the secret says that it is missing
            os.environ[name] = str(Secret.load(name.lower().replace("_", "-")).get())
            filled.append(name)
    return filled


def _variables(content: object) -> Iterator[str]:
    """Names of environment variables in the content of a PACS file: `{env: NAME}`, however deep."""
    if isinstance(content, dict):
        if isinstance(content.get("env"), str):
            yield content["env"]
        for value in content.values():
            yield from _variables(value)
