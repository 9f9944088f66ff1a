"""The manifest is the contract between the stages: what is written is read back, and what breaks it is refused."""

from __future__ import annotations

import nibabel
import numpy as np
import pandas as pd
import pandera.errors
import pytest

from pipelines.cohort import COLUMNS, bids_path, case_id, cases_of, frame, read_manifest, read_quarantine, write_manifest, write_quarantine
from pipelines.errors import DataError
from pipelines.outputs import sha256


def row(folder, modality, kind="image", value=1.0, session="01"):
    path = bids_path("p1", session, "anat", modality)
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.full((4, 6, 5), value, np.float32), np.diag([1, 5, 1, 1.0])), folder / path)
    return {"subject": "p1", "session": session, "site": "a", "kind": kind, "modality": modality, "path": str(path), "sha256": sha256(folder / path),
            "shape": "4x6x5", "spacing_mm": "1x5x1", "slice_axis": 1, "te_ms": 90.0 if kind == "image" else None}


def test_manifest_round_trip(tmp_path):
    write_manifest(tmp_path, [row(tmp_path, "T1w"), row(tmp_path, "FLAIR")])
    table = read_manifest(tmp_path)
    assert list(table.columns) == list(COLUMNS)
    assert list(table.modality) == ["FLAIR", "T1w"]
    assert table.session.tolist() == ["01", "01"]
    assert pd.isna(table.ti_ms[0])
    assert table.te_ms[0] == 90.0


@pytest.mark.parametrize("change", [{"kind": "picture"}, {"sha256": "x"}, {"shape": "4x6"}, {"slice_axis": 3}, {"subject": "John Doe"}])
def test_a_row_that_breaks_the_contract_is_refused(tmp_path, change):
    with pytest.raises(pandera.errors.SchemaError):
        write_manifest(tmp_path, [row(tmp_path, "T1w") | change])


def test_cases_put_slices_first(tmp_path):
    rows = [row(tmp_path, "T1w", value=2), row(tmp_path, "brain", "mask"), row(tmp_path, "dseg", "label")]
    write_manifest(tmp_path, rows)
    (case,) = cases_of(tmp_path, tokens={rows[0]["sha256"]: tmp_path / "t.safetensors"})
    assert case.id == "sub-p1_ses-01" == case_id("p1", "01")
    assert case.spacing_mm == (5, 1, 1)
    assert case.image("T1w").shape == case.label().shape == case.foreground().shape == (6, 4, 5)
    assert case.image("T1w").dtype == np.float32 and case.image("T1w").max() == 2
    assert list(case.tokens) == ["T1w"]


def test_a_case_without_label_says_so(tmp_path):
    write_manifest(tmp_path, [row(tmp_path, "T1w"), row(tmp_path, "brain", "mask")])
    with pytest.raises(DataError, match="no label"):
        cases_of(tmp_path)[0].label()


def test_missing_or_foreign_manifest(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.tsv").write_text("subject\tsite\n")
    with pytest.raises(DataError, match="no column"):
        read_manifest(tmp_path)


def test_quarantine_is_written_even_when_empty(tmp_path):
    write_quarantine(tmp_path, [])
    assert read_quarantine(tmp_path).empty
    write_quarantine(tmp_path, [{"subject": "p1", "item": "series 3", "code": "missing-slices", "reason": "r", "remedy": "m"}])
    assert read_quarantine(tmp_path).code.tolist() == ["missing-slices"]


def test_frame_keeps_types():
    assert frame([{"subject": "p1"}]).tr_ms.dtype == "Float64"
