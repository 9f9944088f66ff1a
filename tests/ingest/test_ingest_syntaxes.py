"""Transfer syntaxes, bit depths and float pixels: one volume, however it is stored, comes out with the same values, or is refused."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pipelines.cohort import read_manifest
from pipelines.errors import Refused
from pipelines.ingest.convert import convert as volumes_of
from pipelines.ingest.source.files import SourceFile
from pipelines.ingest.streams import check_whole
from pipelines.ingest.volumes import canonical

SHAPE = (4, 32, 40)
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
#: (bits allocated, bits stored, signed)
BYTES, TWELVE, SIGNED_TWELVE, SHORTS, SIGNED_SHORTS = (8, 8, False), (16, 12, False), (16, 12, True), (16, 16, False), (16, 16, True)
WORDS, SIGNED_WORDS = (32, 32, False), (32, 32, True)
#: A 32 x 32 image of 16 bits, (row - 16)^2 + (column - 10)^2, in High-Throughput JPEG 2000, by OpenJPH 0.26.3: nothing installed here encodes it.
HIGH_THROUGHPUT = (
    "/0//UQApQAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBW"
    "ZXIgMC4yNi4zLv+QAAoAAAAAAZEAAf+TwAAms/4FB3QAwAASQAASgPwncwCxAYd0AMAAFRAABUB/f5KSAMK0AH/bn+0AhrQAwAAWpAABaYD/f/94wcLy/3+PDxaWAzi4RLG3AP9//3//"
    "cfv4Pr6P7wHIDHoxtwDAABddAABdeP9//z84qFT/f/8/OKhU/3//PzioVP9//z84qFRztfrL52v1l87X6y4hLGoxsgH/f/9//3//f/9//3//f6AP+qAP+qAP+qAP+mAAACCAAAMf16/W"
    "X9ev1l6MajG1AcAAL1qAAF66/3//PxBA0P9//w8EEPT/f/8DAQT9/3//IABB/3//PxBA0P9//w8EEPT/f/8DAQT9/3//IABBE4AADU4AADU4AADU4AADU4AADU4AADU4AADQQsVKlSpU"
    "rbQC/3//f/9//3//f/9//3//f/9//3//f/9//3//f/9/gAMOOOCAAw444IADDjjggAMOOOAAAAAIIAAAggAACCAAAMcAAAaAAAGgAABoAAAaAAAGgAABoqVKlSpUrbsC/9k=")


def volume(bits: tuple[int, int, bool]) -> np.ndarray:
    """A smooth image with noise that uses all bits."""
    _, stored, signed = bits
    low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
    ramp = np.linspace(0, 1, np.prod(SHAPE)).reshape(SHAPE)
    noise = np.random.default_rng(0).uniform(0, 0.02, SHAPE)
    values = np.rint(low + (high - low) * np.clip(ramp * 0.97 + noise, 0, 1)).astype(np.int64)
    values[0, 0, :2] = low, high
    return values


def as_bits(ds: Dataset, image: np.ndarray, bits: tuple[int, int, bool], order: str = "<") -> None:
    allocated, stored, signed = bits
    ds.Rows, ds.Columns = image.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = allocated, stored, stored - 1, int(signed)
    ds.PixelData = image.astype(f"{order}{'i' if signed else 'u'}{allocated // 8}").tobytes()
    ds["PixelData"].VR = "OB" if allocated == 8 else "OW"


@pytest.fixture
def written(make_series, tmp_path) -> Callable[..., tuple[list[Path], np.ndarray]]:
    """Writes a series of one volume with given bits in a syntax; `change` has the last word about each file."""
    def write(array: np.ndarray, bits: tuple, syntax: str, change: Callable[[Dataset], None] | None = None, **options: object):
        series, paths = make_series(array), []
        for index, ds in enumerate(series.datasets()):
            as_bits(ds, array[index], bits, ">" if syntax == ExplicitVRBigEndian else "<")
            if syntax in NATIVE:
                ds.file_meta.TransferSyntaxUID = syntax
            else:
                ds.compress(syntax, generate_instance_uid=False, **options)
            if change:
                change(ds)
            paths.append(tmp_path / f"{index}.dcm")
            ds.save_as(paths[-1], enforce_file_format=True)
        return paths, canonical(array, series.affine, 0)
    return write


def read(paths: list[Path]):
    """The one volume or refusal in `paths`, and its series."""
    found = list(volumes_of([SourceFile(path, (path.name,)) for path in paths]))
    assert len(found) == 1
    return found[0].result, found[0].series


def same(paths: list[Path], expected) -> None:
    found, _ = read(paths)
    assert not isinstance(found, Refused), found
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
    np.testing.assert_array_equal(found.array, expected.array)


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("bits", [TWELVE, SIGNED_TWELVE, SHORTS, SIGNED_SHORTS, WORDS, SIGNED_WORDS], ids=str)
def test_native(written, bits, syntax):
    same(*written(volume(bits), bits, syntax))


@pytest.mark.parametrize("syntax", [one for one in NATIVE if one != ExplicitVRBigEndian], ids=lambda syntax: syntax.name)
def test_native_bytes(written, syntax):
    same(*written(volume(BYTES), BYTES, syntax))


@pytest.mark.parametrize(("syntax", "bits"), [
    (syntax, bits) for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless) for bits in (BYTES, TWELVE, SIGNED_TWELVE, SHORTS, SIGNED_SHORTS)
], ids=str)
def test_lossless(written, syntax, bits):
    same(*written(volume(bits), bits, syntax))


@pytest.mark.parametrize(("syntax", "options", "most"), [
    (JPEGLSNearLossless, {"jls_error": 3}, 3),
    (JPEG2000, {"j2k_psnr": [70]}, 8),
])
def test_lossy_is_used_and_noted(written, syntax, options, most):
    """As far off as the encoder was allowed to, and no further."""
    paths, expected = written(volume(TWELVE), TWELVE, syntax, lambda ds: setattr(ds, "LossyImageCompression", "01"), **options)
    found, series = read(paths)
    assert not isinstance(found, Refused), found
    assert 0 < np.abs(found.array - expected.array).max() <= most
    assert "lossy compression" in series.note


def test_lossy_is_noted_in_the_cohort(written, convert, tmp_path):
    paths, _ = written(volume(TWELVE), TWELVE, JPEGLSNearLossless, lambda ds: setattr(ds, "LossyImageCompression", "01"), jls_error=3)
    summary = convert(paths[0].parent, tmp_path / "out")
    assert summary.images == 1
    table = read_manifest(tmp_path / "out")
    assert any("lossy compression" in str(value) for value in table.iloc[0])


def test_high_throughput_jpeg_2000(written):
    rows, columns = np.mgrid[:32, :32]
    image = (rows - 16) ** 2 + (columns - 10) ** 2

    def change(ds: Dataset) -> None:
        ds.file_meta.TransferSyntaxUID = HTJ2KLossless
        ds.PixelData = encapsulate([base64.b64decode(HIGH_THROUGHPUT)])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True

    same(*written(np.stack([image] * 3), SHORTS, ExplicitVRLittleEndian, change))


@pytest.fixture
def dcmcjpeg(tmp_path) -> Callable[[list[Path], str], list[Path]]:
    """DCMTK's JPEG encoder, which nothing in Python is. It must be there in CI."""
    program = shutil.which("dcmcjpeg")
    if program is None:
        assert not os.environ.get("CI"), "dcmcjpeg is missing: apt-get install dcmtk"
        pytest.skip("dcmcjpeg (Debian's dcmtk) is not installed")

    def encode(paths: list[Path], *options: str) -> list[Path]:
        out = [tmp_path / f"encoded-{path.name}" for path in paths]
        for source, target in zip(paths, out, strict=True):
            subprocess.run([program, *options, "--uid-never", str(source), str(target)], check=True, capture_output=True, timeout=60)
        return out
    return encode


