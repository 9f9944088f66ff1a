"""Keep the list of runs true: close those whose process is gone and start what they did again, stop those that run too long, skip those that a later
one stands in for."""

from __future__ import annotations

from pathlib import Path

import cyclopts
from prefect import flow
from prefect.logging import get_run_logger

from pipelines import cli
from pipelines.params import load_params
from tasks.artifacts import table
from tasks.environment import PROJECT
from tasks.runs import WATCHED, close_zombies, skip_overdue, start_again, stop_overtime

app = cyclopts.App(name="python -m flows.janitor", help_format="plaintext")


@flow(name="janitor", retries=0, validate_parameters=False, **WATCHED)
def janitor(project: Path = PROJECT) -> dict[str, list[dict[str, str]]]:
    """Close zombie runs as Crashed, cancel those beyond params `service.timeout_s`, skip overdue scheduled runs but the newest, and start adaptations
    that crashed again, up to `service.retries` times."""
    service = load_params(Path(project) / "params.yaml").service
    done = {"closed": close_zombies(), "stopped": stop_overtime(service.timeout_s), "skipped": skip_overdue(),
            "started": start_again(service.retries)}
    rows = [{"what": what, **run} for what, runs in done.items() for run in runs]
    get_run_logger().info("%d closed, %d stopped, %d skipped, %d started again", *(len(runs) for runs in done.values()))
    if rows:
        table("janitor", rows, "runs that nobody would have finished")
    return done


@app.default
def main() -> None:
    """Look once for runs whose process is gone, and close them.

    Example: python -m flows.janitor
    """
    for what, runs in janitor().items():
        print(f"{what}: {', '.join(run['run'] for run in runs) or 'none'}")


if __name__ == "__main__":
    cli.run(app)
