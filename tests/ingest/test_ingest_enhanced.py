"""Enhanced multi-frame objects, built frame by frame from known volumes in an oblique stack and shuffled: each volume must come out where it was."""

from __future__ import annotations

import gc
import gzip
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    NuclearMedicineImageStorage,
    RLELossless,
)
from scipy.spatial.transform import Rotation

from pipelines.errors import Refused
from pipelines.ingest.convert import convert
from pipelines.ingest.enhanced import frames
from pipelines.ingest.source.files import SourceFile
from pipelines.ingest.split import split
from pipelines.ingest.volumes import canonical

SHAPE = (5, 6, 7)
SPACING = (3.0, 1.25, 0.75)  # slices, rows, columns, mm


@dataclass
class Volume:
    """A volume to store: what its frames' functional groups say beside the geometry."""

    array: np.ndarray
    tell: Callable[[Dataset], None] = lambda frame: None
    axes: np.ndarray = field(default_factory=lambda: Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix())
    origin: tuple[float, float, float] = (-31.0, 12.0, 55.0)

    @property
    def affine(self) -> np.ndarray:
        lps = np.eye(4)
        lps[:3, :3] = self.axes[:, [2, 1, 0]] * np.array(SPACING)
        lps[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def group(name: str, **values: object) -> Callable[[Dataset], None]:
    """Adds a functional group."""
    def tell(frame: Dataset) -> None:
        held = frame.get(name)
        one = held[0] if held else Dataset()
        for keyword, value in values.items():
            setattr(one, keyword, value)
        setattr(frame, name, [one])
    return tell


def both(*tells: Callable[[Dataset], None]) -> Callable[[Dataset], None]:
    return lambda frame: [tell(frame) for tell in tells] and None


def frame_of(volume: Volume, index: int, shared: bool) -> Dataset:
    frame = Dataset()
    group("PlanePositionSequence", ImagePositionPatient=[f"{value:.8f}" for value in volume.origin + index * SPACING[0] * volume.axes[:, 2]])(frame)
    if not shared:
        plane_of(volume)(frame)
    volume.tell(frame)
    return frame


def plane_of(volume: Volume) -> Callable[[Dataset], None]:
    cosines = [f"{value:.10f}" for value in (*volume.axes[:, 0], *volume.axes[:, 1])]
    return both(group("PlaneOrientationSequence", ImageOrientationPatient=cosines), group("PixelMeasuresSequence", PixelSpacing=list(SPACING[1:])))


def enhanced(volumes: list[Volume], seed: int | None = 0, shared: bool = False, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """An Enhanced MR object with the frames of `volumes`, shuffled unless `seed` is None."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    ds.Modality, ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "MR", "patient", "2.25.2", "2.25.3"
    ds.FrameOfReferenceUID, ds.InstanceNumber, ds.SeriesDescription = "2.25.4", 1, "t1"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *SHAPE[1:], 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    stored = [(frame_of(volume, index, shared), volume.array[index]) for volume in volumes for index in range(len(volume.array))]
    order = np.arange(len(stored)) if seed is None else np.random.default_rng(seed).permutation(len(stored))
    ds.NumberOfFrames = len(stored)
    ds.PerFrameFunctionalGroupsSequence = [stored[index][0] for index in order]
    common = Dataset()
    if shared:
        plane_of(volumes[0])(common)
    ds.SharedFunctionalGroupsSequence = [common]
    ds.PixelData = np.stack([stored[index][1] for index in order]).astype("<u2").tobytes()
    return ds


def volumes_in(ds: Dataset, folder: Path) -> dict[str, object]:
    """name -> volume or refusal, through the whole reader."""
    folder.mkdir(exist_ok=True)
    path = folder / "a.dcm"
    ds.save_as(path, enforce_file_format=True)
    return {one.name: one.result for one in convert([SourceFile(path, ("a.dcm",))])}


def same(found: object, truth: Volume, values: np.ndarray | None = None) -> None:
    assert not isinstance(found, Refused), found
    expected = canonical(truth.array if values is None else values, truth.affine, 0)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
    np.testing.assert_allclose(found.array, expected.array, rtol=1e-6)


def arrays(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 4000, (count, *SHAPE)))


ECHOES = [group("MREchoSequence", EffectiveEchoTime=value) for value in (30.0, 90.0)]
TIMES = [group("FrameContentSequence", TemporalPositionIndex=value) for value in (1, 2, 3)]
PHASES = [group("CardiacSynchronizationSequence", NominalCardiacTriggerDelayTime=value) for value in (0.0, 40.5, 81.0)]
INVERSIONS = [group("MRModifierSequence", InversionTimes=value) for value in (100.0, 400.0)]
PARTS = [group("MRImageFrameTypeSequence", FrameType=["ORIGINAL", "PRIMARY", "OTHER", "NONE"], ComplexImageComponent=value)
         for value in ("MAGNITUDE", "PHASE")]
DIXON = [group("MRImageFrameTypeSequence", FrameType=["DERIVED", "PRIMARY", "DIXON", value]) for value in ("WATER", "FAT")]
LABELLED = [group("MRArterialSpinLabelingSequence", ASLContext=value) for value in ("LABEL", "CONTROL")]


def diffusion(b_value: float, direction: tuple[float, ...] | None) -> Callable[[Dataset], None]:
    def tell(frame: Dataset) -> None:
        one, gradient = Dataset(), Dataset()
        one.DiffusionBValue, one.DiffusionDirectionality = b_value, "DIRECTIONAL" if direction else "ISOTROPIC" if b_value else "NONE"
        if direction:
            gradient.DiffusionGradientOrientation = list(direction)
            one.DiffusionGradientDirectionSequence = [gradient]
        frame.MRDiffusionSequence = [one]
    return tell


GRADIENTS = [diffusion(0, None), diffusion(1000, (1, 0, 0)), diffusion(1000, (0, 0.6, 0.8)), diffusion(1000, None)]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("tells", "names"), [
    ([lambda frame: None], [""]),
    (ECHOES, ["echo-1", "echo-2"]),
    (TIMES, ["time-1", "time-2", "time-3"]),
    (PHASES, ["trigger-1", "trigger-2", "trigger-3"]),
    (INVERSIONS, ["inv-1", "inv-2"]),
    (PARTS, ["part-magnitude", "part-phase"]),
    (DIXON, ["kind-water", "kind-fat"]),
    (LABELLED, ["kind-label", "kind-control"]),
    ([both(echo, one) for echo in ECHOES for one in TIMES], [f"echo-{echo}_time-{one}" for echo in (1, 2) for one in (1, 2, 3)]),
    ([both(part, echo) for part in PARTS for echo in ECHOES], [f"part-{part}_echo-{echo}" for part in ("magnitude", "phase") for echo in (1, 2)]),
], ids=["one", "echoes", "times", "cardiac", "inversions", "components", "dixon", "asl", "echoes x times", "components x echoes"])
def test_shuffled_volumes(tells, names, syntax, tmp_path):
    volumes = [Volume(array, tell) for array, tell in zip(arrays(len(tells)), tells, strict=True)]
    found = volumes_in(enhanced(volumes, syntax=syntax), tmp_path)
    assert sorted(found) == sorted(names)
    for name, volume in zip(names, volumes, strict=True):
        same(found[name], volume)


def test_diffusion(tmp_path):
    volumes = [Volume(array, tell) for array, tell in zip(arrays(4), GRADIENTS, strict=True)]
    found = list(volumes_in(enhanced(volumes, seed=None), tmp_path).items())
    assert len(found) == 4 and [name.split("_")[0] for name, _ in found] == ["b-0", "b-1000", "b-1000", "b-1000"]
    assert len({name for name, _ in found}) == 4
    for (_, volume), truth in zip(found, volumes, strict=True):
        same(volume, truth)


def test_two_stacks(tmp_path):
    turned = Rotation.from_euler("xyz", [110, 5, -20], degrees=True).as_matrix()
    first, second = (group("FrameContentSequence", StackID=value) for value in "12")
    volumes = [Volume(arrays(2)[0], first), Volume(arrays(2)[1], second, turned, (5.0, 6.0, 7.0))]
    found = volumes_in(enhanced(volumes), tmp_path)
    assert len(found) == 2
    expected = [canonical(truth.array, truth.affine, 0).affine for truth in volumes]
    matched = [[np.allclose(volume.affine, affine, atol=1e-6) for volume in found.values()] for affine in expected]
    assert np.array(matched).sum() == 2
    for truth, row in zip(volumes, matched, strict=True):
        same(list(found.values())[row.index(True)], truth)


def test_shared_groups(tmp_path):
    volume = Volume(arrays(1)[0])
    same(volumes_in(enhanced([volume], shared=True), tmp_path)[""], volume)


def test_own_group_wins_over_shared(tmp_path):
    volume = Volume(arrays(1)[0], group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=1, RescaleType="US"))
    ds = enhanced([volume], shared=True)
    group("PixelValueTransformationSequence", RescaleSlope=7, RescaleIntercept=9, RescaleType="US")(ds.SharedFunctionalGroupsSequence[0])
    same(volumes_in(ds, tmp_path)[""], volume, volume.array * 2.0 + 1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), angles=st.tuples(*[st.floats(-180, 180)] * 3), echoes=st.integers(1, 3), shared=st.booleans())
def test_any_order_and_orientation(tmp_path, seed, angles, echoes, shared):
    axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    tells = [group("MREchoSequence", EffectiveEchoTime=10.0 * (1 + one)) for one in range(echoes)]
    volumes = [Volume(array, tell, axes) for array, tell in zip(arrays(echoes), tells, strict=True)]
    found = volumes_in(enhanced(volumes, seed, shared), tmp_path)
    for number, volume in enumerate(volumes, 1):
        same(found[f"echo-{number}" if echoes > 1 else ""], volume)


def philips(scale: float, slope: float, intercept: float) -> Callable[[Dataset], None]:
    def tell(frame: Dataset) -> None:
        group("PixelValueTransformationSequence", RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")(frame)
        own = Dataset()
        own.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", scale)
        frame.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [own])
    return tell


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_philips_scale_slope(syntax, tmp_path):
    """Two time points with one measured signal, stored with another slope each."""
    measured = arrays(1)[0] / 8.0
    stored = np.rint(measured * 8), np.rint(measured * 16) + 2
    volumes = [Volume(stored[0], both(TIMES[0], philips(8, 0.5, 0))), Volume(stored[1], both(TIMES[1], philips(16, 3, -6)))]
    found = volumes_in(enhanced(volumes, syntax=syntax), tmp_path)
    for name, volume in zip(("time-1", "time-2"), volumes, strict=True):
        same(found[name], volume, measured)


@pytest.mark.parametrize("tell", [lambda frame: None, TIMES[0]], ids=["alone", "within a time point"])
def test_declared_dimension_tells_frames_apart(tell, tmp_path):
    """Two sets of frames that only a dimension nobody here knows tells apart."""
    volumes = [Volume(array, tell) for array in arrays(2)]
    ds = enhanced(volumes, seed=None)
    for number, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        group("FrameContentSequence", DimensionIndexValues=[number % SHAPE[0] + 1, number // SHAPE[0] + 1])(frame)
    pointers = []
    for keyword in (0x00209057, 0x00189090):  # InStackPositionNumber, VelocityEncodingDirection
        one = Dataset()
        one.DimensionIndexPointer = keyword
        pointers.append(one)
    ds.DimensionIndexSequence = pointers
    shuffled = np.random.default_rng(3).permutation(ds.NumberOfFrames)
    ds.PerFrameFunctionalGroupsSequence = [ds.PerFrameFunctionalGroupsSequence[index] for index in shuffled]
    ds.PixelData = np.frombuffer(ds.PixelData, "<u2").reshape(-1, *SHAPE[1:])[shuffled].tobytes()
    found = volumes_in(ds, tmp_path)
    same(found["time-1"], volumes[0])
    same(found["time-2"], volumes[1])
    del ds.DimensionIndexSequence
    assert volumes_in(ds, tmp_path)[""].code == "several-volumes"


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_frames(syntax, tmp_path):
    volumes = [Volume(array, tell) for array, tell in zip(arrays(2), ECHOES, strict=True)]
    ds = enhanced(volumes)
    ds.compress(syntax, generate_instance_uid=False)
    found = volumes_in(ds, tmp_path)
    same(found["echo-1"], volumes[0])
    same(found["echo-2"], volumes[1])


def test_concatenation(tmp_path):
    """One volume whose frames lie in two files."""
    volume = Volume(arrays(1)[0])
    for number, part in enumerate((slice(0, 2), slice(2, 5)), 1):
        ds = enhanced([volume], seed=None)
        ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[part]
        ds.PixelData = volume.array[part].astype("<u2").tobytes()
        ds.NumberOfFrames, ds.InConcatenationNumber, ds.InstanceNumber = part.stop - part.start, number, number
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.9{number}"
        ds.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    found = list(convert([SourceFile(path, (path.name,)) for path in sorted(tmp_path.iterdir())]))
    assert len(found) == 1
    same(found[0].result, volume)


def test_single_frames_that_count_themselves(make_series, voxels, tmp_path):
    """Some writers give NumberOfFrames 1 in classic objects."""
    series = make_series(voxels, tags={"NumberOfFrames": 1})
    found = list(convert([SourceFile(path, (path.name,)) for path in series.write(tmp_path)]))
    assert len(found) == 1
    expected = canonical(voxels, series.affine, 0)
    np.testing.assert_allclose(found[0].result.affine, expected.affine, atol=1e-6)
    np.testing.assert_array_equal(found[0].result.array, expected.array)


def legacy(echo: float) -> Callable[[Dataset], None]:
    return group("UnassignedPerFrameConvertedAttributesSequence", EchoTime=echo)


def test_legacy_converted(tmp_path):
    """What the converter could not assign stays as single-frame tags in a group of its own."""
    volumes = [Volume(array, legacy(echo)) for array, echo in zip(arrays(2), (10, 20), strict=True)]
    ds = enhanced(volumes)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.4"
    found = volumes_in(ds, tmp_path)
    same(found["echo-1"], volumes[0])
    same(found["echo-2"], volumes[1])


def test_highdicom_conversion(make_series, voxels, tmp_path):
    """A single-frame series, and what highdicom's converter makes of it: the same volume."""
    import highdicom as hd

    series = make_series(voxels, axes=Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix(),
                         tags={"ImageType": ["ORIGINAL", "PRIMARY", "M"], "ScanningSequence": "GR", "SequenceVariant": "NONE", "ScanOptions": "",
                               "MRAcquisitionType": "2D", "EchoTime": 10, "EchoTrainLength": 1, "RepetitionTime": 100, "MagneticFieldStrength": 3})
    slices = series.datasets()
    ds = hd.legacy.LegacyConvertedEnhancedMRImage(slices, "2.25.5", 2, "2.25.6", 1)
    assert ds.NumberOfFrames == len(voxels)
    found = volumes_in(ds, tmp_path)[""]
    expected = canonical(voxels, series.affine, 0)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
    np.testing.assert_array_equal(found.array, expected.array)


def test_scanner_header_as_nibabel_places_it():
    """An oblique Philips scan of 176 frames, which nibabel carries for its own tests; its affine is of (row, column, slice)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself experimental
        from nibabel.nicom.dicomwrappers import wrapper_from_data
    path = Path(nibabel.__file__).parent / "nicom" / "tests" / "data" / "philips_mprage.dcm.gz"
    if not path.is_file():
        pytest.skip("this nibabel comes without its tests' data")
    ds = dcmread(io.BytesIO(gzip.decompress(path.read_bytes())))
    affine, parts = wrapper_from_data(ds).affine, split(frames(ds, 0))
    assert [len(part.frames) for part in parts] == [176] and parts[0].name == ""
    positions = np.array([frame.position for frame in parts[0].frames])
    expected = affine[:3, 3] + np.arange(176)[:, None] * affine[:3, 2]
    distances = np.linalg.norm(positions[:, None] - expected[None], axis=2)
    assert distances.min(axis=0).max() < 1e-2 and distances.min(axis=1).max() < 1e-2  # its step has the digits of SpacingBetweenSlices
    assert all(frame.rescaled and frame.slope > 1 for frame in parts[0].frames)


@pytest.mark.parametrize("name", ["PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"])
def test_missing_group(name):
    ds = enhanced([Volume(arrays(1)[0])])
    del ds.PerFrameFunctionalGroupsSequence[2][name]
    with pytest.raises(Refused, match="1 of its 5 frames") as found:
        frames(ds, 0)
    assert found.value.code == "no-geometry"


def test_frames_without_groups():
    ds = enhanced([Volume(arrays(1)[0])])
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:-1]
    with pytest.raises(Refused, match="5 frames and functional groups for 4"):
        frames(ds, 0)
    del ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence
    with pytest.raises(Refused, match="functional groups for 0"):
        frames(ds, 0)


def tomogram(array: np.ndarray, step: float, words: list[str]) -> Dataset:
    ds = enhanced([Volume(array)], seed=None)
    del ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = NuclearMedicineImageStorage
    ds.Modality, ds.ImageType, ds.SpacingBetweenSlices, ds.PixelSpacing = "NM", words, step, list(SPACING[1:])
    detector = Dataset()
    volume = Volume(array)
    detector.ImageOrientationPatient = [f"{value:.10f}" for value in (*volume.axes[:, 0], *volume.axes[:, 1])]
    detector.ImagePositionPatient = list(volume.origin)
    ds.DetectorInformationSequence, ds.SliceVector = [detector], list(range(1, len(array) + 1))
    return ds


@pytest.mark.parametrize("sign", [1, -1])
def test_tomogram(sign, tmp_path):
    """A negative spacing stacks the slices against the normal."""
    array = arrays(1)[0]
    truth = Volume(array)
    lps = truth.affine @ np.diag([sign, 1.0, 1.0, 1.0])
    found = volumes_in(tomogram(array, sign * SPACING[0], ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]), tmp_path)[""]
    expected = canonical(array, lps, 0)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
    np.testing.assert_array_equal(found.array, expected.array)


def test_projections_are_refused(tmp_path):
    found = volumes_in(tomogram(arrays(1)[0], 3.0, ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]), tmp_path)[""]
    assert found.code == "multi-frame" and "5 frames" in found.reason


def test_many_frames_leave_the_collector_on(tmp_path):
    count = 1000
    tell = both(ECHOES[0], TIMES[0], PARTS[0], philips(8, 0.5, 0))
    enhanced([Volume(np.zeros((count, *SHAPE[1:])), tell)], seed=None).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    read = dcmread(tmp_path / "a.dcm", stop_before_pixels=True)
    assert len(frames(read, 0)) == count
    assert gc.isenabled()
