"""Which flow runs are alive, and what to do about those that are not.

A process killed with -9 tells nobody, and its run would stay "Running" for ever. So every run of this project holds a lock on a file of its own
(`<PREFECT_HOME>/runs/<id>.json`), which the kernel frees however the process ends: a lock that can be had proves that nobody is at work, whatever
became of process ids, clocks or the machine since. A run without such a file is never judged by it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectException
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Cancelling, Crashed, State

TAG = "semiflow"  # of every deployment of this project
AGAIN = "starts-again"  # of deployments whose crashed runs are started again
FOLDER = "runs"
#: A run that was handed to a process and has not begun after this long never will: the process that was to begin it is gone.
PENDING_S = 600.0
#: A scheduled run is left alone for this long after its time, because it may be starting just now.
OVERDUE_S = 60.0
PAGE = 200  # what the server gives at a time
ENDED = "its process is gone (killed, out of memory, or the machine went down); what was finished is kept, the next run goes on from there"

_held: dict[str, IO[str]] = {}


def folder() -> Path:
    return Path(get_current_settings().home) / FOLDER


def hold(flow, flow_run: FlowRun, state: State) -> None:
    """Hook: this process is at work on `flow_run` from now on."""
    name = str(flow_run.id)
    if name in _held:  # a retry
        return
    folder().mkdir(parents=True, exist_ok=True)
    handle = (folder() / f"{name}.json").open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # a janitor looks at it this very moment
        fcntl.flock(handle, fcntl.LOCK_EX)
    handle.truncate(0)
    handle.write(json.dumps({"flow": flow.name, "pid": os.getpid(), "host": socket.gethostname()}) + "\n")
    handle.flush()
    _held[name] = handle


def release(flow, flow_run: FlowRun, state: State) -> None:
    """Hook: this process is done with `flow_run`."""
    if handle := _held.pop(str(flow_run.id), None):
        Path(handle.name).unlink(missing_ok=True)
        handle.close()


def _close_copies() -> None:
    """In a forked child: its copies of the locks would outlive the process that they speak of."""
    for handle in _held.values():
        handle.close()
    _held.clear()


os.register_at_fork(after_in_child=_close_copies)

#: What each flow of this project says of itself: `@flow(..., **WATCHED)`.
WATCHED: dict[str, Any] = {"on_running": [hold], "on_completion": [release], "on_failure": [release], "on_crashed": [release],
                           "on_cancellation": [release]}


def alive(run_id: object) -> bool | None:
    """Whether a process is at work on a run; None where none ever said so here."""
    path = folder() / f"{run_id}.json"
    if str(run_id) in _held:
        return True
    try:
        with path.open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return None


def zombie(run: FlowRun, now: datetime) -> bool:
    """Whether nobody will ever finish `run`. A doubt counts for the living."""
    state = run.state
    if state is None:
        return False
    if state.type == StateType.PENDING:
        return alive(run.id) is not True and now - state.timestamp > timedelta(seconds=PENDING_S)
    if state.type == StateType.PAUSED and getattr(state.state_details, "pause_reschedule", False):
        return False  # suspended: no process is meant to wait
    return alive(run.id) is False


@task(cache_policy=NO_CACHE, persist_result=False)
def close_zombies() -> list[dict[str, str]]:
    """Set every run whose process is gone to Crashed, with a sentence. Returns them: name, flow run id, the state they were in."""
    closed, now = [], datetime.now(UTC)
    with get_client(sync_client=True) as client:
        for run in _runs(client, [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.PAUSED]):
            if not zombie(run, now):
                continue
            before = client.read_flow_run(run.id).state  # it may have ended since it was listed
            if before is None or before.type != run.state.type or before.timestamp != run.state.timestamp:
                continue
            client.set_flow_run_state(run.id, Crashed(message=f"closed by the janitor: {ENDED}"), force=True)
            _close_tasks(client, run)
            closed.append({"run": run.name, "id": str(run.id), "was": str(run.state.name)})
        _sweep(client)
    return closed


@task(cache_policy=NO_CACHE, persist_result=False)
def skip_overdue() -> list[dict[str, str]]:
    """Of the runs that a schedule asked for in vain (machine off, or one long run), keep the newest of each deployment and skip the others."""
    skipped = []
    with get_client(sync_client=True) as client:
        for run in superseded(_runs(client, [StateType.SCHEDULED]), datetime.now(UTC)):
            with contextlib.suppress(PrefectException):  # it began after all
                client.set_flow_run_state(run.id, Cancelled(name="Skipped", message="a later run of the same schedule does its work"))
                skipped.append({"run": run.name, "id": str(run.id), "due": run.expected_start_time.isoformat(timespec="seconds")})
    return skipped


def superseded(runs: Iterable[FlowRun], now: datetime) -> list[FlowRun]:
    """Of overdue runs that schedules made, all but the newest of each deployment. What a person asked for is never among them."""
    waiting: dict[object, list[FlowRun]] = defaultdict(list)
    for run in runs:
        if run.auto_scheduled and run.deployment_id and run.expected_start_time and now - run.expected_start_time > timedelta(seconds=OVERDUE_S):
            waiting[run.deployment_id].append(run)
    return [run for overdue in waiting.values() for run in sorted(overdue, key=lambda run: run.expected_start_time)[:-1]]


@task(cache_policy=NO_CACHE, persist_result=False)
def stop_overtime(timeout_s: float) -> list[dict[str, str]]:
    """Cancel served runs that have been running for longer than `timeout_s`; the process that serves them ends theirs."""
    limit, stopped = datetime.now(UTC) - timedelta(seconds=timeout_s), []
    with get_client(sync_client=True) as client:
        for run in _runs(client, [StateType.RUNNING]):
            if run.deployment_id and TAG in run.tags and run.state.timestamp < limit:
                message = f"running for more than {timeout_s:g} s (params service.timeout_s); the next run goes on where it was"
                client.set_flow_run_state(run.id, Cancelling(message=message), force=True)
                stopped.append({"run": run.name, "id": str(run.id), "since": run.state.timestamp.isoformat(timespec="seconds")})
    return stopped


@task(cache_policy=NO_CACHE, persist_result=False)
def start_again(retries: int) -> list[dict[str, str]]:
    """Ask for a run of each deployment tagged `starts-again` whose latest run crashed, unless more than `retries` in a row did. What ended by itself
    (done, failed with a reason, cancelled) is left, and so is what has a run coming up or at work."""
    started = []
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[AGAIN]))):
            runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
                                         sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=PAGE)
            begun = [run for run in runs if run.state and not _coming(run)]
            in_a_row = next((count for count, run in enumerate(begun) if run.state.type != StateType.CRASHED), len(begun))
            if 0 < in_a_row <= retries:
                again = client.create_flow_run_from_deployment(deployment.id, parameters=begun[0].parameters, tags=begun[0].tags)
                started.append({"run": again.name, "id": str(again.id), "after": begun[0].name})
    return started


def _coming(run: FlowRun) -> bool:
    """Whether a run is scheduled for later."""
    return run.state.type == StateType.SCHEDULED and run.expected_start_time is not None and run.expected_start_time > datetime.now(UTC)


def _runs(client, types: list[StateType]) -> list[FlowRun]:
    """All runs in a state of one of `types`."""
    wanted, found = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types))), []
    while len(page := client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=len(found))) == PAGE:
        found += page
    return found + page


def _close_tasks(client, run: FlowRun) -> None:
    """The tasks of a run that is gone do not run either."""
    for part in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])), limit=PAGE):
        if part.state is not None and not part.state.is_final():
            client.set_task_run_state(part.id, Crashed(message="the process of its flow run is gone"), force=True)


def _sweep(client) -> None:
    """Remove the files of runs that are over and of runs that the server does not know (any more)."""
    names = [path.stem for path in folder().glob("*.json") if path.stem not in _held]
    for start in range(0, len(names), PAGE):
        part = names[start:start + PAGE]
        known = {str(run.id): run for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=part)), limit=PAGE)}
        for name in part:
            if name in known and known[name].state and known[name].state.is_final() and alive(name) is False:
                (folder() / f"{name}.json").unlink(missing_ok=True)
