"""Write what was evaluated to MLflow: a parent run per reproduction of a cohort, a child run per experiment.

The stages' own files are the truth; this is one function over them, run as the last DVC stage, so a stage that DVC skipped leaves no
hole in the record. Recording the same results twice makes no second run.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import cyclopts

from pipelines import cli
from pipelines.outputs import locked, sha256, write_json
from tasks.environment import FLOW_RUN_VARIABLE, PROJECT, tracking_uri
from tasks.reported import CLASSIFICATION, Experiment, Reported, leaves, metric_name, numbers_of, read_reports

MLFLOW_EXPERIMENT = "semiflow"
CONTENT_TAG = "semiflow.content"
COMPLETE_TAG = "semiflow.complete"

#: Sections of params.yaml that go into a run's parameters; the whole file is an artifact of the parent.
PARAM_SECTIONS = ("cohort", "resample", "embed", "protocol", "evaluate")
PARAM_LENGTH = 500

app = cyclopts.App(name="python -m tasks.record", help_format="plaintext")


@app.default
def main(reports: Path = Path("reports"), out: Path = Path("reports/runs.json")) -> None:
    """Record every cohort of REPORTS in MLflow, and write the ids of the runs to OUT.

    The store is mlruns/mlflow.db in the project, or the one that $MLFLOW_TRACKING_URI names. Browse it with `make up`.

    Example: python -m tasks.record --reports reports --out reports/runs.json
    """
    runs = record(reports.absolute(), PROJECT)
    write_json(out, runs)
    for cohort, entry in runs.items():
        print(f"{cohort}: run {entry['run']} with {len(entry['experiments'])} experiments")


def record(reports: Path, project: Path = PROJECT) -> dict[str, dict]:
    """Record what is new. Returns cohort -> {run, content, experiments: name -> {run, model}}, also for what was recorded before."""
    import mlflow

    cohorts = read_reports(reports, project)
    uri = tracking_uri(project)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)  # else the one that something else in this process has set
    with locked(lock_file(uri, project)):
        location = experiment_id(MLFLOW_EXPERIMENT, uri)
        mlflow.set_experiment(experiment_id=location)
        _close_unfinished(location)
        return {reported.cohort: find(location, reported) or log_cohort(location, reported) for reported in cohorts}


def lock_file(uri: str, project: Path) -> Path:
    """What whoever writes to the store at `uri` holds; it lies beside a local store, else in the project."""
    folder = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else project / "mlruns"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / ".record.lock"


def experiment_id(name: str, uri: str) -> str:
    """The id of an MLflow experiment, made where there is none. Beside a local store lie its artifacts, wherever the command was started."""
    import mlflow

    found = mlflow.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    store = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else None
    return mlflow.create_experiment(name, artifact_location=(store / "artifacts").as_uri() if store else None,
                                    tags={"mlflow.experimentKind": "custom_model_development"})  # the UI then shows runs, not chats


def _close_unfinished(location: str) -> None:
    """Mark runs that a killed recorder left open as failed (the lock says that no other recorder is at work)."""
    import mlflow

    client = mlflow.MlflowClient()
    for run in client.search_runs([location], filter_string="attributes.status = 'RUNNING'"):
        if COMPLETE_TAG in run.data.tags:
            client.set_tag(run.info.run_id, "mlflow.note.content", "The recorder was stopped before this run was whole; a later run has it all.")
            client.set_terminated(run.info.run_id, status="FAILED")


def find(location: str, reported: Reported) -> dict | None:
    """The runs that already hold exactly these results."""
    import mlflow

    client, content = mlflow.MlflowClient(), reported.fingerprint()
    query = f"tags.`{CONTENT_TAG}` = '{content}' AND tags.`{COMPLETE_TAG}` = 'true' AND attributes.status = 'FINISHED'"
    parents = client.search_runs([location], filter_string=query, order_by=["attributes.start_time ASC"])
    if not parents:
        return None
    parent = parents[0].info.run_id
    children = client.search_runs([location], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'")
    experiments = {child.data.tags["experiment"]: {"run": child.info.run_id, "model": child.data.tags.get("model", "")} for child in children}
    return {"run": parent, "content": content, "experiments": experiments}


def log_cohort(location: str, reported: Reported) -> dict:
    """Log a cohort's parent run and its children. The parent counts as whole only when its last tag is written."""
    import mlflow

    content = reported.fingerprint()
    common = common_tags(reported)
    with mlflow.start_run(experiment_id=location, run_name=reported.cohort, tags={**common, CONTENT_TAG: content, COMPLETE_TAG: "false"}) as parent:
        mlflow.log_params(parameters(reported.params, PARAM_SECTIONS))
        log_dataset(reported)
        log_report(reported)
        experiments = {}
        for experiment in reported.experiments:
            experiments[experiment.name] = log_experiment(location, reported, experiment, common)
            numbers = {f"{experiment.curve} {name}": value for name, value in numbers_of(reported.metrics, reported.cohort, experiment.name).items()}
            mlflow.log_metrics(numbers, step=experiment.shots)  # one curve over shots per system
            print(f"{reported.cohort}: recorded {experiment.name}", flush=True)
        for scenario, methods in reported.continual.items():
            for method, found in methods.items():
                experiments[f"continual/{scenario}/{method}"] = log_method(location, reported, common, (scenario, method), found)
        mlflow.set_tag(COMPLETE_TAG, "true")
    return {"run": parent.info.run_id, "content": content, "experiments": experiments}


