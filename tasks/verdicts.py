"""A verdict on a challenger as an MLflow run: params, numbers, reasons and picture, and the model itself. Never twice for one verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from prefect.runtime import flow_run

from pipelines.sites.folders import Folders
from pipelines.sites.lesson import CARD

#: Of runs and model versions: which verdict they hold.
VERDICT_TAG = "semiflow.verdict"
MODEL_TAG = "model"


def digest_of(verdict: Mapping) -> str:
    return hashlib.sha256(json.dumps(verdict, sort_keys=True).encode()).hexdigest()


def run_of(client, experiment: str, site: str, challenger: Path, verdict: Mapping, *, tables: Mapping[str, str]) -> str:
    """The id of the verdict's finished run, which is made where there is none. `tables`: file name -> text, kept as artifacts of the run."""
    _close_unfinished(client, experiment, site)
    finished = f"attributes.status = 'FINISHED' AND tags.`{VERDICT_TAG}` = '{digest_of(verdict)}'"
    done = client.search_runs([experiment], finished, max_results=1)  # of a process that was killed before it could register the model
    return done[0].info.run_id if done else _log(experiment, site, challenger, verdict, tables=tables)


def _log(experiment: str, site: str, challenger: Path, verdict: Mapping, *, tables: Mapping[str, str]) -> str:
    """Log a run with everything about a verdict, the model last. Returns the run's id."""
    import mlflow

    from tasks.registry import log_packed, packed

    card = json.loads((challenger / "fit" / CARD).read_text())
    tags = {"site": site, "decision": verdict["decision"], VERDICT_TAG: digest_of(verdict), "flow_run_id": flow_run.id or "",
            "mlflow.source.name": "flows/adapt_site.py", "mlflow.note.content": "\n\n".join([f"**{verdict['decision']}**", *verdict["reasons"]])}
    with mlflow.start_run(experiment_id=experiment, run_name=f"{site} {verdict['decision']}", tags=tags) as run:
        _describe(challenger, verdict, tables)
        with packed(challenger / "fit", challenger / "text", challenger / "text", card["backbone"]) as parts:
            mlflow.set_tag(MODEL_TAG, log_packed(parts).model_uri)
    return run.info.run_id


def _rival(verdict: Mapping) -> str:
    return f"{verdict['champion']['model']} {verdict['champion']['version']}"


def _close_unfinished(client, experiment: str, site: str) -> None:
    """Mark what a killed run of this site left open as failed (no other run of the site is at work)."""
    for run in client.search_runs([experiment], f"attributes.status = 'RUNNING' AND tags.site = '{site}'"):
        client.set_tag(run.info.run_id, "mlflow.note.content", "The run was stopped before it was whole; a later one has it all.")
        client.set_terminated(run.info.run_id, status="FAILED")


def _describe(challenger: Path, verdict: Mapping, tables: Mapping[str, str]) -> None:
    """Params, numbers and verdict of the active run."""
    import mlflow

    from tasks.reported import leaves, metric_name

    fit = json.loads((challenger / "fit" / "fit.json").read_text())
    kept = {key: fit[key] for key in ("system", "params", "protocol", "shots", "seed", "calibration_from", "modalities")}
    mlflow.log_params({metric_name(".".join(keys)): str(value)[:500] for keys, value in leaves(kept)}
                      | {"judged_against": _rival(verdict), "source_cases": len(fit["split"]["source"])})
    numbers = {metric_name("/".join(keys)): float(value) for keys, value in leaves(verdict["numbers"])
               if isinstance(value, (int, float)) and not isinstance(value, bool)}
    mlflow.log_metrics(numbers | {"train_seconds": fit["train_seconds"], "temperature": fit["temperature"]})
    mlflow.log_dict(dict(verdict), "verdict.json")
    for name, text in tables.items():
        mlflow.log_text(text, name)
    picture = Folders(challenger.parent).picture
    if picture.is_file():
        mlflow.log_artifact(str(picture))
