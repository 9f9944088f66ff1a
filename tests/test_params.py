"""params.yaml is refused as a whole, with every problem named, before anything runs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from pipelines.errors import UsageError
from pipelines.params import DEFAULT, load_params

CONF = Path(DEFAULT).parent / "conf" / "cohort"


@pytest.fixture
def content() -> dict:
    return yaml.safe_load(DEFAULT.read_text())


def load(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_params(path)


def test_the_projects_own_params_are_valid():
    assert load_params().cohort.name == "phantom"


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cohort_of_conf_is_valid(tmp_path, content, file):
    params = load(tmp_path, content | yaml.safe_load(file.read_text()))
    assert params.cohort.name == file.stem


def test_every_problem_is_named_in_one_error(tmp_path, content):
    broken = copy.deepcopy(content)
    broken["resample"]["in_plane_mm"] = "wide"
    broken["protocol"]["seedz"] = [1]
    broken["experiments"]["semi-1"]["shots"] = 0
    with pytest.raises(UsageError) as caught:
        load(tmp_path, broken)
    message = str(caught.value)
    for part in ("params.yaml has 3 problem(s)", "resample.in_plane_mm", "'wide'", "protocol.seedz", "typo", "experiments.semi-1.shots"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(("change", "hint"), [
    (lambda p: p["experiments"]["semi-1"].update(system="semy"), "known: "),
    (lambda p: p["experiments"]["semi-1"].update(params={"stepz": 3}), "stepz"),
    (lambda p: p["ingest"]["rules"].append({"name": "x", "modality": "T9w"}), "T9w"),
    (lambda p: p["ingest"]["rules"].append({"name": "x"}), "exactly one of"),
    (lambda p: p["cohort"].update(site={"folder": 0, "constant": "x"}), "exactly one of"),
])
def test_what_pydantic_cannot_know_is_checked_too(tmp_path, content, change, hint):
    change(content)
    with pytest.raises(UsageError, match=hint):
        load(tmp_path, content)


@pytest.mark.parametrize(("text", "hint"), [("a: [", "not YAML"), ("- 1", "no sections")])
def test_not_params_at_all(tmp_path, text, hint):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=hint):
        load_params(path)


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_params(tmp_path / "none.yaml")