def log_experiment(location: str, reported: Reported, experiment: Experiment, common: dict[str, str]) -> dict[str, str]:
    """Log one child run: parameters, numbers with shots as step, the data set, figures, and the model."""
    import mlflow

    from tasks.registry import log_model

    summary = experiment.summary
    tags = {**common, "experiment": experiment.name, "system": experiment.system, "sites": ",".join(summary["sites"]), COMPLETE_TAG: "false",
            "backbone_fingerprint": summary["backbone"]["fingerprint"], "mlflow.note.content": note(summary)}
    with mlflow.start_run(experiment_id=location, run_name=f"{reported.cohort} {experiment.name}", nested=True, tags=tags) as run:
        settings = {key: value for key, value in summary.items() if key in ("system", "shots", "params", "seeds", "protocol", "modalities")}
        mlflow.log_params({**parameters(reported.params, PARAM_SECTIONS), **parameters({"experiment": settings}, ("experiment",))})
        mlflow.log_metrics(numbers_of(reported.metrics, reported.cohort, experiment.name), step=experiment.shots)
        log_dataset(reported)
        for path in sorted((*experiment.folder.glob("*.csv"), experiment.folder / "summary.json")):
            mlflow.log_artifact(str(path))
        log_figures(reported, experiment)
        model = ""
        if experiment.models.is_dir():
            model = log_model(reported, experiment, register=headline(reported, experiment))
            mlflow.set_tag("model", model)
        mlflow.set_tag(COMPLETE_TAG, "true")
    return {"run": run.info.run_id, "model": model}


def headline(reported: Reported, experiment: Experiment) -> bool:
    """Whether an experiment's model is the one of its cohort to register."""
    if experiment.answers_case:
        return experiment.name == reported.metrics[reported.cohort]["classification"]["headline"]
    return experiment.system == experiment.summary["evaluate"]["headline"]


def log_method(location: str, reported: Reported, common: dict[str, str], name: tuple[str, str], found: Mapping) -> dict[str, str]:
    """Log one method of the continual protocol: its measures with intervals, its differences from others, its cost with the position as step."""
    import mlflow

    title = "/".join(("continual", *name))
    settings = reported.metrics[reported.cohort]["continual"]
    tags = {**common, "experiment": title, "system": settings["arms"][name[1]]["system"], "scenario": name[0], COMPLETE_TAG: "false",
            "mlflow.note.content": f"**{found['title']}**, sites one after another, {found['chains']} chain(s) of order and draw."}
    with mlflow.start_run(experiment_id=location, run_name=f"{reported.cohort} {title}", nested=True, tags=tags) as run:
        mlflow.log_params(parameters({"continual": {key: settings[key] for key in ("shots", "seeds", "orders")} | settings["arms"][name[1]]},
                                     ("continual",)))
        mlflow.log_metrics({metric_name("/".join(keys).removesuffix("/mean")): float(value)
                            for keys, value in leaves({"measures": found["measures"], "minus": found["minus"]}) if value is not None})
        for step in found["cost"]:
            mlflow.log_metrics({f"cost/{key}": float(value) for key, value in step.items() if key != "position"}, step=int(step["position"]))
        log_dataset(reported)
        mlflow.set_tag(COMPLETE_TAG, "true")
    return {"run": run.info.run_id, "model": ""}


