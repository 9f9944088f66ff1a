"""What the embed stage says of a cohort's backbone reaches metrics.json, and its patch ceiling the page."""

from __future__ import annotations

import json
import re

import pytest
from synthetic_reports import small_params, write_experiment

from pipelines.outputs import write_json
from pipelines.params import load_params
from pipelines.report.collect import collect
from pipelines.report.metrics import all_metrics
from pipelines.report.stage import report

CEILING = {"mean": 0.9321, "cases": 6, "sites": {"alpha": {"mean": 0.9, "cases": 6}}}
FACTS = {"backbone": "transformers:models/clip", "fingerprint": "a" * 64, "precision": "int8", "bytes_per_voxel": 7.1, "times_float16_voxels": 3.55,
         "levels": {"coarse": {"channels": 64, "stride": 8}, "fine": {"channels": 24, "stride": 2}}}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    file = small_params(folder, experiments={"semi-1": {"system": "semi", "shots": 1}})
    write_experiment(folder / "reports" / "cohorts", "semi-1", load_params(file), subjects=3)
    return folder


def test_patch_ceilings_reach_metrics_and_the_page(evaluated):
    labels = [label.name for label in load_params(evaluated / "params.yaml").cohort.labels]
    ceilings = {"coarse": dict.fromkeys(labels, CEILING | {"mean": 0.5}), "fine": dict.fromkeys(labels, CEILING)}
    said = FACTS | {"patch_ceiling": ceilings, "new": 3, "volumes_per_minute": 60.1}
    write_json(evaluated / "reports" / "cohorts" / "phantom" / "embed.json", said)
    report(evaluated / "reports" / "cohorts", evaluated / "reports", evaluated / "params.yaml")
    metrics = json.loads((evaluated / "reports" / "metrics.json").read_text())["phantom"]
    assert metrics["backbone"] == FACTS | {"patch_ceiling": ceilings}  # without what differs from run to run
    assert metrics["patch_ceiling"] == dict.fromkeys(labels, 0.9321)  # the finest level
    text = re.sub(r"\s+", " ", (evaluated / "reports" / "index.html").read_text())
    assert text.count("patch ceiling 0.93") == len(labels)


@pytest.mark.parametrize("content", [None, {"new": 3}])
def test_without_it_the_evaluated_ceiling_stands(evaluated, content):
    file = evaluated / "reports" / "cohorts" / "phantom" / "embed.json"
    file.unlink(missing_ok=True)
    if content:
        write_json(file, content)
    found = collect(evaluated / "reports" / "cohorts", evaluated / "params.yaml")
    metrics = all_metrics(found)["phantom"]
    assert metrics["backbone"] is None and metrics["patch_ceiling"] == {}
