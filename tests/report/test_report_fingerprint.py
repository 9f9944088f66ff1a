"""The report's Data section: made of a real fingerprint, warnings first, and absent where a cohort has none."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from synthetic_reports import small_params, write_experiment

from pipelines.cohort import bids_path, write_manifest, write_quarantine
from pipelines.ingest.fingerprint import fingerprint, write_fingerprint
from pipelines.params import load_params
from pipelines.report.fingerprint import MANY, data_section
from pipelines.report.stage import report
from pipelines.report.words import plain


def write_bids(folder: Path, *, faulty: bool) -> Path:
    """Two subjects at each of two sites; where faulty, the second has the first's image, and one label is empty."""
    rows = []
    for number in range(4):
        subject, site = f"S{number}", ("alpha", "beta")[number // 2]
        image = np.random.default_rng(0 if faulty and number < 2 else number).integers(0, 900, (12, 12, 6)).astype(np.int16)
        label = np.zeros((12, 12, 6), np.uint8)
        label[2 + number:5 + number, 2:5, 2:4] = not (faulty and number == 3)
        for kind, modality, array in (("image", "FLAIR", image), ("label", "dseg", label)):
            path = Path("derivatives/labels" if kind == "label" else "") / bids_path(subject, "01", "anat", modality)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 5.0, 1.0])), folder / path)
            rows.append({"subject": subject, "session": "01", "site": site, "kind": kind, "modality": modality, "path": path.as_posix(),
                         "sha256": "0" * 64, "shape": "12x12x6", "spacing_mm": "1x1x5", "slice_axis": 2, "field_strength_t": 3.0,
                         "manufacturer": "GE", "scanner": "<Signa>", "rule": "flair-name"})
        (folder / path).with_name(path.name.replace(".nii.gz", ".tsv")).write_text("index\tname\n1\toedema\n")
    write_manifest(folder, rows)
    write_quarantine(folder, [{"subject": "S0", "item": "series-A", "code": "tilted-stack", "reason": "r", "remedy": "r"}] * 2)
    return folder


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """One evaluated experiment and its params.yaml."""
    folder = tmp_path_factory.mktemp("evaluated")
    file = small_params(folder, experiments={"semi-1": {"system": "semi", "shots": 1}})
    write_experiment(folder / "reports" / "cohorts", "semi-1", load_params(file), subjects=3)
    return folder


def page(folder: Path) -> str:
    report(folder / "reports" / "cohorts", folder / "reports", folder / "params.yaml")
    text = re.sub(r"<style>.*?</style>", "", (folder / "reports" / "index.html").read_text(), flags=re.DOTALL)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text).replace("&nbsp;", " "))
    return re.sub(r" ([.,;:)])|(\() ", r"\1\2", words)


@pytest.mark.parametrize("faulty", [True, False])
def test_data_section_of_a_cohort(evaluated, tmp_path, faulty):
    copy = evaluated / "reports" / "cohorts" / "phantom" / "fingerprint.json"
    write_fingerprint(write_bids(tmp_path, faulty=faulty), copies=[copy])
    text = page(evaluated)
    assert "4 patients, 4 cases, 4 images and 4 labels from 2 sites; 2 series or files could not be used (2 tilted-stack; reasons" in text
    assert "&lt;Signa&gt;" in text
    assert "3 T" in text
    assert ("Check the data. 2 warnings about these images and labels ask for a look" in text) == faulty
    assert ("Look at this first. 1 image is there" in text) == faulty
    assert ("1 label of 4 is empty (sub-S3_ses-01). Right where a reader found nothing" in text) == faulty
    assert ("Nothing in these data asks for a look" in text) != faulty
    assert text.index("Data") < text.index("Images by sequence")


def test_cohort_without_a_fingerprint_has_no_data_section(evaluated):
    (evaluated / "reports" / "cohorts" / "phantom" / "fingerprint.json").unlink(missing_ok=True)
    text = page(evaluated)
    assert "Images by sequence" not in text
    assert "Where it fails" in text


def test_rare_combinations_are_summed_up(tmp_path):
    made = fingerprint(write_bids(tmp_path, faulty=False))
    made["combinations"] = [{"modalities": [f"M{number}"], "missing": ["T1w"], "cases": 20 - number, "labelled_cases": 1}
                            for number in range(MANY + 4)]
    rows = data_section(made)["combinations"]
    assert len(rows) == MANY
    assert sum(row["cases"] for row in rows) == sum(one["cases"] for one in made["combinations"])
    assert rows[-1]["has"] == "5 other sets"


def test_spreads_in_words(tmp_path):
    made = fingerprint(write_bids(tmp_path, faulty=False))
    (row,) = data_section(made)["modalities"]
    assert (row["shape"], row["in_plane"], row["slices"]) == ("12 × 12 × 6", "1", "5")
    made["modalities"]["FLAIR"]["slice_mm"] |= {"min": 3, "max": 6.5}
    assert data_section(made)["modalities"][0]["slices"] == "5 (3 to 6.5)"
    assert [plain(value) for value in (12345.6, 1.2345, 0.0, 0.00001, -250.4)] == ["12346", "1.23", "0", "0.000010", "-250"]
