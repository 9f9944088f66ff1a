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
    sections = yaml.safe_load(file.read_text())
    for name in ("sweep", "continual"):
        sections[name] = {"arms": content[name]["arms"]} | sections.get(name, content[name])
    params = load(tmp_path, content | sections)
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


@pytest.mark.parametrize(("change", "hint"), [
    (lambda sweep: sweep["grids"][0].update(arms=["semy"]), r"'semy' is no arm of the sweep and no role.*arms: .*unet; roles: ablation"),
    (lambda sweep: sweep["grids"][0].update(arms=[]), "names no arm"),
    (lambda sweep: sweep["grids"][0].update(shots=[]), r"sweep\.grids\.0\.shots"),
    (lambda sweep: sweep.update(grids=[]), r"sweep\.grids"),
    (lambda sweep: sweep["grids"][0].update(shots=[0]), r"sweep\.grids\.0\.shots.*0 shots need 'protocol: transfer'"),
    (lambda sweep: sweep["grids"][0].update(seedz=[1]), "seedz"),
    (lambda sweep: sweep["arms"]["unet"].update(system="unett"), "arm 'unet': there is no system 'unett'"),
    (lambda sweep: sweep["arms"]["unet"].update(params={"stepz": 1}), "arm 'unet': stepz"),
    (lambda sweep: sweep["arms"]["unet"].update(role="rival"), "'ablation' or 'control'"),
    (lambda sweep: sweep["arms"]["unet"].pop("role"), r"exactly one arm has the role 'headline'.*2 have it \(semi, unet\)"),
    (lambda sweep: sweep["arms"].update(baseline={"system": "unet", "role": "baseline"}), "stands for several arms"),
    (lambda sweep: sweep.update(missing_modalities={"arms": ["semi"], "shots": [3]}), "wants arm 'semi' with 3 shot"),
])
def test_a_sweep_that_cannot_be_is_refused_with_its_reason(tmp_path, content, change, hint):
    change(content["sweep"])
    with pytest.raises(UsageError, match=hint):
        load(tmp_path, content)


def test_no_shots_are_for_transfer_alone(tmp_path, content):
    content["experiments"]["semi-1"] |= {"shots": 0, "protocol": "transfer"}
    assert load(tmp_path, content).experiments["semi-1"].shots == 0
    content["experiments"]["semi-1"] |= {"protocol": "within"}
    with pytest.raises(UsageError, match=r"experiments\.semi-1\.shots.*0 shots need"):
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
