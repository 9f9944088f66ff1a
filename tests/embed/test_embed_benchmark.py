"""The benchmark of the embed stage on images small enough for a test."""

from __future__ import annotations

import json

import pytest

from benchmarks.embed_cache import app
from pipelines.cli import run


@pytest.mark.slow
def test_it_counts_and_measures(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(app, ["--images", "3", "--size", "64", "64", "4", "--repeats", "1", "--json", str(tmp_path / "all.json")])
    assert end.value.code == 0, capsys.readouterr().err
    results = {name: runs[0] for name, runs in json.loads((tmp_path / "all.json").read_text()).items()}
    assert {name: (numbers["new"], numbers["reused"]) for name, numbers in results.items() if name != "plain loop"} == {
        "cold": (3, 0), "cold, int8": (3, 0), "warm": (0, 3), "one new image": (1, 3)}
    assert results["cold"]["bytes_per_voxel"] == pytest.approx(14, abs=0.1)
    assert results["cold, int8"]["bytes_per_voxel"] == pytest.approx(7, abs=0.1)
    assert all(numbers["peak_mb"] > 50 and numbers["wall_s"] > 0 for numbers in results.values())
    assert "times the loop" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--source", "nowhere"], ["--images", "0"], ["--repeats", "0"]])
def test_nothing_to_measure_is_said_so(words, capsys):
    with pytest.raises(SystemExit) as end:
        run(app, words)
    assert end.value.code == 2 and "give" in capsys.readouterr().err
