"""The cohort's fingerprint: its numbers are those of the volumes, and each warning fires on the cohort that has the fault, alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.cli import run
from pipelines.cohort import bids_path, write_manifest, write_quarantine
from pipelines.errors import DataError
from pipelines.ingest.fingerprint import FILE, describe, describe_label, fingerprint, write_fingerprint
from pipelines.ingest.fingerprint.__main__ import app

SHAPE = (20, 22, 6)
SPACING = (1.0, 1.0, 5.0)
MAKERS = ("Siemens", "GE")


@dataclass
class Cohort:
    """A cohort to write: three subjects at each of two sites, both with scanners of both makers, T1w and FLAIR, two segments."""

    images: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)  # subject, session, modality
    labels: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    columns: dict[tuple[str, str, str], dict] = field(default_factory=dict)

    @classmethod
    def clean(cls) -> Cohort:
        made = cls()
        for number in range(6):
            subject = f"S{number}"
            rng = np.random.default_rng(number)
            made.sites[subject] = "north" if number < 3 else "south"
            for modality in ("T1w", "FLAIR"):
                image = rng.integers(0, 50, SHAPE)
                image[4:16, 4:18] += 500
                made.add(subject, "01", modality, image, manufacturer=MAKERS[number % 2], field_strength_t=1.5 + number % 2 * 1.5)
            label = np.zeros(SHAPE, np.uint8)
            label[4 + number:6 + number, 8:10, 2:4], label[6 + number, 8, 2] = 1, 2
            made.labels[subject, "01"] = label
        return made

    def add(self, subject: str, session: str, modality: str, image: np.ndarray, **columns) -> None:
        self.images[subject, session, modality] = image
        self.columns[subject, session, modality] = columns

    def write(self, folder: Path) -> Path:
        rows = []
        for (subject, session, modality), image in self.images.items():
            extra = dict(self.columns[subject, session, modality])
            spacing = extra.pop("spacing", SPACING)
            common = {"subject": subject, "session": session, "site": extra.pop("site", self.sites[subject]), "kind": "image", "modality": modality}
            rows.append(self._row(folder, bids_path(subject, session, "anat", modality), image, spacing, {**common, "rule": "t1-name", **extra}))
        for (subject, session), label in self.labels.items():
            path = Path("derivatives", "labels") / bids_path(subject, session, "anat", "dseg")
            common = {"subject": subject, "session": session, "site": self.sites[subject], "kind": "label", "modality": "dseg", "rule": "mask"}
            rows.append(self._row(folder, path, label, SPACING, common))
            (folder / path).with_name(path.name.replace(".nii.gz", ".tsv")).write_text("index\tname\n1\tcore\n2\tcore & rim\n")
        write_manifest(folder, rows)
        write_quarantine(folder, [{"subject": "S1", "item": "series-X", "code": "missing-slices", "reason": "r", "remedy": "r"}])
        return folder

    @staticmethod
    def _row(folder: Path, path: Path, array: np.ndarray, spacing: tuple, common: dict) -> dict:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array.astype(np.int16 if array.dtype.kind == "i" else array.dtype), np.diag([*spacing, 1.0])), folder / path)
        return {**common, "path": path.as_posix(), "sha256": "0" * 64, "shape": "x".join(map(str, array.shape)), "slice_axis": 2,
                "spacing_mm": "x".join(f"{value:g}" for value in spacing), "source_kind": "dicom"}


def codes(folder: Path) -> set[str]:
    return {warning["code"] for warning in fingerprint(folder)["warnings"]}


def test_clean_cohort_has_no_warning_and_its_numbers_are_right(tmp_path):
    made = fingerprint(Cohort.clean().write(tmp_path))
    assert made["warnings"] == []
    assert made["counts"] == {"subjects": 6, "cases": 6, "sites": 2, "images": 12, "labels": 6, "refused": 1}
    assert made["refused"] == {"missing-slices": 1}
    t1 = made["modalities"]["T1w"]
    assert (t1["images"], t1["subjects"], t1["sites"], t1["shapes"]) == (6, 6, ["north", "south"], {"20x22x6": 6})
    assert t1["in_plane_mm"] == {"min": 1, "p10": 1, "median": 1, "p90": 1, "max": 1}
    assert t1["slice_mm"]["median"] == 5
    assert t1["manufacturers"] == {"GE": 3, "Siemens": 3}
    assert t1["field_strengths_t"] == {"1.5": 3, "3": 3}
    assert 500 <= t1["intensity"]["p0_5"]["min"] < 510
    assert made["labels"] == {"core": {"cases": 6, "absent": 0, "volume_ml": dict.fromkeys(("min", "p10", "median", "p90", "max"), 9 * 0.005)},
                              "rim": {"cases": 6, "absent": 0, "volume_ml": dict.fromkeys(("min", "p10", "median", "p90", "max"), 0.005)}}
    assert made["combinations"] == [{"modalities": ["FLAIR", "T1w"], "missing": [], "cases": 6, "labelled_cases": 6}]
    assert made["sites"]["north"]["manufacturers"] == {"GE": 2, "Siemens": 4}
    assert made["sites"]["north"]["labelled_cases"] == 3


def copied_between_sites(cohort: Cohort) -> None:
    cohort.images["S4", "01", "T1w"] = cohort.images["S0", "01", "T1w"]


def copied_within_a_site(cohort: Cohort) -> None:
    cohort.images["S1", "01", "T1w"] = cohort.images["S0", "01", "T1w"].astype(np.float32)  # another number type, the same image


def copied_within_a_subject(cohort: Cohort) -> None:
    cohort.images["S0", "01", "FLAIR"] = cohort.images["S0", "01", "T1w"]


def label_copied(cohort: Cohort) -> None:
    cohort.labels["S1", "01"] = cohort.labels["S0", "01"]


def label_emptied(cohort: Cohort) -> None:
    cohort.labels["S1", "01"] = np.zeros(SHAPE, np.uint8)


def label_inverted(cohort: Cohort) -> None:
    cohort.labels["S1", "01"] = (cohort.labels["S1", "01"] == 0).astype(np.uint8)


def label_missing(cohort: Cohort) -> None:
    del cohort.labels["S1", "01"]


def labels_missing(cohort: Cohort) -> None:
    cohort.labels.clear()


def image_nearly_constant(cohort: Cohort) -> None:
    cohort.images["S1", "01", "T1w"] = np.zeros(SHAPE, int)
    cohort.images["S1", "01", "T1w"][3, 3, 3] = 7


def timing(cohort: Cohort) -> None:
    cohort.columns["S1", "01", "T1w"]["rule"] = "t1-contrast-timing"


def agent(cohort: Cohort) -> None:
    cohort.columns["S1", "01", "T1w"]["rule"] = "t1-contrast-agent"


def thick(cohort: Cohort) -> None:
    cohort.columns["S1", "01", "T1w"]["spacing"] = (1.0, 1.0, 11.0)


def fine(cohort: Cohort) -> None:
    cohort.columns["S1", "01", "T1w"]["spacing"] = (0.4, 0.4, 5.0)


def repaired(cohort: Cohort) -> None:
    cohort.columns["S1", "01", "T1w"]["note"] = "repaired: 2 missing slices interpolated"


def moved(cohort: Cohort) -> None:
    cohort.columns["S1", "01", "T1w"]["site"] = "south"


def one_maker_each(cohort: Cohort) -> None:
    for (subject, _, _), columns in cohort.columns.items():
        columns["manufacturer"] = MAKERS[cohort.sites[subject] == "south"]


def one_site_only(cohort: Cohort) -> None:
    for key in [key for key in cohort.images if key[2] == "FLAIR" and cohort.sites[key[0]] == "south"]:
        del cohort.images[key]


@pytest.mark.parametrize(("fault", "code", "words"), [
    (copied_between_sites, "same-image-two-sites", "equal in every voxel, at two or more sites (sub-S0_ses-01 T1w = sub-S4_ses-01 T1w)"),
    (copied_within_a_site, "same-image-two-subjects", "in two or more subjects (sub-S0_ses-01 T1w = sub-S1_ses-01 T1w)"),
    (copied_within_a_subject, "same-image-twice", "(sub-S0_ses-01 FLAIR = sub-S0_ses-01 T1w)"),
    (label_copied, "same-label-two-subjects", "2 cases of different subjects share a label that is equal in every voxel (sub-S0_ses"),
    (label_emptied, "label-empty", "1 label of 6 is empty (sub-S1_ses-01)"),
    (label_inverted, "label-implausible", "1 label is larger than half"),
    (label_missing, "no-label", "1 subject of 6 has no label (sub-S1)"),
    (labels_missing, "no-labels", "none of 6 subjects"),
    (image_nearly_constant, "near-constant", "1 image is of one value in 99% of the voxels or more (sub-S1_ses-01 T1w)"),
    (timing, "modality-guessed", "of 1 image the modality was decided by timing or contrast agent"),
    (agent, "modality-guessed", "(1 T1w)"),
    (thick, "spacing-outlier", "1 image of 6 T1w is spaced 11 to 11 mm across slices, where the median is 5 mm"),
    (fine, "spacing-outlier", "0.4 to 0.4 mm within slices, where the median is 1 mm"),
    (repaired, "repaired", "1 volume is not as the scanner made it (sub-S1_ses-01)"),
    (moved, "subject-two-sites", "1 subject is at more than one site (sub-S1 at north and south)"),
    (one_maker_each, "one-maker-per-site", "(north Siemens, south GE)"),
    (one_site_only, "modality-one-site", "FLAIR exists at north only, of 2 sites"),
])
def test_warning_fires_on_its_fault_alone(tmp_path, fault: Callable[[Cohort], None], code, words):
    cohort = Cohort.clean()
    fault(cohort)
    (warning,) = fingerprint(cohort.write(tmp_path))["warnings"]
    assert warning["code"] == code
    assert words in warning["sentence"]
    assert len(warning["remedy"]) > 10
    assert warning["severity"] in ("check", "know")


def test_mistakes_come_before_limits(tmp_path):
    cohort = Cohort.clean()
    for fault in (timing, one_maker_each, label_inverted, copied_between_sites):
        fault(cohort)
    severities = [warning["severity"] for warning in fingerprint(cohort.write(tmp_path))["warnings"]]
    assert severities == ["check", "check", "know", "know"]


def test_described_volumes_are_not_read_again(tmp_path):
    cohort = Cohort.clean()
    read = fingerprint(cohort.write(tmp_path))
    affine = np.diag([*SPACING, 1.0])
    described = {bids_path(*key[:2], "anat", key[2]).as_posix(): describe(image.astype(np.float64), affine) for key, image in cohort.images.items()}
    described |= {f"derivatives/labels/{bids_path(*key, 'anat', 'dseg').as_posix()}": describe_label(label, affine, {1: "core", 2: "core & rim"})
                  for key, label in cohort.labels.items()}
    first = next(iter(described))
    assert fingerprint(tmp_path, described | {first: {}}) == read  # not described: read
    for path in tmp_path.rglob("*.nii.gz"):
        path.unlink()
    assert fingerprint(tmp_path, json.loads(json.dumps(described))) == read
    with pytest.raises(DataError, match="run ingest again"):
        fingerprint(tmp_path)


def test_what_is_written_is_plain_json_and_stable(tmp_path):
    folder = Cohort.clean().write(tmp_path / "bids")
    write_fingerprint(folder, copies=[tmp_path / "elsewhere" / FILE])
    first = (folder / FILE).read_bytes()
    assert (tmp_path / "elsewhere" / FILE).read_bytes() == first
    write_fingerprint(folder)
    assert (folder / FILE).read_bytes() == first
    assert json.loads(first) == fingerprint(folder)
    assert b"NaN" not in first
    assert b"Infinity" not in first


def test_command_line_names_the_warnings(tmp_path, capsys):
    cohort = Cohort.clean()
    label_emptied(cohort)
    with pytest.raises(SystemExit) as end:
        run(app, ["--source", str(cohort.write(tmp_path / "bids"))])
    assert end.value.code == 0
    assert "check: label-empty: 1 label of 6 is empty" in capsys.readouterr().out
    assert (tmp_path / "bids" / FILE).is_file()
    shutil.rmtree(tmp_path / "bids")
    with pytest.raises(SystemExit) as end:
        run(app, ["--source", str(tmp_path / "bids")])
    assert end.value.code == 1


@settings(max_examples=50, deadline=None)
@given(array=arrays(np.int16, (3, 4, 5), elements=st.integers(-300, 300)), place=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 4)))
def test_hash_is_of_the_values_alone(array, place):
    affine = np.eye(4)
    found = describe(array, affine)
    for same in (array.astype(np.float32), array.astype(np.float64) * 1.0, np.asfortranarray(array), np.where(array == 0, -0.0, array)):
        assert describe(same, affine) == found
    other = array.copy()
    other[place] += 1
    assert describe(other, affine)["hash"] != found["hash"]
    assert describe(array.reshape(4, 3, 5), affine)["hash"] != found["hash"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_number_count_as_zero_as_they_are_written(bad):
    array = np.random.default_rng(0).normal(size=SHAPE)
    zeroed = array.copy()
    array[0, 0, 0], zeroed[0, 0, 0] = bad, 0
    assert describe(array, np.eye(4)) == describe(zeroed, np.eye(4))


def test_percentiles_of_the_sample_are_near_those_of_the_image():
    image = np.random.default_rng(0).gamma(3.0, 100.0, (128, 128, 40))
    bright = image[image > image.mean()]
    found = describe(image, np.diag([1, 1, 5, 1]))
    assert found["median"] == pytest.approx(np.median(bright), rel=0.02)
    assert found["p99_5"] == pytest.approx(np.percentile(bright, 99.5), rel=0.05)
    assert found["foreground_ml"] == pytest.approx(bright.size * 0.005, rel=0.02)
    assert found["max"] == image.max()


def test_label_volumes_count_shared_voxels_for_each_segment():
    label = np.zeros((4, 4, 4), np.uint8)
    label[0], label[1, 0], label[3, 3, 3] = 1, 2, 7
    found = describe_label(label, np.diag([10, 10, 10, 1]), {1: "core", 2: "core & rim", 3: "cyst"})
    assert found["volumes_ml"] == {"core": 20, "rim": 4, "cyst": 0, "7": 1}
    assert found["total_ml"] == 21
