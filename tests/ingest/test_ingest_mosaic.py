"""Mosaics: made from known oblique volumes with a CSA header of their own, and real ones against the volumes dcm2niix made of them."""

from __future__ import annotations

import gzip
import io
import math
import struct
import warnings
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
from scipy.spatial.transform import Rotation

from pipelines.errors import Refused
from pipelines.ingest.convert import convert
from pipelines.ingest.mosaic import frames, is_mosaic
from pipelines.ingest.source.files import SourceFile
from pipelines.ingest.volumes import canonical

SIZE = (6, 8)
SPACING = (3.0, 1.25, 0.75)  # slices, rows, columns, mm
AXES = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
ORIGIN = np.array([-31.0, 12.0, 55.0])
AXIS_NAMES = ("dSag", "dCor", "dTra")


def csa(**fields: tuple[str, list[str]]) -> bytes:
    """A CSA2 header: name -> (VR, values)."""
    out = b"SV10\x04\x03\x02\x01" + struct.pack("<2I", len(fields), 77)
    for name, (vr, values) in fields.items():
        out += struct.pack("<64si4s3i", name.encode(), len(values), vr.encode(), 0, len(values), 77)
        for value in values:
            data = value.encode() + b"\0"
            out += struct.pack("<4i", len(data), len(data), 77, len(data)) + data + b"\0" * (-len(data) % 4)
    return out


def protocol(centres: np.ndarray) -> str:
    lines = [f"sSliceArray.lSize\t = \t{len(centres)}"]
    for index, centre in enumerate(centres):
        lines += [f"sSliceArray.asSlice[{index}].sPosition.{axis}\t = \t{value}" for axis, value in zip(AXIS_NAMES, centre, strict=True)]
    return "\n".join(lines)


def positions(count: int, sign: int) -> np.ndarray:
    return ORIGIN + np.arange(count)[:, None] * SPACING[0] * sign * AXES[:, 2]


def mosaic(array: np.ndarray, sign: int = 1, listed: np.ndarray | None = None, syntax: str = ExplicitVRLittleEndian, block: int = 0x10) -> Dataset:
    """A Siemens mosaic of `array` (slices, rows, columns), whose slices follow each other along `sign` times the normal."""
    count, across = len(array), math.ceil(math.sqrt(len(array)))
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    ds.Modality, ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "MR", "patient", "2.25.2", "2.25.3", "2.25.4"
    ds.ImageType, ds.InstanceNumber, ds.EchoTime = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], 1, 30
    ds.Rows, ds.Columns = SIZE[0] * across, SIZE[1] * across
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelSpacing, ds.SpacingBetweenSlices = list(SPACING[1:]), SPACING[0]
    ds.ImageOrientationPatient = [f"{value:.10f}" for value in (*AXES[:, 0], *AXES[:, 1])]
    centre = ORIGIN + AXES[:, 0] * SPACING[2] * SIZE[1] / 2 + AXES[:, 1] * SPACING[1] * SIZE[0] / 2  # of the first tile
    corner = centre - AXES[:, 0] * SPACING[2] * ds.Columns / 2 - AXES[:, 1] * SPACING[1] * ds.Rows / 2
    ds.ImagePositionPatient = [f"{value:.8f}" for value in corner]
    ds.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", count)
    if block != 0x10:
        ds.add_new((0x29, 0x10), "LO", "ANOTHER")
    if listed is None:
        listed = positions(count, sign) - ORIGIN + centre
    header = ds.private_block(0x29, "SIEMENS CSA HEADER", create=True)
    image = {"NumberOfImagesInMosaic": ("US", [str(count)]), "SliceNormalVector": ("FD", [f"{value:.8f}" for value in sign * AXES[:, 2]])}
    header.add_new(0x10, "OB", csa(**image))
    header.add_new(0x20, "OB", csa(MrPhoenixProtocol=("UN", [protocol(listed)])))
    tiles = np.zeros((across**2, *SIZE), "<u2")
    tiles[:count] = array
    ds.PixelData = tiles.reshape(across, across, *SIZE).swapaxes(1, 2).reshape(ds.Rows, ds.Columns).tobytes()
    return ds


