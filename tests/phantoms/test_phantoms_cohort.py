"""The written cohort: reads back with the reader that ingest uses, holds the truth it was made from, and is the same every time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipelines.errors import UsageError
from pipelines.params import Simulate, load_params
from pipelines.phantoms import cohort, dicom, scanner
from pipelines.phantoms.identity import invent
from pipelines.phantoms.sites import SITES

PARAMS = Simulate(seed=7, subjects_per_site=1, missing_fraction=0.0)
#: PS3.3 type 1 attributes of a classic MR image that must have a value.
MR_TYPE_1 = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "FrameOfReferenceUID", "ImageType",
             "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored",
             "HighBit", "PixelRepresentation", "PixelSpacing",
             "ImageOrientationPatient", "ImagePositionPatient", "ScanningSequence", "SequenceVariant", "PixelData")


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Path:
    """One subject of the site with PET on a camera of its own."""
    out = tmp_path_factory.mktemp("cohort")
    cohort.simulate_subject(PARAMS, "site-c", 0, out)
    return next((out / "site-c").iterdir())


def series(subject: Path, start: str) -> list[pydicom.Dataset]:
    folder = next(subject.glob(f"{start}*"))
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def digest(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.dcm"))}


def test_every_series_reads_as_a_volume(subject):
    import highdicom as hd

    expected = SITES["site-c"].series
    for number, modality in enumerate(cohort.ORDER, start=2):
        volume = hd.get_volume_from_series(series(subject, f"{number:03d}"))
        wanted = expected[modality]
        assert volume.shape == (wanted.slices, wanted.matrix, wanted.matrix)
        np.testing.assert_allclose(volume.spacing, (wanted.step_mm, wanted.pixel_mm, wanted.pixel_mm), atol=1e-5)
        assert volume.array.max() > 20 * np.median(volume.array[:, :8, :8])
    assert hd.get_volume_from_series(series(subject, "900")).array.max() > 1000


def test_mr_headers_are_complete_and_consistent(subject):
    all_mr = [ds for number in range(2, 6) for ds in series(subject, f"{number:03d}")]
    for ds in all_mr:
        assert not [name for name in MR_TYPE_1 if ds.get(name) in (None, "")]
    assert len({ds.FrameOfReferenceUID for ds in all_mr}) == len({ds.StudyInstanceUID for ds in all_mr}) == 1
    assert len({ds.SOPInstanceUID for ds in all_mr}) == len(all_mr)
    assert {bool(ds.get("ContrastBolusAgent")) for ds in series(subject, "005")} == {True}
    assert not any("ContrastBolusAgent" in ds for ds in series(subject, "002"))
    assert all(ds.PatientName and ds.PatientBirthDate and ds.AccessionNumber and ds.InstitutionName for ds in all_mr)
    assert any(element.tag.is_private for element in all_mr[0])


def test_the_segmentation_names_its_segments_and_the_slices_it_was_drawn_on(subject):
    import highdicom as hd

    seg = hd.seg.segread(next(next(subject.glob("500*")).glob("*.dcm")))
    assert [seg.get_segment_description(i).segment_label for i in (1, 2, 3)] == ["Necrosis", "Enhancing lesion", "Edema"]
    assert set(seg.get_source_image_uids()) == {(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID) for ds in series(subject, "004")}


def test_a_segmentation_reads_back_as_the_same_mask_in_world_coordinates(tmp_path):
    import highdicom as hd

    rng = np.random.default_rng(0)
    plane = scanner.axial_stack(pixel_mm=1.5, matrix=48, step_mm=5.5, slices=12, thickness_mm=5, tilt_deg=np.array([14.0, -3, 2]))
    codes = np.where(rng.random(plane.shape) < 0.2, rng.integers(1, 4, plane.shape), 0)
    exam = dicom.Exam(invent(SITES["site-b"], 0, 1, rng), SITES["site-b"], tmp_path)
    files = dicom.write_mr(exam, SITES["site-b"].series["FLAIR"], plane, rng.uniform(0, 900, plane.shape), number=4, contrast=False)
    path = dicom.write_segmentation(exam, files, codes[..., None] == [1, 2, 3], number=500)
    read = hd.seg.segread(path).get_volume(combine_segments=True)
    for code in (1, 2, 3):
        truth = (np.argwhere(codes == code) @ plane.affine[:3, :3].T + plane.affine[:3, 3]) * dicom.TO_LPS
        found = read.map_indices_to_reference(np.argwhere(read.array == code))
        np.testing.assert_allclose(*(points[np.lexsort(points.round(3).T)] for points in (found, truth)), atol=1e-3)


def test_pet_has_what_suv_needs_and_coordinates_of_its_own(subject):
    pet, mr = series(subject, "900"), series(subject, "004")
    drug = pet[0].RadiopharmaceuticalInformationSequence[0]
    start = pydicom.valuerep.DT(drug.RadiopharmaceuticalStartDateTime)
    scan = pydicom.valuerep.DT(pet[0].SeriesDate + pet[0].SeriesTime)
    decayed = drug.RadionuclideTotalDose * 2 ** (-(scan - start).total_seconds() / drug.RadionuclideHalfLife)
    suv = np.stack([ds.pixel_array * float(ds.RescaleSlope) for ds in pet]) * float(pet[0].PatientWeight) * 1000 / decayed
    assert (pet[0].Units, pet[0].DecayCorrection) == ("BQML", "START")
    assert 0.6 < np.median(suv[suv > 0.5]) < 1.4
    assert pet[0].FrameOfReferenceUID != mr[0].FrameOfReferenceUID
    assert pet[0].StudyInstanceUID == mr[0].StudyInstanceUID


def test_equal_params_make_equal_bytes_and_a_finished_subject_is_not_made_again(subject, tmp_path):
    cohort.simulate_subject(PARAMS.model_copy(update={"subjects_per_site": 9}), "site-c", 0, tmp_path)
    again = next((tmp_path / "site-c").iterdir())
    assert digest(again) == digest(subject)
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*.dcm")}
    cohort.simulate_subject(PARAMS, "site-c", 0, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in again.rglob("*.dcm")}


def test_a_subject_keeps_within_its_share_of_300_megabytes(subject):
    assert sum(path.stat().st_size for path in subject.rglob("*.dcm")) < 300e6 / 28 * 1.3


def test_about_the_asked_fraction_of_subjects_lacks_one_modality():
    lacks = Counter(cohort.missing_modality(SITES["site-a"], 0.3, np.random.default_rng([1, i])) for i in range(400))
    assert set(lacks) == {None, "T1w", "T2w", "ceT1w", "PET"}
    assert 0.2 < 1 - lacks[None] / 400 < 0.4
    assert cohort.missing_modality(SITES["site-a"], 0.0, np.random.default_rng(0)) is None


@pytest.mark.parametrize("name", SITES)
def test_the_project_rules_find_every_modality_by_its_header(name):
    """Descriptions alone do not tell at every site; with the timing and the contrast agent the first matching rule must be right."""
    import re

    rules = load_params().ingest.rules
    for modality, protocol in SITES[name].series.items():
        def fits(rule, protocol=protocol, modality=modality):
            timing = protocol.timing
            spans = ((rule.tr_ms, timing.tr_ms), (rule.te_ms, timing.te_ms), (rule.ti_ms, timing.ti_ms if timing.kind == "ir" else None))
            return ((not rule.description or re.search(rule.description, protocol.description, re.IGNORECASE))
                    and (not rule.dicom_modality or "MR" in rule.dicom_modality) and not rule.sop_class
                    and (rule.contrast_agent is None or rule.contrast_agent == (modality == "ceT1w"))
                    and all(span is None or (value is not None and span[0] <= value <= span[1]) for span, value in spans))
        assert next(rule for rule in rules if fits(rule)).modality == modality


def test_no_process_count_below_one(tmp_path):
    with pytest.raises(UsageError, match="--jobs is 0"):
        cohort.simulate(PARAMS, tmp_path / "out", jobs=0)


def test_the_command_line_explains_itself_and_refuses_wrong_params(tmp_path):
    helped = subprocess.run([sys.executable, "-m", "pipelines.phantoms", "--help"], capture_output=True, text=True, check=True)
    assert "invented" in helped.stdout
    (tmp_path / "params.yaml").write_text("simulate: {seed: one}\n")
    wrong = subprocess.run([sys.executable, "-m", "pipelines.phantoms", "--out", str(tmp_path / "out"), "--params", str(tmp_path / "params.yaml")],
                           capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "simulate.seed" in wrong.stderr and "Traceback" not in wrong.stderr
