"""Damaged files are refused or read as what they hold: no crash, no hang, no wrong volume, no name. `benchmarks/fuzz_ingest.py` does more of it."""

from __future__ import annotations

import multiprocessing
import time

import numpy as np
import pytest

from benchmarks import fuzz_ingest
from benchmarks.damage import DAMAGES, bases, damaged
from benchmarks.independent import explained, slices
from benchmarks.random_series import classic, write
from pipelines.ingest.volumes import canonical


def test_three_hundred_damaged_series():
    report = fuzz_ingest.fuzz(range(300), seed=1, jobs=2)
    assert report.faults == []
    assert sum(report.outcomes.values()) == 300
    assert report.outcomes["volume"] > 30, "hardly any volume was compared"
    assert sum(count for name, count in report.outcomes.items() if name.startswith("refused")) > 30


def test_each_damage_changes_files():
    original = bases(None)[0][1]
    for name, damage in DAMAGES.items():
        assert any(damage(original, np.random.default_rng(seed)) != original for seed in range(5)), name
    assert damaged(7, 0, None) == damaged(7, 0, None)


@pytest.mark.parametrize("fault", ["value", "place", "copy"])
def test_independent_reading_sees_a_wrong_volume(fault, tmp_path):
    datasets, values, affine = classic(np.random.default_rng(3))
    write(datasets, tmp_path)
    truth, volume = slices(sorted(tmp_path.iterdir())), canonical(values, affine, 0)
    array, placed = volume.array.copy(), volume.affine.copy()
    assert explained(array, placed, volume.slice_axis, truth)
    if fault == "value":
        array[1, 1, 1] += 1
    elif fault == "place":
        placed[0, 3] += 0.3
    else:
        array = np.moveaxis(array, volume.slice_axis, 0)
        array[0] = array[1]
        array = np.moveaxis(array, 0, volume.slice_axis)
    assert not explained(array, placed, volume.slice_axis, truth)


def broken(kind, number, *_):
    if number == 1 and kind == "hang":
        time.sleep(60)
    if number == 1 and kind == "crash":
        multiprocessing.current_process().kill()
    return "none", "volume", ""


@pytest.mark.parametrize("kind", ["hang", "crash"])
def test_watchdog_counts_processes_that_hang_or_die_and_goes_on(kind, monkeypatch):
    monkeypatch.setattr(fuzz_ingest, "HANG_S", 1.0)
    monkeypatch.setattr(fuzz_ingest, "outcome", lambda *args: broken(kind, *args))
    report = fuzz_ingest.fuzz(range(6), seed=0, jobs=2)
    assert report.outcomes == {"volume": 5, kind: 1}
    assert report.faults[0].startswith(f"{kind}: number 1")