def common_tags(reported: Reported) -> dict[str, str]:
    """What parent and children have in common, so that a search over either finds them."""
    fingerprints = {str(experiment.summary["backbone"]["fingerprint"]) for experiment in reported.experiments}
    tags = {"cohort": reported.cohort, "sites": ",".join(sorted({site for item in reported.experiments for site in item.summary["sites"]})),
            "backbone_fingerprint": ",".join(sorted(fingerprints)), "git_sha": git_sha(reported.project),
            "flow_run_id": os.environ.get(FLOW_RUN_VARIABLE, ""), "mlflow.source.name": "tasks/record.py"}
    if reported.lock_file.is_file():
        tags["dvc_lock_sha256"] = sha256(reported.lock_file)
    return tags


def git_sha(project: Path) -> str:
    """The commit that the project's folder is at; empty where it is no Git checkout."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def note(summary: dict) -> str:
    """What a run's page says on top."""
    shots = f"{summary['shots']} shot{'s' if summary['shots'] != 1 else ''}"
    text = f"**{summary['title']}**, {shots}, {len(summary['sites'])} site(s) x {len(summary['seeds'])} seed(s), protocol `{summary['protocol']}`."
    return text + (f"\n\n{summary['caveat']}" if summary.get("caveat") else "")


def parameters(params: dict, sections: tuple[str, ...]) -> dict[str, str]:
    """Sections of params, flat: `protocol.seeds` -> '[0, 1, 2]'."""
    return {metric_name(".".join(keys)): str(value)[:PARAM_LENGTH] for name in sections for keys, value in leaves(params.get(name, {}), (name,))}


def log_dataset(reported: Reported) -> None:
    """The resampled cohort as the active run's input: its manifest, with the file's digest."""
    import mlflow
    from mlflow.data.sources import LocalArtifactDatasetSource

    from pipelines.cohort import read_manifest

    if reported.manifest.is_file():
        table = read_manifest(reported.manifest.parent)
        numbers = table.select_dtypes("number").astype("float64")  # MLflow knows no column of nullable integers
        table = table.astype("str").assign(**numbers)
        source = LocalArtifactDatasetSource(str(reported.manifest.relative_to(reported.project)))
        dataset = mlflow.data.from_pandas(table, source=source, name=reported.cohort, digest=sha256(reported.manifest)[:16])
        mlflow.log_input(dataset, context="adaptation")


def log_report(reported: Reported) -> None:
    """The report with its tables and figures, and the params and lock file that it came from, as artifacts of the parent."""
    import mlflow

    for name in ("index.html", "metrics.json", "results.csv", CLASSIFICATION, "continual.csv"):
        if (reported.reports / name).is_file():
            mlflow.log_artifact(str(reported.reports / name), "report")
    for path in (reported.params_file, reported.lock_file):
        if path.is_file():
            mlflow.log_artifact(str(path))
    log_figures(reported)


def log_figures(reported: Reported, experiment: Experiment | None = None) -> None:
    """Figures under the active run's `figures/`: the cohort's, or those of one experiment, which the names say (`<cohort>_<experiment>_...`)."""
    import mlflow

    start = "_".join([reported.cohort, *([experiment.name.replace("/", "-")] if experiment else [])])
    for path in sorted((reported.reports / "figures").glob(f"{start}_*")):
        mlflow.log_artifact(str(path), "figures")


if __name__ == "__main__":
    cli.run(app)
