"""The continual protocol in MLflow: a child run a method, with its measures, what it costs, and nothing twice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tasks.record import experiment_id, find, log_cohort
from tasks.reported import read_reports

METHOD = {"title": "ITL", "chains": 9, "measures": {"acc": {"mean": 0.7, "low": 0.6, "high": None}},
          "minus": {"sequential": {"forgetting": {"mean": -0.02, "low": -0.03, "high": -0.01, "p": 0.004}}},
          "cost": [{"position": 1.0, "seconds": 4.0, "cpu_seconds": 3.0, "model_bytes": 300000.0},
                   {"position": 2.0, "seconds": 5.0, "cpu_seconds": 4.0, "model_bytes": 400000.0}]}
SETTINGS = {"shots": 3, "seeds": [0], "orders": [["A", "B"]], "arms": {"itl": {"system": "itl", "params": {"steps": 40}, "learns": "incremental"}},
            "scenarios": {"as-acquired": {"itl": METHOD}}}


def test_every_method_is_a_run_with_its_measures_and_costs(project, tracking):
    (reported,) = read_reports(project / "reports", project)
    with_it = replace(reported, metrics=json.loads(json.dumps(reported.metrics)), experiments=())
    with_it.metrics["tiny"]["continual"] = SETTINGS
    assert with_it.fingerprint() != replace(with_it, metrics=reported.metrics).fingerprint()
    location = experiment_id("continual-test", f"sqlite:///{project / 'none.db'}")
    logged = log_cohort(location, with_it)
    run = tracking.get_run(logged["experiments"]["continual/as-acquired/itl"]["run"])
    assert run.data.metrics["measures/acc"] == pytest.approx(0.7)
    assert run.data.metrics["minus/sequential/forgetting"] == pytest.approx(-0.02)
    assert "measures/acc/high" not in run.data.metrics
    assert [(point.step, point.value) for point in tracking.get_metric_history(run.info.run_id, "cost/model_bytes")] == [(1, 3e5), (2, 4e5)]
    assert run.data.params["continual.params.steps"] == "40"
    assert run.data.tags["mlflow.parentRunId"] == logged["run"]
    assert find(location, with_it)["experiments"].keys() == logged["experiments"].keys()
