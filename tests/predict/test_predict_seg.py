"""What is written is what was found: on its images, in its codes, valid, and read back to the same mask."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from tiny_studies import AXIAL, CORONAL, LABELS, SAGITTAL, Look, segmentation_in, settings, tilted, write_study

from pipelines.cohort import read_manifest
from pipelines.errors import UsageError
from pipelines.ingest.stage import ingest
from pipelines.params import Rule
from pipelines.predict.codes import ABNORMAL, code_of
from pipelines.predict.own import OWN_RULE
from pipelines.predict.run import predict_study
from pipelines.predict.seg import SERIES, Answer, names_of, objects
from pipelines.predict.study import opened
from pipelines.resample.labels import read_lookup

LOOKS = {
    "upright": Look(),
    "oblique, thick": Look(axes=tilted(AXIAL, (14, -6, 9)), spacing=(6.5, 0.9, 0.9), shape=(8, 110, 100)),
    "flipped": Look(axes=AXIAL * np.array([-1, -1, -1]) @ np.diag([1, 1, -1]), spacing=(5.0, 1.7, 1.3), shape=(9, 60, 76)),
    "coronal, oblique": Look(axes=tilted(CORONAL, (8, 11, -5))),
    "sagittal, reversed": Look(axes=SAGITTAL * np.array([-1, 1, 1])),
}


def errors_of(path: Path) -> list[str]:
    """What dciodvfy finds wrong with a file."""
    if not shutil.which("dciodvfy"):
        reason = "dciodvfy is not installed (Debian: apt-get install dicom3tools)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if line.startswith(("Error", "Abort"))]


@pytest.fixture(params=LOOKS.values(), ids=LOOKS.keys(), scope="module")
def done(request, model, tmp_path_factory):
    """(study folder, output folder, verdict) of one kind of study."""
    home = tmp_path_factory.mktemp("study")
    study = write_study(home / "study", 21, request.param)
    return study, home / "out", predict_study(study, home / "out", model, settings(), even_if_withheld=True)


def test_it_reads_back_to_the_same_mask_on_its_image(done, tmp_path):
    """The written segmentation, ingested with the study it belongs to, covers the voxels that it covers in the archive's own coordinates."""
    study, out, verdict = done
    shutil.copytree(study, tmp_path / "both")
    shutil.copy(next(out.glob("*_seg.dcm")), tmp_path / "both" / "seg.dcm")
    ingest(tmp_path / "both", tmp_path / "bids", settings(), site="site-b", jobs=1)
    (row,) = [row for row in read_manifest(tmp_path / "bids").itertuples() if row.kind == "label"]
    image = nibabel.load(tmp_path / "bids" / row.path)
    array, lookup = np.asarray(image.dataobj), read_lookup(tmp_path / "bids" / row.path)
    assert sorted(lookup.values()) == sorted(LABELS)
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    written = points_of(segmentation_in(out))
    for value, name in lookup.items():
        read = np.argwhere(array == value) @ image.affine[:3, :3].T + image.affine[:3, 3]
        assert len(read) > 20, f"{name} was not found, so that nothing is shown"
        assert len(read) * voxel_ml == pytest.approx(verdict.volumes_ml[name])
        expected = written[LABELS.index(name) + 1]
        assert len(read) == len(expected)
        np.testing.assert_allclose(in_order(read), in_order(expected), atol=0.05)


