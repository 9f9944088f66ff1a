"""A real sweep in small, as a command that is killed and goes on, and what a later one makes of what is there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pandas.testing import assert_frame_equal
from tiny_cohort import LABELS
from tiny_stages import arguments, cases_at, stage_inputs, write_stages

from pipelines.sweep.stage import sweep

ROOT = Path(__file__).parents[2]
FOREST = {"system": "random-forest", "params": {"trees": 4, "voxels_per_class": 100}}
SWEEP = {"arms": {"forest": FOREST, "semi": {"system": "semi", "role": "baseline", "params": {"steps": 2, "batch": 2, "views": 0}}},
         "grids": [{"arms": ["forest"], "shots": [1]}, {"arms": ["semi"], "shots": [1], "seeds": [0]},
                   {"arms": ["forest"], "protocol": "transfer", "shots": [0], "seeds": [0]},
                   {"arms": ["forest"], "protocol": "pooled", "shots": [3], "seeds": [0]}, {"arms": ["forest"], "shots": [3], "seeds": [0]}],
         "missing_modalities": {"arms": "all", "shots": [1]}}
FITS = 4 + 2 + 2 + 1 + 1
TIMES = ["train_seconds", "predict_seconds", "peak_mb"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_stages(tmp_path_factory.mktemp("cohort"), cases_at(north=5, south=3), protocol={"seeds": [0, 1]}, sweep=SWEEP)


def finished(work: Path) -> dict[str, float]:
    """Each finished fit and when it was made."""
    return {path.parent.relative_to(work).as_posix(): path.stat().st_mtime for path in work.glob("*/*/fit.json")}


@pytest.fixture(scope="module")
def killed(cohort) -> dict[str, float]:
    """What a killed run of the command left in the cohort's work folder."""
    command = [sys.executable, "-m", "pipelines.sweep", *arguments(cohort), f"--out={cohort / 'out'}", "--jobs=2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not finished(cohort / "sweep"):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    assert "left out: site 'south' has 3 labelled case(s), and 3 shot(s) leave 0" in output
    assert not (cohort / "out").exists()
    return finished(cohort / "sweep")


@pytest.fixture(scope="module")
def out(cohort, killed) -> Path:
    """The output of the run after the killed one."""
    sweep(out=cohort / "out", jobs=2, **stage_inputs(cohort))
    return cohort / "out"


def table(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / name, dtype={"site": str, "case": str})


def test_a_killed_sweep_goes_on_and_ends_like_an_unbroken_one(cohort, killed, out, tmp_path):
    made = finished(cohort / "sweep")
    assert 1 <= len(killed) < FITS
    assert len(made) == FITS
    assert killed.items() <= made.items()
    assert not list((cohort / "sweep").glob("*/.*.partial"))
    sweep(out=tmp_path / "out", work=tmp_path / "work", jobs=1, **stage_inputs(cohort))
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file())
    for file in files:
        if file.name in ("cases.csv", "cost.csv"):
            first, second = (table(folder, file).drop(columns=TIMES, errors="ignore") for folder in (out, tmp_path / "out"))
            assert_frame_equal(first, second)
        elif file.name != "summary.json":
            assert (out / file).read_bytes() == (tmp_path / "out" / file).read_bytes(), file


