"""What the benchmark of an adaptation asks the stages for, and that it measures them."""

from __future__ import annotations

import pytest

from benchmarks.adaptation import PROJECT, measured, settings_of
from pipelines.errors import DataError, UsageError
from pipelines.params import load_params

PARAMS = PROJECT / "params.yaml"


def test_one_experiment_is_left_and_other_modalities_stay_where_they_are(tmp_path):
    params = load_params(settings_of(PARAMS, tmp_path, ("FLAIR", "T1w"), shots=3))
    assert {name: (experiment.system, experiment.shots) for name, experiment in params.experiments.items()} == {"adapt": ("semi", 3)}
    assert {rule.modality for rule in params.ingest.rules if rule.modality} == {"FLAIR", "T1w"}


def test_a_modality_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no modality T9w"):
        settings_of(PARAMS, tmp_path, ("T9w",), shots=1)


def test_seconds_and_memory_are_those_of_the_stages_process():
    seconds, gigabytes = measured("prompts", ["--help"])
    assert 0.1 < seconds < 60
    assert 0.01 < gigabytes < 4


def test_a_stage_that_fails_says_why(tmp_path):
    with pytest.raises(DataError, match=r"the stage prompts failed: error: .*does not exist"):
        measured("prompts", ["--source", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
