"""Classification in the same stages: params, split, fit, temperature, evaluation and report of systems that answer whole cases."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from tiny_cohort import tensors
from tiny_stages import cases_at, stage_inputs, write_stages
from tiny_store import fresh_store

from pipelines.cohort import read_outcomes
from pipelines.errors import DataError, UsageError
from pipelines.evaluate.stage import evaluate, manifest_hash
from pipelines.params import load_params
from pipelines.report.evidence import main as evidence
from pipelines.report.stage import report
from pipelines.report.table import print_results
from pipelines.train.fit import fit_experiment
from pipelines.train.fitted import fits_of, load_fitted
from pipelines.train.inputs import load_task
from pipelines.train.outcomes import fit_case_temperature
from pipelines.train.split import draw

PROBE = {"system": "case-probe", "protocol": "transfer", "shots": 0}
EXPERIMENTS = {"probe": PROBE, "probe-strong": PROBE | {"params": {"strengths": [0.0001]}}, "probe-3": {"system": "case-probe", "shots": 3},
               "forest": {"system": "random-forest", "shots": 1, "params": {"trees": 4, "voxels_per_class": 100}}}
OUTCOME = {"column": "grade", "values": [2, 3], "text": "grade"}


def graded(index: int, case):
    """Grade 3 is brighter; a case of each site has no grade, and no case of the third site a mask."""
    grade = None if index % 6 == 5 else str(2 + index % 2)
    image = case.images["FLAIR"] + np.float32(2.5) * case.brain * (grade == "3")
    return replace(case, images={**case.images, "FLAIR": image}, outcome=grade, dseg=None if case.site == "west" else case.dseg)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort through train, evaluate and report."""
    folder = tmp_path_factory.mktemp("graded")
    cases = [graded(index, case) for index, case in enumerate(cases_at(east=6, north=6, west=6))]
    for case in cases:
        object.__setattr__(case, "dseg", np.zeros_like(case.brain) if case.dseg is None else case.dseg)
    write_stages(folder, cases, protocol={"seeds": [0, 1]}, cohort={"targets": "all", "outcome": OUTCOME, "name": "graded"}, experiments=EXPERIMENTS,
                 evaluate={"bootstrap": 200})
    rows = "".join(f"sub-{case.subject}\t{case.site}\t{case.outcome or 'n/a'}\n" for case in cases)
    (folder / "resampled" / "participants.tsv").write_text("participant_id\tsite\tgrade\n" + rows)
    inputs = stage_inputs(folder)
    task, read = load_task(**inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        for name in ("probe", "probe-strong"):
            fit_experiment(name, out=folder / "models" / name, jobs=1, **inputs)
            evaluate(name, folder / "models" / name, folder / "reports" / "cohorts" / "graded" / name, task=task, cases=read, params=inputs["params"],
                     cohort=manifest_hash(folder / "resampled"))
    report(folder / "reports" / "cohorts", folder / "reports", folder / "params.yaml")
    return SimpleNamespace(folder=folder, inputs=inputs, task=task, cases=read)


def test_leave_one_site_out_with_every_graded_case_once(made):
    folders = fits_of(made.folder / "models" / "probe")
    assert len(folders) == 6
    record = json.loads((folders[0] / "fit.json").read_text())
    assert record["outcomes"] == ["2", "3"]
    ids = record["split"]
    assert not ids["support"] and len(ids["query"]) == 5  # one of six has no grade
    assert all("east" in case for case in ids["query"])
    assert not any("east" in case for case in (*ids["source"], *ids["calibration"]))
    fitted = load_fitted(folders[0], made.task)
    probabilities = fitted.predict(made.cases[0])
    assert probabilities.shape == (2,)
    np.testing.assert_allclose(probabilities.sum(), 1, atol=1e-6)
    with pytest.raises(DataError, match=r"was trained for outcomes 2, 3, params.yaml has 1, 2"):
        load_fitted(folders[0], replace(made.task, outcomes=("1", "2")))


def test_scores_measures_and_page(made):
    reports = made.folder / "reports"
    table = pd.read_csv(reports / "classification.csv")
    assert list(table.columns) == ["method", "cohort", "site", "seed", "case", "label", "score"]
    assert len(table) == 2 * 2 * 15
    assert set(table.label) == {0, 1}
    metrics = json.loads((reports / "metrics.json").read_text())["graded"]["classification"]
    assert metrics["headline"] == "probe"
    probe = metrics["experiments"]["probe"]
    assert probe["positives"] == {"2": 9, "3": 6}
    assert probe["measures"]["auroc"]["mean"] > 0.9
    assert probe["measures"]["map"]["low"] <= probe["measures"]["map"]["mean"] <= probe["measures"]["map"]["high"]
    assert set(probe["sites"]) == {"east", "north", "west"}
    against = metrics["comparisons"]["probe vs probe-strong"]["map"]
    assert against["difference"] == pytest.approx(against["first"] - against["second"])
    page = (reports / "index.html").read_text()
    assert "graded: whole cases" in page and "probe-strong" in page
    assert (reports / "results.csv").read_text().startswith("cohort,experiment")
    print_results(reports)
    document = made.folder / "document.md"
    document.write_text("<!-- evidence:graded:begin -->\n<!-- evidence:graded:end -->\n")
    evidence(reports, document)
    (row,) = (line for line in document.read_text().splitlines() if line.startswith("| `probe` |"))
    assert f"{probe['measures']['auroc']['mean']:.2f}" in row


def test_segmenting_and_answering_cases_side_by_side(made, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    fit_experiment("forest", out=made.folder / "models" / "forest", jobs=1, **made.inputs)
    record = json.loads((fits_of(made.folder / "models" / "forest")[0] / "fit.json").read_text())
    assert "outcomes" not in record
    assert len(record["split"]["query"]) == 4  # every case has a mask


def test_draws_of_whole_cases_need_an_outcome_not_a_mask(made):
    protocol, cases = made.inputs["params"].protocol, [replace(case, dseg=None) for case in made.cases]
    split = draw(cases, "north", 3, 0, protocol, answers="case")
    assert len(split.support) == 3
    assert all(case.outcome for case in (*split.support, *split.query))


def test_what_is_missing_is_named(made, tmp_path):
    folder = made.folder / "resampled"
    with pytest.raises(DataError, match="has no column 'stage'"):
        read_outcomes(folder, "stage", ["1"])
    with pytest.raises(DataError, match=r"no subject of .* has '9' as 'grade'"):
        read_outcomes(folder, "grade", ["9"])
    with pytest.raises(DataError, match="no case has an outcome"):
        read_outcomes(tmp_path, "grade", ["2"])
    content = yaml.safe_load((made.folder / "params.yaml").read_text())
    content["cohort"]["outcome"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match=r"cohort.outcome in params.yaml is not given"):
        fit_experiment("probe", out=tmp_path / "models", **made.inputs | {"params": load_params(tmp_path / "params.yaml")})
    content["cohort"]["labels"] = []
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match="no labels and no outcome"):
        load_params(tmp_path / "params.yaml")


def test_the_temperature_of_whole_cases():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 60)
    right = np.where(generator.random(60) < 0.75, truth, 1 - truth)
    sure = np.where(np.arange(2) == right[:, None], 0.99, 0.01)
    found = fit_case_temperature(list(zip(sure, truth, strict=True)))
    assert 2 < found.value < 4
    assert found.nll_after < found.nll_before
    honest = np.where(np.arange(2) == right[:, None], 0.75, 0.25)
    assert fit_case_temperature(list(zip(honest, truth, strict=True))).value == pytest.approx(1, abs=0.25)
    assert "fewer than 5" in fit_case_temperature(list(zip(sure[:3], truth[:3], strict=True))).reason


