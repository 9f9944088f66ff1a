"""One DVC stage as one Prefect task. DVC knows what is stale and keeps the results; Prefect knows when, shows the state and retries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from pipelines.errors import DataError, UsageError
from tasks import guard
from tasks.environment import FLOW_RUN_VARIABLE, PROJECT, tool_path

#: How long one stage may take before it counts as hung.
STAGE_TIMEOUT_S = 4 * 3600.0


class StageFailed(DataError):
    """A stage ended with an error. `expected` when it said why itself: then running it again says the same."""

    def __init__(self, message: str, expected: bool):
        super().__init__(message)
        self.expected = expected

    def __reduce__(self):
        return StageFailed, (str(self), self.expected)


def stages(target: str | None = None, project: Path = PROJECT) -> list[str]:
    """Addresses of the stages that `target` (a DVC target, None: the whole graph) needs, itself included, each after what it depends on."""
    command = [*dvc_command(), "dag", "--dot", *([target] if target else [])]
    result = subprocess.run(command, cwd=project, env=dvc_environment(), capture_output=True, text=True, check=False)
    if result.returncode:
        raise UsageError(f"dvc cannot read the graph of {target or 'dvc.yaml'}: {error_line(result.stderr.splitlines())}")
    return order(result.stdout)


def order(dot: str) -> list[str]:
    """Stage names of a graph in DOT (as `dvc dag --dot` prints it), each after those it depends on; equal graphs give equal lists."""
    graph: TopologicalSorter[str] = TopologicalSorter()
    for line in dot.splitlines():
        match re.findall(r'"([^"]+)"', line):
            case [stage]:
                graph.add(stage)
            case [before, after]:
                graph.add(after, before)
    return list(graph.static_order())


def _worth_retrying(_task, _run, state) -> bool:
    """Again after a crash (memory, a lock, a kill), not after a stage that explained what is wrong."""
    try:
        state.result()
    except StageFailed as failure:
        return not failure.expected
    except Exception:
        return True
    return False


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=2, retry_condition_fn=_worth_retrying)
def run_stage(stage: str, project: Path = PROJECT, timeout_s: float = STAGE_TIMEOUT_S) -> str:
    """Bring a stage up to date with `dvc repro --single-item`; returns 'ran' or 'unchanged'. The stages before it must be up to date.

    `stage` may name several, a blank between them, for one DVC to take in turn: a DVC of its own costs each over a second. `timeout_s` is for each.
    """
    logger, names = get_run_logger(), stage.split()
    lines = repro(names, project, timeout_s * len(names), logger.info)
    return "ran" if any(line.startswith("Running stage") for line in lines) else "unchanged"


def repro(targets: Sequence[str], project: Path, timeout_s: float, show=print) -> list[str]:
    """`dvc repro --single-item` on each target, every line handed to `show`. Whatever ends this call early ends the stage's processes too."""
    process = guard.start([*dvc_command(), "repro", "--single-item", *targets], project, dvc_environment())
    started, lines = time.monotonic(), []
    alarm = threading.Timer(timeout_s, guard.kill, [process])
    alarm.daemon = True
    alarm.start()
    try:
        for line in process.stdout:
            if line := line.rstrip():
                lines.append(line)
                show(line)
        status = process.wait()
    finally:
        alarm.cancel()
        guard.kill(process)
    if status:
        stage = running(lines) or " ".join(targets)
        if time.monotonic() - started >= timeout_s:
            raise StageFailed(f"{stage} took longer than {timeout_s:g} s and was stopped; it resumes where it was", expected=True)
        raise StageFailed(f"{stage} failed: {error_line(lines)}", expected=_explained(lines))
    return lines


def running(lines: Sequence[str]) -> str:
    """The stage that DVC's lines end in; nothing where none was started."""
    started = [match[1] for line in lines if (match := re.match(r"Running stage '(.+)':", line))]
    return started[-1] if started else ""


def error_line(lines: Sequence[str]) -> str:
    """The line that says most about a failure: the stage's own last 'error:', else DVC's, else the last one."""
    for start in ("error: ", "ERROR: "):
        for line in reversed(lines):
            if line.startswith(start):
                return line.removeprefix(start)
    return lines[-1] if lines else "it said nothing"


def _explained(lines: Sequence[str]) -> bool:
    return any(line.startswith("error: ") for line in lines)


def dvc_command() -> list[str]:
    """DVC of this Python, wherever PATH points."""
    return [sys.executable, "-m", "dvc"]


def dvc_environment() -> dict[str, str]:
    """The environment of a stage: this Python first on PATH, lines as they come."""
    return os.environ | {"PATH": tool_path(), "PYTHONUNBUFFERED": "1", FLOW_RUN_VARIABLE: flow_run.id or ""}