@pytest.mark.parametrize("bits", [BYTES, TWELVE, SIGNED_TWELVE, SHORTS, SIGNED_SHORTS], ids=str)
@pytest.mark.parametrize("option", ["--encode-lossless", "--encode-lossless-sv1"])
def test_lossless_jpeg(written, dcmcjpeg, option, bits):
    paths, expected = written(volume(bits), bits, ExplicitVRLittleEndian)
    same(dcmcjpeg(paths, option), expected)


@pytest.mark.parametrize(("option", "bits"), [("--encode-baseline", BYTES), ("--encode-extended", TWELVE)])
def test_lossy_jpeg(written, dcmcjpeg, option, bits):
    paths, expected = written(volume(bits), bits, ExplicitVRLittleEndian)
    window = str(1 << bits[1] - 1), str(1 << bits[1])  # without one the encoder stretches the values of each image
    found, series = read(dcmcjpeg(paths, option, "--set-window", *window))
    assert not isinstance(found, Refused), found
    assert "lossy compression" in series.note
    assert np.abs(found.array - expected.array).mean() < 0.02 * (1 << bits[1])


@pytest.mark.parametrize(("name", "dtype"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=lambda syntax: syntax.name)
def test_float_pixels(make_series, tmp_path, name, dtype, syntax):
    array = np.random.default_rng(0).normal(0, 1e-3, SHAPE).astype(dtype)
    series, paths = make_series(array), []
    for index, ds in enumerate(series.datasets()):
        del ds.PixelData, ds.PixelRepresentation, ds.BitsStored, ds.HighBit
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.file_meta.TransferSyntaxUID = *SHAPE[1:], 8 * array.itemsize, syntax
        setattr(ds, name, array[index].tobytes())
        paths.append(tmp_path / f"{index}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    same(paths, canonical(array, series.affine, 0))


@pytest.mark.parametrize("bits", [TWELVE, SIGNED_TWELVE], ids=str)
def test_bits_beyond_those_stored(written, bits):
    """An overlay of old kept there is taken off; without one nobody can tell what they are."""
    def junk(ds: Dataset) -> None:
        values = np.frombuffer(ds.PixelData, "<u2") & 0x0FFF | 0xA000
        ds.PixelData = values.tobytes()

    def overlay(ds: Dataset) -> None:
        junk(ds)
        ds.add_new(0x60000102, "US", 12)  # OverlayBitPosition

    same(*written(volume(bits), bits, ExplicitVRLittleEndian, overlay))
    found, _ = read(written(volume(bits), bits, ExplicitVRLittleEndian, junk)[0])
    assert isinstance(found, Refused) and found.code == "bits-beyond-stored"


def test_bits_at_the_top_of_their_word(written):
    """HighBit 15 of 12 bits stored, as scanners wrote them before the standard forbade it: the right values, or a refusal."""
    def shifted(ds: Dataset) -> None:
        ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") << 4).tobytes()
        ds.HighBit = 15

    paths, expected = written(volume(TWELVE), TWELVE, ExplicitVRLittleEndian, shifted)
    found, _ = read(paths)
    assert isinstance(found, Refused) or np.array_equal(found.array, expected.array)


@pytest.mark.parametrize("syntax", [MPEG2MPML, "1.2.840.10008.1.2.4.94"])
def test_unknown_syntax_is_refused(written, syntax):
    def change(ds: Dataset) -> None:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([ds.PixelData])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True

    found, _ = read(written(volume(SHORTS), SHORTS, ExplicitVRLittleEndian, change)[0])
    assert isinstance(found, Refused) and found.code in ("no-decoder", "no-pixels", "unreadable-file", "unreadable-series")


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_damaged_compressed_pixels(written, syntax):
    """A stream cut short. Its decoder may fill in the rest."""
    def cut(ds: Dataset) -> None:
        if ds.InstanceNumber == 2:
            data = ds.PixelData
            ds.PixelData = data[:len(data) // 2 // 2 * 2] + b"\xfe\xff\xdd\xe0\0\0\0\0"

    found, _ = read(written(volume(SHORTS), SHORTS, syntax, cut)[0])
    assert isinstance(found, Refused)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_whole_streams_pass(make_series, syntax):
    ds = make_series(volume(SHORTS)).datasets()[0]
    as_bits(ds, volume(SHORTS)[0], SHORTS)
    ds.compress(syntax, generate_instance_uid=False)
    check_whole(ds, 0, 1, "file 1 of 1")
    ds.PixelData = ds.PixelData[:-40]
    with pytest.raises(Refused, match="file 1 of 1 end before"):
        check_whole(ds, 0, 1, "file 1 of 1")
