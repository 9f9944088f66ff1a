"""Every defect put into a series is caught by the stage, with its code; nothing undamaged is refused.

A damaged T2 series lies beside a whole T1 series. `DEFECTS` says what each defect does to the data sets of any series, and which codes may name it:
most have one; where the header does not tell two causes apart (a copy of a slice, moved), there are as many as there are causes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from pipelines.cohort import read_manifest, read_quarantine
from pipelines.ingest.pseudonyms import Pseudonyms

OBLIQUE = Rotation.from_euler("xyz", [20, -35, 10], degrees=True).as_matrix()
CORONAL = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]).T.astype(float)
SCALED = {"RescaleSlope": 2.5, "RescaleIntercept": -100}
BASES = {"axial": {}, "oblique": {"axes": OBLIQUE, "spacing": (2.2, 0.9375, 0.9375)}, "coronal scaled": {"axes": CORONAL, "tags": SCALED}}
SLICES = 9

Damage = Callable[[list[Dataset]], list[Dataset] | None]


def each(**tags) -> Damage:
    """The same values in every slice; None takes a tag out."""
    def damage(series):
        for dataset in series:
            put(dataset, **tags)
    return damage


def one(index: int = 4, **tags) -> Damage:
    return lambda series: put(series[index], **tags)


def put(dataset: Dataset, **tags) -> None:
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)


def without(*indices: int) -> Damage:
    return lambda series: [dataset for index, dataset in enumerate(series) if index not in indices]


def axes(dataset: Dataset) -> np.ndarray:
    along, down = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    return np.array([along, down, np.cross(along, down)])


def move(dataset: Dataset, *shift: float) -> None:
    """Shift a slice by millimetres along its row, its column and its normal."""
    dataset.ImagePositionPatient = [f"{value:.6f}" for value in np.array(dataset.ImagePositionPatient, float) + np.array(shift) @ axes(dataset)]


def moved(shifts: Callable[[int], tuple[float, float, float]]) -> Damage:
    def damage(series):
        for index, dataset in enumerate(series):
            move(dataset, *shifts(index))
    return damage


def turn(dataset: Dataset, degrees: float = 90) -> None:
    rotation = Rotation.from_euler("x", degrees, degrees=True)
    dataset.ImageOrientationPatient = [f"{value:.8f}" for value in rotation.apply(axes(dataset)[:2]).ravel()]


def copied(dataset: Dataset, name: object, **tags) -> Dataset:
    """Another image at the same place."""
    other = copy.deepcopy(dataset)
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[dataset.SOPInstanceUID, str(name)])
    other.PixelData = bytes(reversed(dataset.PixelData))
    put(other, **tags)
    return other


def added(*indices: int, **tags) -> Damage:
    return lambda series: [*series, *(copied(series[index], "copy", **tags) for index in indices)]


def scout(series):
    other = copied(series[4], "scout")
    turn(other)
    return [*series, other]


def two_stacks(series):
    for dataset in series[5:]:
        move(dataset, 0, 0, 41.3)


def two_orientations(series):
    for dataset in series[5:]:
        turn(dataset, 30)


def every_second(**tags) -> Damage:
    def damage(series):
        for dataset in series[::2]:
            put(dataset, **tags)
    return damage


def other_content(series):
    other = copy.deepcopy(series[4])
    other.PixelData = bytes(reversed(other.PixelData))
    return [*series, other]


def colour(series):
    for dataset in series:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = dataset.PixelData * 3


def no_image(sop_class: str, modality: str) -> Damage:
    def damage(series):
        dataset = series[0]
        for name in ("Rows", "Columns", "PixelData", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "BitsAllocated"):
            delattr(dataset, name)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
        dataset.Modality = modality
        return [dataset]
    return damage


def film(series):
    for dataset in series:
        dataset.file_meta.TransferSyntaxUID = MPEG2MPML
        dataset.PixelData = encapsulate([dataset.PixelData])


def some_rescaled(series):
    each(RescaleSlope=2, RescaleIntercept=0)(series)
    put(series[4], RescaleSlope=None, RescaleIntercept=None)


def cut_short(series):
    series[4].PixelData = series[4].PixelData[:-40]


GEOMETRY = {"no-geometry"}
DEFECTS: dict[str, tuple[Damage, set[str]]] = {
    **{f"missing {where}": (without(*where), {"missing-slices"}) for where in [(1,), (4,), (7,), (3, 4), (2, 6), (2, 3, 6)]},
    "two thirds missing, one here and there": (without(1, 2, 4, 5, 6), {"missing-slices", "uneven-spacing"}),
    "one slice too far": (moved(lambda index: (0, 0, 0.6 * (index == 4))), {"uneven-spacing"}),
    "step grows": (moved(lambda index: (0, 0, 0.08 * index**2)), {"uneven-spacing"}),
    "uneven by two percent": (moved(lambda index: (0, 0, 0.06 * (-1) ** index)), {"uneven-spacing"}),
    "other image at a place": (added(4), {"duplicate-position"}),
    "other image at three places": (added(1, 4, 5), {"duplicate-position"}),
    "same UID, other pixels": (other_content, {"conflicting-copies"}),
    "gantry tilt": (moved(lambda index: (0, 0.9 * index, 0)), {"tilted-stack"}),
    "gantry tilt of two degrees": (moved(lambda index: (0, 0.08 * index, 0)), {"tilted-stack"}),
    "one slice aside": (moved(lambda index: (3.0 * (index == 4), 0, 0)), {"tilted-stack", "several-stacks"}),
    "two stacks": (two_stacks, {"several-stacks"}),
    "two stacks side by side": (moved(lambda index: (30.0 * (index > 4), 0, 0)), {"several-stacks"}),
    "two orientations": (two_orientations, {"mixed-orientation"}),
    "stray scout": (scout, {"mixed-orientation", "localiser"}),
    "two echoes in one stack": (every_second(EchoTime=90.0), {"mixed-echo"}),
    "two b-values in one stack": (every_second(DiffusionBValue=1000.0), {"mixed-b-value"}),
    "second time point lacks a slice": (added(0, 1, 2, 4, 5, 6, 7, 8, InstanceNumber=99), {"incomplete-volumes", "several-volumes"}),
    "mixed rescale kind": (some_rescaled, {"mixed-rescale"}),
    "mixed rescale type": (one(RescaleType="HU"), {"mixed-rescale"}),
    "mixed matrix": (one(Rows=8, Columns=7), {"mixed-matrix"}),
    "mixed frame of reference": (one(FrameOfReferenceUID="1.2.3"), {"mixed-frame"}),
    "mixed pixel spacing": (one(PixelSpacing=[1.5, 1.5]), {"mixed-spacing"}),
    "mixed object class": (one(SOPClassUID=CTImageStorage), {"mixed-objects"}),
    "localiser by its image type": (each(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), {"localiser"}),
    "one localiser by its image type": (one(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), {"localiser"}),
    "colour capture": (colour, {"colour-image"}),
    "palette colour": (each(PhotometricInterpretation="PALETTE COLOR"), {"colour-image"}),
    "text burned in": (each(BurnedInAnnotation="YES"), {"burned-in"}),
    "text burned into one": (one(BurnedInAnnotation="YES"), {"burned-in"}),
    "report": (no_image(BasicTextSRStorage, "SR"), {"no-image"}),
    "presentation state": (no_image(GrayscaleSoftcopyPresentationStateStorage, "PR"), {"no-image"}),
    "key object": (no_image(KeyObjectSelectionDocumentStorage, "KO"), {"no-image"}),
    "PDF": (no_image(EncapsulatedPDFStorage, "DOC"), {"no-image"}),
    "no rows": (each(Rows=0), {"no-image"}),
    "no rows in one": (one(Rows=0), {"no-image"}),
    "pixel spacing 0": (each(PixelSpacing=[0, 0]), GEOMETRY),
    "pixel spacing negative": (each(PixelSpacing=[-1, 1]), GEOMETRY),
    "no pixel spacing": (each(PixelSpacing=None), GEOMETRY),
    "no position in one": (one(ImagePositionPatient=None), GEOMETRY),
    "no orientation": (each(ImageOrientationPatient=None), GEOMETRY),
    "screenshot": (lambda series: [each(SOPClassUID=SecondaryCaptureImageStorage, PixelSpacing=None, ImagePositionPatient=None,
                                        ImageOrientationPatient=None)(series), series][1], GEOMETRY | {"multi-frame"}),
    "orientation of no length": (each(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), GEOMETRY),
    "orientation not perpendicular": (each(ImageOrientationPatient=[1, 0, 0, 0.5, 0.8, 0]), GEOMETRY),
    "orientation of five numbers": (each(ImageOrientationPatient=[1, 0, 0, 0, 1]), GEOMETRY),
    "more bits stored than there are": (each(BitsStored=20, HighBit=19), {"bad-bits"}),
    "odd number of bits": (each(BitsAllocated=12), {"bad-bits", "truncated-file"}),
    "neither signed nor unsigned": (each(PixelRepresentation=None), {"bad-bits"}),
    "slope without an intercept that can be read": (each(RescaleSlope=2, RescaleIntercept=""), {"bad-rescale"}),
    "absurd matrix": (each(Rows=65535, Columns=65535), {"absurd-size", "truncated-file"}),
    "slope 0": (each(RescaleSlope=0, RescaleIntercept=0), {"bad-rescale"}),
    "film": (film, {"no-decoder"}),
    "no pixels": (each(PixelData=None), {"no-pixels"}),
    "no pixels in one": (one(PixelData=None), {"no-pixels"}),
    "pixels cut short in one": (cut_short, {"truncated-file"}),
    "one slice": (without(*range(1, SLICES)), {"single-slice"}),
    "no voxel differs": (lambda series: [put(dataset, PixelData=bytes(len(dataset.PixelData))) for dataset in series] and None, {"empty-image"}),
}


UNDAMAGED = "undamaged"


@pytest.fixture(scope="session")
def t2(make_series):
    """The data sets of a T2 series of SLICES slices, made on one of BASES."""
    def make(base: str = "axial", patient: str = "patient-2") -> list[Dataset]:
        array = np.random.default_rng(2).integers(0, 999, (SLICES, 8, 8))
        return make_series(array, **{"description": "t2 tse", "patient": patient, "spacing": (3.0, 0.8, 0.8), **BASES[base]}).datasets()
    return make


def write(datasets: list[Dataset], folder: Path) -> None:
    """Files in random order: their names tell nothing."""
    folder.mkdir(parents=True)
    for name, index in enumerate(np.random.default_rng(3).permutation(len(datasets))):
        datasets[index].save_as(folder / f"{name:03d}.dcm", enforce_file_format=True)


@pytest.fixture(scope="session", params=BASES)
def all_defects(request, tmp_path_factory, t2, convert, key_file):
    """For each defect, what became of a patient whose one series has it: modalities written, and codes of what was refused. All in one run."""
    folder, names = tmp_path_factory.mktemp("defects"), [*DEFECTS, UNDAMAGED]
    for name in names:
        datasets = t2(request.param, patient=name)
        write(DEFECTS[name][0](datasets) or datasets if name in DEFECTS else datasets, folder / "in" / name.replace(" ", "-"))
    convert(folder / "in", folder / "out")
    quarantine, table, pseudonym = read_quarantine(folder / "out"), read_manifest(folder / "out"), Pseudonyms(key_file.read_bytes())
    subjects = {name: pseudonym("subject", name, "") for name in names}
    return {name: (sorted(table[table.subject == subject].modality), set(quarantine[quarantine.subject == subject].code))
            for name, subject in subjects.items()}


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_caught_with_its_code(name, all_defects):
    modalities, found = all_defects[name]
    assert modalities == []
    assert found and found <= DEFECTS[name][1]


def test_undamaged_series_is_used(all_defects):
    assert all_defects[UNDAMAGED] == (["T2w"], set())


@pytest.fixture
def stage(tmp_path, make_series, convert):
    """Data sets and other files through the stage, beside a whole T1 series: modalities written, codes of the refused, and the T2's row."""
    def run(datasets, others=()):
        make_series(np.random.default_rng(1).integers(0, 999, (5, 7, 8))).write(tmp_path / "in" / "whole")
        write(datasets, tmp_path / "in" / "damaged")
        for name, content in others:
            (tmp_path / "in" / name).write_bytes(content)
        convert(tmp_path / "in", tmp_path / "out")
        quarantine, table = read_quarantine(tmp_path / "out"), read_manifest(tmp_path / "out")
        assert quarantine.empty or quarantine[["reason", "remedy"]].map(len).min().min() > 8
        return sorted(table.modality), set(quarantine.code), table[table.modality == "T2w"]
    return run


