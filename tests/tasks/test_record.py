from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pipelines.errors import DataError
from tasks.record import COMPLETE_TAG, MLFLOW_EXPERIMENT, record
from tasks.reported import read_reports


def artifacts(client, run: str, folder: str | None = None) -> list[str]:
    found = []
    for entry in client.list_artifacts(run, folder):
        found += artifacts(client, run, entry.path) if entry.is_dir else [entry.path]
    return found


def test_parent_holds_params_report_and_curves(recorded, tracking):
    run = tracking.get_run(recorded["run"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["cohort"] == "tiny"
    assert run.data.tags[COMPLETE_TAG] == "true"
    assert len(run.data.tags["dvc_lock_sha256"]) == 64
    assert run.data.params["protocol.kind"] == "within"
    assert {"params.yaml", "dvc.lock", "report/index.html", "figures/tiny_sites.png"} <= set(artifacts(tracking, recorded["run"]))
    curve = tracking.get_metric_history(recorded["run"], "random-forest tumour/dice")
    assert [(point.step, point.value) for point in curve] == [(1, 0.6), (2, 0.7)]


def test_child_holds_numbers_inputs_and_overlay(recorded, tracking):
    child = recorded["experiments"]["random-forest-2"]
    run = tracking.get_run(child["run"])
    assert run.data.tags["mlflow.parentRunId"] == recorded["run"]
    assert run.data.tags["backbone_fingerprint"] == "f" * 64
    assert run.data.params["experiment.shots"] == "2"
    assert run.data.metrics["tumour/dice"] == pytest.approx(0.7)
    assert run.data.metrics["tumour/dice.low"] == pytest.approx(0.4)
    assert "tumour/dice.high" not in run.data.metrics, "an interval that does not exist must not become a number"
    assert tracking.get_metric_history(child["run"], "tumour/dice")[0].step == 2
    files = artifacts(tracking, child["run"])
    assert {"cases.csv", "summary.json", "figures/tiny_random-forest-2_overlay.png"} <= set(files)
    assert "figures/tiny_random-forest-1_overlay.png" not in files
    [data] = run.inputs.dataset_inputs
    assert data.dataset.name == "tiny"
    assert json.loads(data.dataset.profile)["num_rows"] == 3


def test_headline_models_are_registered_as_challenger(recorded, tracking):
    version = tracking.get_model_version_by_alias("semiflow-tiny-random-forest-1", "challenger")
    assert version.run_id == recorded["experiments"]["random-forest-1"]["run"]


def test_recording_again_adds_nothing(recorded, tracking, project):
    location = tracking.get_experiment_by_name(MLFLOW_EXPERIMENT).experiment_id
    before = len(tracking.search_runs([location]))
    assert record(project / "reports", project)["tiny"] == recorded
    assert len(tracking.search_runs([location])) == before


def test_a_changed_result_is_a_new_run(recorded, tracking, own_project):
    for name in ("random-forest-2",):  # one experiment is enough here
        path = own_project / "reports" / "cohorts" / "tiny" / name / "cases.csv"
        pd.read_csv(path).assign(dice=0.9).to_csv(path, index=False)
    results = own_project / "reports" / "results.csv"
    rows = pd.read_csv(results)
    rows[rows.experiment == "random-forest-2"].to_csv(results, index=False)
    again = record(own_project / "reports", own_project)["tiny"]
    assert again["run"] != recorded["run"]
    assert list(again["experiments"]) == ["random-forest-2"]


def test_a_killed_recorder_leaves_a_failed_run_not_a_result(recorded, tracking, project):
    """A recorder that dies in the middle leaves a run marked unfinished; the next one closes it and does not take it for whole."""
    script = f"""
import os, mlflow
from tasks.record import COMPLETE_TAG, CONTENT_TAG, MLFLOW_EXPERIMENT, experiment_id
mlflow.set_tracking_uri(os.environ['MLFLOW_TRACKING_URI'])
location = experiment_id(MLFLOW_EXPERIMENT, os.environ['MLFLOW_TRACKING_URI'])
run = mlflow.start_run(experiment_id=location, tags={{CONTENT_TAG: {recorded['content']!r}, COMPLETE_TAG: 'false'}})
print(run.info.run_id, flush=True)
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    left = killed.stdout.split()[-1]
    assert tracking.get_run(left).info.status == "RUNNING"
    assert record(project / "reports", project)["tiny"]["run"] == recorded["run"]
    assert tracking.get_run(left).info.status == "FAILED"


def test_missing_results_are_one_sentence(own_project):
    (own_project / "reports" / "results.csv").unlink()
    with pytest.raises(DataError, match=r"results\.csv does not exist; run the report stage first"):
        read_reports(own_project / "reports", own_project)
