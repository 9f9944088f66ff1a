"""The stage as a command on a small cohort that went through the stages before it, and what a killed or impossible run leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_cohort import LABELS
from tiny_stages import arguments, cases_at, stage_inputs, write_stages

import pipelines.train.fit as fit_module
from pipelines.errors import DataError, UsageError
from pipelines.outputs import sha256
from pipelines.train.calibrate import apply_temperature
from pipelines.train.fit import fit_experiment
from pipelines.train.fitted import fits_of, load_fitted
from pipelines.train.inputs import load_task

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """A folder with resampled/, prompts/, embeddings/ and params.yaml."""
    forest = {"trees": 8, "voxels_per_class": 300}
    experiments = {"forest-1": {"system": "random-forest", "shots": 1, "params": forest},
                   "forest-4": {"system": "random-forest", "shots": 4, "params": forest},
                   "forest-transfer": {"system": "random-forest", "shots": 0, "protocol": "transfer", "params": forest},
                   "forest-pooled": {"system": "random-forest", "shots": 3, "protocol": "pooled", "params": forest},
                   "semi-1": {"system": "semi", "shots": 1, "params": {"steps": 20, "batch": 4}}}
    return write_stages(tmp_path_factory.mktemp("cohort"), cases_at(north=4, south=2), protocol={"seeds": [0, 1]}, cohort={"targets": ["north"]},
                        experiments=experiments)


def command(cohort: Path, experiment: str, out: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "pipelines.train", f"--experiment={experiment}", f"--out={out}", "--jobs=1", *arguments(cohort)],
                          cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_trains_every_fit_and_they_read_back(cohort, tmp_path):
    done = command(cohort, "semi-1", tmp_path / "models")
    assert done.returncode == 0, done.stderr
    assert "fit 2 of 2" in done.stdout
    folders = fits_of(tmp_path / "models")
    assert [folder.relative_to(tmp_path / "models").as_posix() for folder in folders] == ["north/seed-0", "north/seed-1"]
    record = json.loads((folders[0] / "fit.json").read_text())
    assert record["labels"] == list(LABELS)
    assert record["calibration_from"] == "site"
    assert {len(record["split"][name]) for name in ("support", "calibration")} == {1}
    task, cases = load_task(**stage_inputs(cohort))
    fitted = load_fitted(folders[0], task)
    query = next(case for case in cases if case.id == record["split"]["query"][0])
    assert fitted.uses_tokens
    np.testing.assert_array_equal(fitted.predict(query), apply_temperature(fitted.raw(query), record["temperature"]))
    with pytest.raises(DataError, match="was trained for labels"):
        load_fitted(folders[0], replace(task, labels=("other",)))


def test_a_site_with_fewer_cases_than_shots_ends_the_command_with_one_sentence(cohort, tmp_path):
    done = command(cohort, "forest-4", tmp_path / "models")
    assert done.returncode == 1
    assert done.stderr.startswith("error: experiment 'forest-4': site 'north' has 4 labelled case(s)")
    assert "lower experiments.forest-4.shots" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "models").exists()


def test_transfer_learns_from_other_sites_without_a_shot_and_pooled_draws_from_all(cohort, tmp_path):
    inputs = stage_inputs(cohort)
    for name, places in (("forest-transfer", ["north/seed-0", "north/seed-1"]), ("forest-pooled", ["all/seed-0", "all/seed-1"])):
        fit_experiment(name, out=tmp_path / name, jobs=1, **inputs)
        assert [folder.relative_to(tmp_path / name).as_posix() for folder in fits_of(tmp_path / name)] == places
    zero, pooled = (json.loads((fits_of(tmp_path / name)[0] / "fit.json").read_text()) for name in ("forest-transfer", "forest-pooled"))
    assert (zero["protocol"], zero["split"]["support"], zero["calibration_from"]) == ("transfer", [], "other sites")
    assert len(zero["split"]["query"]) == 4
    assert {*zero["split"]["source"], *zero["split"]["calibration"]} == {"sub-south4", "sub-south5"}
    assert (pooled["calibration_from"], pooled["split"]["source"], len(pooled["split"]["support"])) == ("pool", [], 3)
    assert pooled["model_bytes"] > 0


def test_unknown_experiment_and_missing_folder_are_misuse(cohort, tmp_path):
    inputs = stage_inputs(cohort)
    with pytest.raises(UsageError, match=r"no experiment 'semi-9'.*forest-1, forest-4, forest-pooled, forest-transfer, semi-1"):
        fit_experiment("semi-9", out=tmp_path / "models", **inputs)
    with pytest.raises(UsageError, match="the embed stage makes it"):
        fit_experiment("forest-1", out=tmp_path / "models", **inputs | {"embeddings": tmp_path / "nowhere"})


def test_a_killed_run_keeps_finished_fits_and_ends_like_an_unbroken_one(cohort, tmp_path, monkeypatch):
    inputs = stage_inputs(cohort)
    fit_experiment("forest-1", out=tmp_path / "whole", jobs=1, **inputs)
    made = []

    def killed_at_second(job, task, out):
        if made:
            raise KeyboardInterrupt
        made.append(job.seed)
        return real(job, task, out)

    real = fit_module.fit_one
    monkeypatch.setattr(fit_module, "fit_one", killed_at_second)
    with pytest.raises(KeyboardInterrupt):
        fit_experiment("forest-1", out=tmp_path / "models", jobs=1, **inputs)
    assert not (tmp_path / "models").exists()
    monkeypatch.setattr(fit_module, "fit_one", lambda job, task, out: made.append(job.seed) or real(job, task, out))
    fit_experiment("forest-1", out=tmp_path / "models", jobs=1, **inputs)
    assert sorted(made) == [0, 1]
    task, cases = load_task(**inputs)
    for folder in fits_of(tmp_path / "whole"):
        again = tmp_path / "models" / folder.relative_to(tmp_path / "whole")
        np.testing.assert_array_equal(load_fitted(folder, task).predict(cases[0]), load_fitted(again, task).predict(cases[0]))
    shutil.rmtree(tmp_path / "models")


def test_processes_give_what_one_process_gives(cohort, tmp_path):
    inputs = stage_inputs(cohort)
    for jobs in (1, 2):
        fit_experiment("semi-1", out=tmp_path / str(jobs), jobs=jobs, **inputs)
    for folder in fits_of(tmp_path / "1"):
        other = tmp_path / "2" / folder.relative_to(tmp_path / "1")
        assert sha256(folder / "weights.safetensors") == sha256(other / "weights.safetensors")
        assert json.loads((folder / "fit.json").read_text())["temperature"] == json.loads((other / "fit.json").read_text())["temperature"]