def affine(sign: int) -> np.ndarray:
    lps = np.eye(4)
    lps[:3, :3] = (AXES * [1, 1, sign])[:, [2, 1, 0]] * np.array(SPACING)
    lps[:3, 3] = ORIGIN
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def volume_in(ds: Dataset, folder: Path):
    path = folder / "a.dcm"
    ds.save_as(path, enforce_file_format=True)
    return next(convert([SourceFile(path, ("a.dcm",))])).result


def array(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 4000, (count, *SIZE))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(2, 20), sign=st.sampled_from([1, -1]), backwards=st.booleans(),
       stored=st.tuples(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]), st.sampled_from([0x10, 0x11])))
def test_tiles_lie_where_they_were(tmp_path, count, sign, backwards, stored):
    """Whichever way the slices follow each other, the protocol lists them, and the private blocks lie."""
    listed = positions(count, sign) + SIZE[1] / 2 * SPACING[2] * AXES[:, 0] + SIZE[0] / 2 * SPACING[1] * AXES[:, 1]
    ds = mosaic(array(count), sign, listed[::-1] if backwards else listed, *stored)
    found = volume_in(ds, tmp_path)
    assert not isinstance(found, Refused), found
    expected = canonical(array(count), affine(sign), 0)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    np.testing.assert_array_equal(found.array, expected.array)


@pytest.mark.parametrize("listed", [
    positions(5, 1) * 1.0 + np.linspace(0, 1, 5)[:, None] * AXES[:, 2],  # another step
    positions(5, -1),  # the slices before the first tile, not behind it
    positions(4, 1),  # one slice less
], ids=["step", "direction", "number"])
def test_protocol_that_disagrees(listed):
    with pytest.raises(Refused) as found:
        frames(mosaic(array(5), 1, listed=listed), 0)
    assert found.value.code == "mosaic-geometry" and any(character.isdigit() for character in found.value.reason)


def test_slab_of_a_3d_scan():
    """Its protocol lists the slab's centre only."""
    middle = positions(5, 1).mean(axis=0, keepdims=True)
    assert len(frames(mosaic(array(5), 1, listed=middle), 0)) == 5
    with pytest.raises(Refused, match="order of the tiles"):
        frames(mosaic(array(5), 1, listed=middle - 12 * AXES[:, 2]), 0)


def test_without_spacing_the_protocol_gives_the_step():
    ds = mosaic(array(5))
    del ds.SpacingBetweenSlices
    np.testing.assert_allclose([frame.position for frame in frames(ds, 0)], positions(5, 1), atol=1e-6)
    del ds[0x29, 0x1020]
    with pytest.raises(Refused, match="no SpacingBetweenSlices and no protocol"):
        frames(ds, 0)


@pytest.mark.parametrize("damage", [
    lambda ds: ds.__delitem__((0x29, 0x1010)),
    lambda ds: ds.add_new((0x29, 0x1010), "OB", b"SV10" + b"\xff" * 200),
    lambda ds: setattr(ds, "Columns", ds.Columns - 1),
    lambda ds: ds.__delitem__("ImagePositionPatient"),
    lambda ds: setattr(ds, "ImageOrientationPatient", [1, 0, 0, 0, 1, 0]),
    lambda ds: ds.add_new((0x19, 0x100A), "US", 9999),
], ids=["no CSA", "broken CSA", "matrix", "position", "orientation", "number"])
def test_damaged_mosaic(damage):
    ds = mosaic(array(5))
    damage(ds)
    with pytest.raises(Refused) as found:
        frames(ds, 0)
    assert found.value.code == "mosaic-geometry" and found.value.remedy


def test_which_images_are_mosaics():
    assert is_mosaic(["ORIGINAL", "PRIMARY", "M", "MOSAIC"]) and is_mosaic(["ORIGINAL", "PRIMARY", "VFRAME"])
    assert not is_mosaic(["ORIGINAL", "PRIMARY", "M", "ND"]) and not is_mosaic([])