def test_series_without_a_patient_is_refused(t2, stage):
    assert stage(t2(patient=""))[:2] == (["T1w"], {"no-patient-id"})


def test_whole_volume_is_kept_where_another_one_is_incomplete(t2, stage):
    datasets = t2()
    each(EchoTime=20.0)(datasets)
    modalities, found, row = stage(added(1, 4, EchoTime=90.0)(datasets))
    assert (modalities, found) == (["T1w", "T2w"], {"incomplete-volumes"})
    assert row["shape"].iloc[0] == f"8x8x{SLICES}"


def test_identical_copies_are_left_out_and_noted(t2, stage):
    datasets = t2()
    modalities, found, row = stage([*datasets, copy.deepcopy(datasets[4]), copy.deepcopy(datasets[0])])
    assert (modalities, found) == (["T1w", "T2w"], set())
    assert "2 identical copies" in row.note.iloc[0]


@pytest.mark.parametrize(("name", "values"), [("EchoTime", (20.0, 90.0)), ("DiffusionBValue", (0.0, 1000.0)), ("TemporalPositionIdentifier", (1, 2))])
def test_whole_volumes_in_one_series_are_told_apart(name, values, t2, stage):
    datasets = t2()
    for dataset in datasets:
        setattr(dataset, name, values[0])
    others = [copied(dataset, name, InstanceNumber=dataset.InstanceNumber + 50, **{name: values[1]}) for dataset in datasets]
    modalities, found, _ = stage([*datasets, *others])
    assert modalities == ["T1w"]  # two volumes that one rule wants: no one can say which is meant
    assert found == {"several-volumes"}