def test_it_is_recorded_with_a_model_that_answers_cases(made, tmp_path, monkeypatch):
    import mlflow

    from tasks.record import record

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "graded").symlink_to(made.folder)
    (tmp_path / "params.yaml").symlink_to(made.folder / "params.yaml")
    fresh_store(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_registry_uri(f"sqlite:///{tmp_path / 'another.db'}")  # as an earlier test of this process may have left it
    runs = record(made.folder / "reports", tmp_path)["graded"]
    assert set(runs["experiments"]) == {"probe", "probe-strong"}
    metrics = mlflow.MlflowClient().get_run(runs["experiments"]["probe"]["run"]).data.metrics
    reported = json.loads((made.folder / "reports" / "metrics.json").read_text())["graded"]["classification"]["experiments"]["probe"]
    assert metrics["cases/auroc"] == pytest.approx(reported["measures"]["auroc"]["mean"])
    assert metrics["east/map"] == pytest.approx(reported["sites"]["east"]["map"])
    model = mlflow.pyfunc.load_model("models:/semiflow-graded-probe@challenger")
    case = made.cases[0]
    fitted = load_fitted(fits_of(made.folder / "models" / "probe")[0], made.task)
    given = tensors(case, made.task.modalities)
    np.testing.assert_allclose(model.predict(given), fitted.predict(case), atol=1e-3)  # the stages keep tokens in half precision
    assert record(made.folder / "reports", tmp_path)["graded"] == runs
