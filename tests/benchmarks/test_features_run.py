"""The whole benchmark on a folder of made-up heads: ingest, resample, features, probes, naming, table; and again, from what is kept."""

from __future__ import annotations

import nibabel
import numpy as np
import pandas as pd
import pytest

from benchmarks import features
from benchmarks.feature_table import COLUMNS
from pipelines.errors import DataError, UsageError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three subjects of one hospital, named as BIDS names them; $SEMIFLOW_DATA holds nothing else."""
    tmp_path = tmp_path_factory.mktemp("features")
    generator = np.random.default_rng(0)
    z, row, column = np.meshgrid(*(np.arange(size) for size in (6, 48, 40)), indexing="ij")
    head = ((row - 24) / 20) ** 2 + ((column - 20) / 16) ** 2 < 1
    for number in range(3):
        lesion = head & (np.hypot(row - 18 - 5 * number, column - 20) < 6) & (z > 0)
        folder = tmp_path / "data" / "tcga-lgg" / "HT" / f"sub-{number}" / "anat"
        folder.mkdir(parents=True)
        for suffix, values in (("FLAIR", 100 * head + 80 * lesion + 12 * generator.normal(size=head.shape) * head), ("dseg", lesion)):
            stored = np.moveaxis(values, 0, -1).astype(np.uint8 if suffix == "dseg" else np.float32)
            nibabel.save(nibabel.Nifti1Image(stored, np.diag([1.5, 1.5, 5, 1])), folder / f"sub-{number}_{suffix}.nii.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMIFLOW_DATA", str(tmp_path / "data"))
        yield tmp_path


def test_from_images_to_table_and_again(data, tiny_atlas, capsys):
    run = {"shots": (1, 9), "seeds": 1, "atlas": tiny_atlas, "class_ids": data / "none", "work": data / "work", "out": data / "features.csv",
           "jobs": 1}
    features.main(**run)
    said = capsys.readouterr().out
    assert "open-ms left out: conf/cohort/open-ms.yaml wants its images at" in said
    assert "class-ids left out:" in said and "9 shot(s) left out" in said
    rows = pd.read_csv(run["out"])
    assert list(rows.columns) == COLUMNS
    assert {"atlas", "filters", "atlas+filters", "random"} <= set(rows.features) and set(rows.probe) == {"linear", "forest", "zero-shot"}
    assert rows[rows.features == "filters"].dice.mean() > 0.5
    assert not list((data / "work" / "tcga-lgg" / "features").iterdir())  # large, and finished with
    features.main(**run)
    again = capsys.readouterr().out
    assert "features:" not in again and "resample" not in again
    pd.testing.assert_frame_equal(pd.read_csv(run["out"]), rows)


def test_curve_over_snapshots(data, tiny_atlas):
    (data / "snapshots").mkdir()
    for step in (500, 1000):
        (data / "snapshots" / f"step-{step:06d}").symlink_to(tiny_atlas)
    features.main(cohorts=("tcga-lgg",), snapshots=data / "snapshots", work=data / "work", out=data / "curve" / "features.csv", jobs=1)
    rows = pd.read_csv(data / "curve" / "features-curve.csv")
    assert list(rows.columns) == ["step", "cohort", "site", "case", "dice"]
    assert rows.groupby("step").size().to_dict() == {500: 3, 1000: 3}


def test_misuse_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEMIFLOW_DATA", str(tmp_path))
    with pytest.raises(DataError, match="set SEMIFLOW_DATA"):
        features.main(work=tmp_path / "work")
    with pytest.raises(UsageError, match="at least 1"):
        features.main(shots=(0,), work=tmp_path / "work")
    with pytest.raises(UsageError, match=r"--sets has 'atals'; there are atlas, filters"):
        features.main(sets=("atals",), work=tmp_path / "work")
    with pytest.raises(DataError):
        features.main(cohorts=("no-such",), work=tmp_path / "work")
    assert "conf/cohort/no-such.yaml does not exist" in capsys.readouterr().out