def grid(count: int) -> Dataset:
    """United Imaging's: as many columns as the square root of the number, as few rows as hold the rest, each slice with its position."""
    ds = mosaic(array(count))
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    del ds[0x29, 0x0010], ds[0x29, 0x1010], ds[0x29, 0x1020]
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VFRAME"]
    slices = []
    for position in positions(count, 1):
        one = Dataset()
        one.ImagePositionPatient = [f"{value:.8f}" for value in position]
        slices.append(one)
    block = ds.private_block(0x65, "Image Private Header", create=True)
    block.add_new(0x50, "DS", str(count))
    block.add_new(0x51, "SQ", slices)
    ds.PixelData = ds.PixelData[:2 * down * SIZE[0] * ds.Columns]
    ds.Rows = down * SIZE[0]
    return ds


@pytest.mark.parametrize("count", [2, 5, 6, 9, 12])
def test_grid(count, tmp_path):
    found, expected = volume_in(grid(count), tmp_path), canonical(array(count), affine(1), 0)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    np.testing.assert_array_equal(found.array, expected.array)


def test_grid_with_a_slice_too_few():
    ds = grid(6)
    ds[0x65, 0x1050].value = "7"
    with pytest.raises(Refused, match="7 tiles and positions for 6"):
        frames(ds, 0)


@pytest.mark.parametrize("name", ["siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz", "csa_slice_norm.dcm"])
def test_scanner_headers_as_nibabel_places_them(name):
    """Oblique mosaics of two scanners, which nibabel carries for its own tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself experimental
        from nibabel.nicom.dicomwrappers import wrapper_from_data
    path = Path(nibabel.__file__).parent / "nicom" / "tests" / "data" / name
    if not path.is_file():
        pytest.skip("this nibabel comes without its tests' data")
    ds = dcmread(io.BytesIO(gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()))
    expected = wrapper_from_data(ds).affine
    found = frames(ds, 0)
    assert len(found) > 2
    for index, frame in enumerate(found):
        np.testing.assert_allclose(np.array(frame.position), (expected @ [0, 0, index, 1])[:3], atol=1e-4)
    np.testing.assert_allclose(np.array(found[0].orientation[3:]) * found[0].spacing[0], expected[:3, 0], atol=1e-6)


@pytest.mark.real_data
@pytest.mark.parametrize(("series", "reference"), [(3, "AP_3"), (4, "PA_4"), (5, "RL_5"), (6, "LR_6")])
def test_real_mosaics_in_world_coordinates(real_data, series, reference, tmp_path):
    archive = next(iter(sorted((real_data / "dcm-qa-nih").glob("*.zip"))), None)
    if archive is None:
        pytest.skip("no dcm-qa-nih archive under $SEMIFLOW_DATA")
    with zipfile.ZipFile(archive) as members:
        images = [name for name in members.namelist() if f"20180918Si/mr_000{series}/" in name and name.endswith(".dcm")]
        volume = next(name for name in members.namelist() if name.endswith(f"EPI_PE={reference}.nii"))
        files = sorted(Path(members.extract(name, tmp_path)) for name in images)
        truth = nibabel.load(members.extract(volume, tmp_path))
    stored, to_voxel = np.asarray(truth.dataobj), np.linalg.inv(truth.affine)
    assert len(files) == stored.shape[3]
    for time, path in enumerate(files):
        ds = dcmread(path)
        for frame in frames(ds, 0):
            rows, columns = np.mgrid[:frame.size[0], :frame.size[1]][..., None]
            lps = np.array(frame.position) + columns * frame.spacing[1] * frame.orientation[:3] + rows * frame.spacing[0] * frame.orientation[3:]
            voxels = (lps * [-1, -1, 1]) @ to_voxel[:3, :3].T + to_voxel[:3, 3]
            nearest = np.rint(voxels).astype(int)
            assert np.abs(voxels - nearest).max() < 1e-3
            tile = ds.pixel_array[frame.tile[0]:frame.tile[0] + frame.size[0], frame.tile[1]:frame.tile[1] + frame.size[1]]
            np.testing.assert_array_equal(stored[(*np.moveaxis(nearest, -1, 0), time)], tile)
