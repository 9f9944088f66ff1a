"""The stage on real fits: trained, saved, read back, measured, merged; and what a broken or killed run leaves."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.ndimage import gaussian_filter

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.evaluate.stage import evaluate, read_fits
from pipelines.params import load_params
from pipelines.prompts.bank import PromptBank
from pipelines.systems.protocol import Task
from pipelines.train.fit import fit_one, plan_fits

EXPERIMENT = "random-forest-1"


def _case(number: int) -> Case:
    rng = np.random.default_rng(number)
    z, y, x = np.meshgrid(*(np.arange(size) for size in (6, 36, 32)), indexing="ij")
    middle = rng.uniform(-4, 4, 2)
    distance = ((z - 3) * 3) ** 2 + (y - 18 - middle[0]) ** 2 + (x - 16 - middle[1]) ** 2
    truth = np.where(distance < 16, 1, np.where(distance < 64, 2, 0)).astype(np.uint8)
    image = (2.0 * (truth == 1) - 2.0 * (truth == 2) + gaussian_filter(rng.normal(size=truth.shape), 0.5)).astype(np.float32)
    return Case(f"p{number}", "", "north", (5.0, 1.5, 1.5), 2, {"FLAIR": image}, np.ones(truth.shape, np.uint8), truth)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two fits of the random forest on four small cases."""
    folder = tmp_path_factory.mktemp("trained")
    content = yaml.safe_load((load_params.__globals__["DEFAULT"]).read_text())
    content["protocol"] |= {"seeds": [0, 1]}
    content["cohort"]["targets"] = "all"
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    params = load_params(folder / "params.yaml")
    backbone = SimpleNamespace(dim=8, levels={"fine": (8, 4)}, fingerprint="f" * 64)
    task = Task(("tumour-core", "oedema"), ("FLAIR",), PromptBank({}, {}), backbone)
    cases = [_case(number) for number in range(4)]
    for job in plan_fits(EXPERIMENT, params.experiments[EXPERIMENT], cases, params):
        fit_one(job, task, folder / "models")
    return SimpleNamespace(models=folder / "models", task=task, cases=cases, params=params)


def run(trained, out, cases=None) -> None:
    evaluate(EXPERIMENT, trained.models, out, task=trained.task, cases=cases or trained.cases, params=trained.params, cohort="of this test")


def test_every_query_case_is_measured_once(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    out = tmp_path / "out"
    run(trained, out)
    rows = pd.read_csv(out / "cases.csv")
    expected = {(record["seed"], case, label) for _, record in read_fits(trained.models) for case in record["split"]["query"]
                for label in trained.task.labels}
    assert set(zip(rows.seed, rows.case, rows.label, strict=True)) == expected
    assert len(rows) == len(expected)
    assert rows.dice.mean() > 0.6
    assert {"nsd_2mm", "hd95_mm", "ece", "ece_unscaled", "ece_brain", "truth_ml", "predict_seconds"} <= set(rows.columns)
    bins = pd.read_csv(out / "reliability.csv")
    assert len(bins) == 2 * 2 * 15
    voxels = bins[(bins.region == "brain") & (bins.label == "oedema")]["count"].sum()
    assert voxels == 6 * 36 * 32 * len(rows) / 2
    summary = json.loads((out / "summary.json").read_text())
    assert summary["fits"] == 2
    assert summary["labelled_cases"] == summary["cases"]
    assert summary["cost"]["model_bytes"] > 0
    index = json.loads((out / "overlays" / "index.json").read_text())
    assert {role for entry in index for role in entry["roles"]} == {"best", "median", "worst", "common"}
    assert {path.name for path in out.iterdir()} == {"cases.csv", "conformal.csv", "overlays", "reliability.csv", "retention.csv", "summary.json"}


def test_risk_and_uncertainty_of_every_query_case(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    run(trained, tmp_path / "out")
    rows = pd.read_csv(tmp_path / "out" / "cases.csv")
    keys = ["seed", "case", "label"]
    assert {"brier_brain", "nll_brain", "ace_brain", "lesions", "lesions_predicted"} <= set(rows.columns)
    assert rows.lesion_f1.between(0, 1).all()
    assert rows.uncertainty_auroc.between(0.5, 1).all()
    assert (rows.retention_auc_random < rows.retention_auc).all()
    assert (rows.retention_auc <= rows.retention_auc_ideal).all()
    retention = pd.read_csv(tmp_path / "out" / "retention.csv")
    assert len(retention) == 11 * len(rows)
    kept = retention[retention.retained == 1].merge(rows, on=keys)
    np.testing.assert_allclose(kept.dice_x, kept.dice_y)
    conformal = pd.read_csv(tmp_path / "out" / "conformal.csv")
    assert len(conformal) == 2 * len(rows)  # two levels
    assert {"experiment", "site", "system", "shots"} <= set(conformal.columns)
    assert conformal.refused.all()  # two query cases leave one to calibrate with, which promises 0.5 at best
    assert conformal.n_calibration.eq(1).all()


def test_a_killed_run_goes_on_where_it_stopped(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    last = read_fits(trained.models)[-1][0]
    model = next(path for path in last.iterdir() if path.name != "fit.json")
    hidden = model.with_name("elsewhere")
    model.rename(hidden)
    try:
        with pytest.raises(Exception):  # noqa: B017 (whatever the system says of a missing file)
            run(trained, tmp_path / "out")
    finally:
        hidden.rename(model)
    assert not (tmp_path / "out").exists()
    run(trained, tmp_path / "out")
    assert "1 of 2 fits were measured by an earlier run" in capsys.readouterr().out
    run(trained, tmp_path / "again")
    for name in ("reliability.csv", "summary.json", "overlays/index.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    first, second = (pd.read_csv(tmp_path / name / "cases.csv").drop(columns="predict_seconds") for name in ("out", "again"))
    pd.testing.assert_frame_equal(first, second)


def test_a_query_case_that_is_gone_is_named_as_such(trained, tmp_path):
    with pytest.raises(DataError, match="train experiment random-forest-1 again"):
        run(trained, tmp_path / "out", cases=trained.cases[:1])


def test_no_fits(tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(DataError, match="run `python -m"):
        read_fits(tmp_path / "models")
