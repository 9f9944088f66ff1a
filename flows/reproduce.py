"""The whole path as a flow: one Prefect task per DVC stage, in the order of the graph, with states to watch and retries.

Without a server Prefect starts one for the time of the run; with `make up` the run shows in its UI.
"""

from __future__ import annotations

from pathlib import Path

import cyclopts
from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from pipelines import cli
from pipelines.params import load_params
from tasks.dvc_stage import run_stage, stages
from tasks.environment import PROJECT
from tasks.lay_out import SHARED_STAGES, lay_out
from tasks.runs import WATCHED

app = cyclopts.App(name="python -m flows.reproduce", help_format="plaintext")


def _run_name() -> str:
    return f"reproduce-{flow_run.parameters.get('cohort') or 'own-cohort'}"


@flow(name="reproduce", flow_run_name=_run_name, validate_parameters=False, **WATCHED)
def reproduce(cohort: str | None = None, project: Path = PROJECT) -> dict[str, str]:
    """Bring every stage of a cohort up to date, then the report and the record over all cohorts. Returns what each stage did."""
    target = lay_out(cohort or load_params(project / "params.yaml").cohort.name, project)
    graph = [*stages(target, project), *SHARED_STAGES]
    get_run_logger().info("%d stages to check", len(graph))
    return {stage: run_stage(stage, project) for stage in graph}


@app.default
def main(cohort: str | None = None) -> None:
    """Reproduce a cohort, one task per stage. COHORT is a file of conf/cohort/; without it, the cohort of params.yaml.

    Example: python -m flows.reproduce --cohort tcga-lgg
    """
    for stage, what in reproduce(cohort).items():
        print(f"{stage}: {what}")


if __name__ == "__main__":
    cli.run(app)
