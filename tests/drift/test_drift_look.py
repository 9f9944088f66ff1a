"""Drift of a real workspace in small: real tokens, a real fit, a new scanner."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_drift import NEW, OWN, tiny_site

from pipelines.drift.look import REPORT, gather, look
from pipelines.outputs import sha256


@pytest.fixture(scope="module")
def shifted(tmp_path_factory) -> Path:
    return tiny_site(tmp_path_factory.mktemp("shifted"), shifted=True, scanner="New One")


@pytest.fixture(scope="module")
def steady(tmp_path_factory) -> Path:
    return tiny_site(tmp_path_factory.mktemp("steady"), shifted=False)


def params_of(work: Path):
    from pipelines.params import load_params

    return load_params(work / "params.yaml")


def test_another_scanner_is_noticed_and_named(shifted):
    found, anew = look(shifted, params_of(shifted))
    assert anew
    assert found["verdict"] == "drift"
    assert found["p"] <= 0.02
    assert (found["known"], found["recent"]) == (OWN, NEW)
    assert [(entry["fact"], entry["new"], entry["known"]) for entry in found["facts"]] == [("scanner", ["New One"], ["Old One"])]
    assert found["calibration"]["cases_since"] == NEW
    assert 0 <= found["calibration"]["ece_since"] <= 1
    for words in ("The 5 latest patients of site-b differ from the 6", "scanner New One", "run adapt_site"):
        assert words in found["sentence"]
    assert json.loads((shifted / REPORT).read_text()) == found


def test_the_same_scanner_is_no_drift_and_nothing_is_read_twice(steady, monkeypatch):
    found, anew = look(steady, params_of(steady))
    assert anew
    assert found["verdict"] == "same", found["sentence"]
    monkeypatch.setattr("pipelines.drift.look._compare", None)
    assert look(steady, params_of(steady)) == (found, False)


def test_fewer_patients_than_can_show_anything(steady, tmp_path):
    work = shutil.copytree(steady, tmp_path / "site-b")
    content = params_of(work)
    few = content.service.drift.model_copy(update={"recent": 2, "p": 0.001})
    found, _ = look(work, content.model_copy(update={"service": content.service.model_copy(update={"drift": few})}), calibration=False)
    assert found["verdict"] == "too-few"
    assert "calibration" not in found


def test_the_latest_come_by_the_time_of_their_first_tokens(steady, tmp_path):
    work = shutil.copytree(steady, tmp_path / "site-b")
    groups = gather(work, work, 5)
    for age, case in enumerate(groups.recent):
        for tokens in case.tokens.values():
            os.utime(tokens.path, (1e9 - 100 * age,) * 2)
    assert [case.subject for case in gather(work, work, 2).recent] == [case.subject for case in groups.recent[:2]]


def test_a_champion_of_another_site_is_compared_with_that_sites_cases(steady, tmp_path):
    shutil.copytree(steady, tmp_path / "site-b")
    other = shutil.copytree(steady, tmp_path / "site-c")
    found, _ = look(other, params_of(other), calibration=False)
    assert found["known"] == OWN
    shutil.rmtree(tmp_path / "site-b" / "data")
    found, _ = look(other, params_of(other), calibration=False)
    assert found["verdict"] == "no-reference"


def test_sites_without_champion_or_stages(tmp_path, steady):
    (tmp_path / "site-d").mkdir()
    found, _ = look(tmp_path / "site-d", params_of(steady))
    assert found["verdict"] == "no-champion"
    run = subprocess.run([sys.executable, "-m", "pipelines.drift", "--workspace", tmp_path / "nowhere"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "is no folder" in run.stderr


def test_the_command_says_the_sentence(shifted):
    run = subprocess.run([sys.executable, "-m", "pipelines.drift", "--workspace", shifted], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("drift: The 5 latest patients of site-b differ")


def test_no_drift_file_changes_without_a_cause(shifted):
    before = sha256(shifted / REPORT)
    look(shifted, params_of(shifted))
    assert sha256(shifted / REPORT) == before