def broken(kind: str, dataset: Dataset, path) -> bytes:
    dataset.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    path.unlink()
    return {"empty": b"", "text": b"notes about nothing", "cut in its header": content[:200], "cut in its pixels": content[:-30],
            "only a preamble": content[:132], "zeros": bytes(2000), "cut in its meta": content[:150]}[kind]


@pytest.mark.parametrize(("kind", "codes"), [
    ("empty", {"empty-file"}), ("text", {"not-dicom", "unreadable-file"}), ("zeros", {"not-dicom", "unreadable-file"}),
    ("cut in its header", {"unreadable-file"}), ("only a preamble", {"unreadable-file"}), ("cut in its meta", {"unreadable-file"}),
])
def test_broken_file_is_accounted_for_and_the_hole_it_leaves_is_seen(kind, codes, t2, stage, tmp_path):
    datasets = t2()
    content = broken(kind, datasets.pop(4), tmp_path / "one.dcm")
    modalities, found, _ = stage(datasets, [("broken.dcm", content)])
    assert modalities == ["T1w"]
    assert found & codes
    assert "missing-slices" in found


def test_file_cut_in_its_pixels(t2, stage, tmp_path):
    datasets = t2()
    modalities, found, _ = stage(datasets, [("broken.dcm", broken("cut in its pixels", datasets.pop(4), tmp_path / "one.dcm"))])
    assert (modalities, found) == (["T1w"], {"truncated-file"})


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "abc", ""])
def test_position_that_is_no_number(value, t2, stage, tmp_path):
    datasets = t2()
    dataset = datasets.pop(4)
    dataset.ImagePositionPatient = ["0", "0", "-98765"]
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    content = (tmp_path / "one.dcm").read_bytes().replace(b"-98765", value.encode().ljust(6))
    assert pydicom.dcmread(tmp_path / "one.dcm").Rows == 8
    modalities, found, _ = stage(datasets, [("broken.dcm", content)])
    assert (modalities, found) == (["T1w"], GEOMETRY)


@pytest.mark.parametrize("seed", range(8))
def test_no_false_alarm(seed, tmp_path):
    from benchmarks.false_alarms import refusals

    assert refusals(np.random.default_rng(seed), tmp_path, count=5) == []