def points_of(seg: pydicom.Dataset) -> dict[int, np.ndarray]:
    """World coordinates (RAS mm) of the pixels of each segment, by the frames' own positions (PS3.3 C.7.6.2.1.1)."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    spacing = [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    found: dict[int, list[np.ndarray]] = {}
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        where = np.argwhere(pixels)
        origin = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        points = origin + where[:, :1] * spacing[0] * cosines[3:] + where[:, 1:] * spacing[1] * cosines[:3]
        found.setdefault(int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber), []).append(points * [-1, -1, 1])
    return {number: np.concatenate(parts) for number, parts in found.items()}


def in_order(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(np.round(points, 1).T)]


def test_the_objects_are_valid(done):
    _, out, _ = done
    for kind in SERIES:
        (path,) = out.glob(f"*_{kind}.dcm")
        assert errors_of(path) == []


def test_segments_are_coded_and_say_who_made_them(predicted, model):
    _, out, study = predicted()
    seg = segmentation_in(out)
    source = pydicom.dcmread(next(study.rglob("*.dcm")), stop_before_pixels=True)
    assert (seg.SegmentationType, seg.PatientID, seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (
        "BINARY", source.PatientID, source.StudyInstanceUID, source.FrameOfReferenceUID)
    for number, (segment, label) in enumerate(zip(seg.SegmentSequence, LABELS, strict=True), 1):
        (kind,), (category,), (algorithm,) = (segment.SegmentedPropertyTypeCodeSequence, segment.SegmentedPropertyCategoryCodeSequence,
                                              segment.SegmentationAlgorithmIdentificationSequence)
        assert (segment.SegmentNumber, segment.SegmentLabel, segment.SegmentAlgorithmType) == (number, label, "AUTOMATIC")
        assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == code_of(label)
        assert category.CodeValue == ABNORMAL.value
        assert model.version in algorithm.AlgorithmVersion
        assert segment.TrackingUID
    referenced = {item.ReferencedSOPInstanceUID for series in seg.ReferencedSeriesSequence for item in series.ReferencedInstanceSequence}
    flair = [pydicom.dcmread(path, stop_before_pixels=True) for path in study.rglob("*.dcm")]
    assert referenced == {one.SOPInstanceUID for one in flair if "FLAIR" in one.SeriesDescription}


def test_codes_agree_with_the_standard_and_unknown_labels_have_one(tmp_path):
    for label, code in (("tumour-core", codes.SCT.Neoplasm), ("oedema", codes.cid7159.Edema), ("necrosis", codes.cid7159.Necrosis),
                        ("enhancing-tumour", codes.cid7159.EnhancingLesion), ("ms-lesion", codes.SCT.Lesion)):
        assert code_of(label)[:2] == (code.value, code.scheme_designator)
    assert code_of("never heard of") == ABNORMAL == code_of("tumour", tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("oedema: [1, 2]")
    with pytest.raises(UsageError, match="no table of codes"):
        code_of("oedema", tmp_path / "bad.yaml")


def test_probability_and_uncertainty_say_what_the_mask_says(predicted):
    _, out, _ = predicted()
    shares = pydicom.dcmread(next(out.glob("*_probability.dcm")))
    assert (shares.SegmentationType, shares.SegmentationFractionalType, shares.MaximumFractionalValue) == ("FRACTIONAL", "PROBABILITY", 255)
    sure, found = points_above(shares, 0.55), points_of(segmentation_in(out))
    for number in (1, 2):
        inside = {tuple(point) for point in np.round(found[number], 1)}
        assert len(sure[number]) > 10
        assert {tuple(point) for point in np.round(sure[number], 1)} <= inside, "what is more probable than all else together is segmented"
    unsure = pydicom.dcmread(next(out.glob("*_uncertainty.dcm")))
    mapping = unsure.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    values = unsure.pixel_array * float(mapping.RealWorldValueSlope) + float(mapping.RealWorldValueIntercept)
    assert 0 == values.min() < 0.3 < values.max() <= 1
    assert unsure.NumberOfFrames == 9


def points_above(seg: pydicom.Dataset, share: float) -> dict[int, np.ndarray]:
    """As `points_of`, of a fractional segmentation."""
    import copy

    cut = copy.copy(seg)
    cut.PixelData = (seg.pixel_array > share * seg.MaximumFractionalValue).astype(np.uint8).tobytes()
    return points_of(cut)


def test_the_same_prediction_is_the_same_object(predicted, model, tmp_path):
    """UIDs depend on study, model and settings: made again they are equal, and nothing else is but the times."""
    _, first, study = predicted()
    predict_study(study, tmp_path / "again", model, settings())
    one, other = segmentation_in(first), segmentation_in(tmp_path / "again")
    for dataset in (one, other):
        for element in dataset.iterall():
            if element.keyword.endswith(("Date", "Time", "DateTime")):
                element.value = None
    assert one == other
    wider = settings().model_copy(update={"resample": settings().resample.model_copy(update={"in_plane_mm": 2.0})})
    predict_study(study, tmp_path / "wider", model, wider, even_if_withheld=True)
    assert segmentation_in(tmp_path / "wider").SOPInstanceUID != one.SOPInstanceUID


def test_predictions_do_not_become_truth_where_ingest_has_the_rule(predicted, tmp_path):
    """A segmentation of ours that comes back from the archive is no label, also when it was de-identified on the way."""
    from pipelines.ingest.deidentify.stage import deidentify

    _, out, study = predicted()
    for path in out.glob("*.dcm"):
        shutil.copy(path, study)
    guarded = settings()
    guarded = guarded.model_copy(update={"ingest": guarded.ingest.model_copy(update={"rules": [Rule(**OWN_RULE), *guarded.ingest.rules]})})
    deidentify(study, tmp_path / "clean", guarded, jobs=1)
    for source in (study, tmp_path / "clean"):
        ingest(source, tmp_path / "bids", guarded, site="site-b", jobs=1)
        assert set(read_manifest(tmp_path / "bids").kind) == {"image"}
        skipped = [line for line in (tmp_path / "bids" / "decisions.tsv").read_text().splitlines() if "own-prediction" in line]
        assert len(skipped) == 3


def test_a_study_with_nothing_to_find_gets_an_empty_valid_segmentation(model, tmp_path):
    study = write_study(tmp_path / "study", 22)
    with opened(study, settings(), "site-b") as there:
        size = len(there.frames), *there.frames[0].size
        answer = Answer(np.zeros(size, np.uint8), np.zeros((*size, 2), np.float32), np.zeros(size, np.float32))
        made = objects(there, answer, model, names_of(there.uid, model, settings(), there.pseudonyms))
    for kind, dataset in made.items():
        dataset.save_as(tmp_path / f"{kind}.dcm", enforce_file_format=True)
        assert errors_of(tmp_path / f"{kind}.dcm") == []
    assert not made["seg"].pixel_array.any()


def test_a_multi_frame_study_gets_what_its_single_frames_would(predicted, model, tmp_path):
    """The same slices as one enhanced object: the same mask, at the same places, valid, and read back."""
    _, out, study = predicted()
    flair = sorted((pydicom.dcmread(path) for path in study.rglob("*.dcm")), key=lambda one: int(one.InstanceNumber))
    flair = [one for one in flair if "FLAIR" in one.SeriesDescription]
    (tmp_path / "enhanced").mkdir()
    enhanced(flair).save_as(tmp_path / "enhanced" / "flair.dcm", enforce_file_format=True)
    for path in study.rglob("*T1*/*.dcm"):
        shutil.copy(path, tmp_path / "enhanced")
    predict_study(tmp_path / "enhanced", tmp_path / "enhanced-out", model, settings(), even_if_withheld=True)
    single, multi = points_of(segmentation_in(out)), points_of(segmentation_in(tmp_path / "enhanced-out"))
    for number in (1, 2):
        np.testing.assert_allclose(in_order(multi[number]), in_order(single[number]), atol=0.02)
    for path in (tmp_path / "enhanced-out").glob("*.dcm"):
        assert errors_of(path) == []
    shutil.copy(next((tmp_path / "enhanced-out").glob("*_seg.dcm")), tmp_path / "enhanced")
    ingest(tmp_path / "enhanced", tmp_path / "bids", settings(), site="site-b", jobs=1)
    assert "label" in set(read_manifest(tmp_path / "bids").kind)


def enhanced(frames: list[pydicom.Dataset]) -> pydicom.Dataset:
    """Single-frame slices as one Enhanced MR object (PS3.3 A.36)."""
    import copy

    from pydicom import Dataset
    from pydicom.uid import EnhancedMRImageStorage

    first, made = frames[0], copy.deepcopy(frames[0])
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    made.NumberOfFrames, made.PixelData = len(frames), b"".join(one.PixelData for one in frames)

    def item(**values: object) -> Dataset:
        one = Dataset()
        for name, value in values.items():
            setattr(one, name, value)
        return one

    made.SharedFunctionalGroupsSequence = [item(
        PixelMeasuresSequence=[item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
        PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")])]
    made.PerFrameFunctionalGroupsSequence = [item(
        PlanePositionSequence=[item(ImagePositionPatient=one.ImagePositionPatient)],
        FrameContentSequence=[item(StackID="1", InStackPositionNumber=number, DimensionIndexValues=[1, number])])
        for number, one in enumerate(frames, 1)]
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceLocation"):
        del made[name]
    return made


def test_out_is_not_overwritten_unless_it_is_a_prediction(predicted, model, tmp_path):
    _, _, study = predicted()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds something other than a prediction"):
        predict_study(study, tmp_path / "mine", model, settings())
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