def test_the_output_is_what_the_report_reads(out):
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == ["forest-0-transfer", "forest-1", "forest-3", "forest-3-pooled", "semi-1"]
    for folder in folders:
        assert {"cases.csv", "reliability.csv", "summary.json", "overlays"} <= {path.name for path in (out / folder).iterdir()}
        rows, summary = table(out, f"{folder}/cases.csv"), json.loads((out / folder / "summary.json").read_text())
        assert set(rows.experiment) == {folder} == {summary["experiment"]}
        assert set(rows.arm) == {summary["arm"]}
        assert set(rows.protocol) == {summary["protocol"]}
        assert summary["sweep"] is True
        assert summary["role"] == ("baseline" if folder == "semi-1" else "headline")
        assert summary["fits"] == len(rows[["site", "seed"]].drop_duplicates())
        assert not rows.duplicated(["site", "seed", "case", "label"]).any()
        index = json.loads((out / folder / "overlays" / "index.json").read_text())
        assert {entry["site"] for entry in index} == set(rows.site)
    pooled = table(out, "forest-3-pooled/cases.csv")
    assert set(pooled.site) == {"all"}
    assert set(pooled.case_site) == {"north", "south"}
    pairs = [table(out, f"{name}/cases.csv").query("seed == 0")[["site", "case"]].drop_duplicates().to_numpy().tolist()
             for name in ("forest-1", "semi-1")]
    assert pairs[0] == pairs[1]


def test_costs_and_sites_left_out(out):
    costs = table(out, "cost.csv")
    assert list(costs.columns) == ["arm", "shots", "protocol", "site", "seed", "train_seconds", "predict_seconds", "peak_mb", "parameters",
                                   "model_bytes"]
    assert len(costs) == FITS
    assert (costs[["train_seconds", "predict_seconds", "model_bytes"]] > 0).all().all()
    assert costs.peak_mb.between(50, 4000).all()
    left_out = table(out, "left_out.csv")
    assert left_out[["protocol", "shots", "site"]].to_numpy().tolist() == [["within", 3, "south"]]


def test_every_subset_of_modalities_has_its_row(out):
    rows = table(out, "missing.csv")
    assert list(rows.columns) == ["arm", "system", "protocol", "shots", "site", "seed", "case", "label", "modalities", "n_modalities", "dice", "ece"]
    assert set(rows.arm) == {"forest", "semi"}
    for _, group in rows.groupby(["arm", "site", "seed", "case", "label"]):
        assert sorted(zip(group.modalities, group.n_modalities, strict=True)) == [("FLAIR", 1), ("FLAIR+T1w", 2), ("T1w", 1)]
    whole = rows[(rows.arm == "forest") & (rows.n_modalities == 2)].set_index(["site", "seed", "case", "label"]).dice.sort_index()
    cases = table(out, "forest-1/cases.csv").set_index(["site", "seed", "case", "label"]).dice.sort_index()
    assert_frame_equal(whole.to_frame(), cases.to_frame())
    assert set(rows.label) == set(LABELS)


def test_only_the_headline_arms_models_stay(cohort, out):
    assert {path.parent.parent.name for path in (cohort / "sweep").glob("*/*/model")} == {"forest"}


def test_an_added_arm_and_a_changed_one_are_all_that_is_made(cohort, out, capsys):
    content = yaml.safe_load((cohort / "params.yaml").read_text())
    content["sweep"]["arms"]["larger"] = {**FOREST, "role": "ablation", "params": {"trees": 6, "voxels_per_class": 100}}
    content["sweep"]["arms"]["semi"]["params"]["steps"] = 3
    content["sweep"]["grids"].append({"arms": ["ablation"], "shots": [1], "seeds": [0], "sites": ["north"]})
    (cohort / "more.yaml").write_text(yaml.safe_dump(content))
    before = finished(cohort / "sweep")
    inputs = stage_inputs(cohort, "more.yaml")
    sweep(out=cohort / "more", plan=True, **inputs)
    assert "semi-1: 2 fits to make\nlarger-1: 1 fits to make\n3 fits to make, 1 site(s) left out, about" in capsys.readouterr().out
    assert not (cohort / "more").exists()
    sweep(out=cohort / "more", jobs=1, **inputs)
    after = finished(cohort / "sweep")
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"semi", "larger"}
    assert {name.split("/")[0] for name in before.keys() - after.keys()} == {"semi"}, "a fit that was made anew replaces the one before"
    assert "3 of 3 fits (100 %)" in capsys.readouterr().out
    assert (cohort / "more" / "larger-1" / "cases.csv").is_file()
