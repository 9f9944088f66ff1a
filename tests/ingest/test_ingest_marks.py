"""What single-frame headers say that tells images at one place apart, as each manufacturer writes it; and how stored values become measured ones."""

from __future__ import annotations

import io
import math

import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from pipelines.errors import Refused
from pipelines.ingest.marks import TAGS, marks_of
from pipelines.ingest.scaling import scaling_of

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
HALF = round(math.sqrt(0.5), 8)
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")


def dataset(modality: str = "MR", private: tuple = (), block: int = 0x10, **tags: object) -> Dataset:
    """A header. `private` holds (group, creator, {element: (VR, value)})."""
    ds = Dataset()
    ds.Modality = modality
    for name, value in tags.items():
        if isinstance(value, bytes):  # as found in a file, right or wrong
            ds[name] = RawDataElement(tag_for_keyword(name), dictionary_VR(name), len(value), value, 0, False, True)
        else:
            setattr(ds, name, value)
    for group, creator, elements in private:
        for before in range(0x10, block):
            ds.add_new((group, before), "LO", f"SOMEBODY {before}")
        held = ds.private_block(group, creator, create=True)
        for element, (vr, value) in elements.items():
            held.add_new(element, vr, value)
    return ds


def reread(ds: Dataset, syntax: str, only: tuple | None = TAGS) -> Dataset:
    """As the header pass sees it, from a file."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    out.seek(0)
    return dcmread(out, specific_tags=list(only) if only else None)


def siemens(b_value: str, direction: list[float] | None) -> tuple:
    return ((0x19, "SIEMENS MR HEADER", {0x0C: ("IS", b_value)} | ({0x0E: ("FD", direction)} if direction else {})),)


def philips(b_value: float, direction: list[float]) -> tuple:
    return ((0x2001, "Philips Imaging DD 001", {0x03: ("FL", b_value)}),
            (0x2005, "Philips MR Imaging DD 001", {0xB0 + axis: ("FL", value) for axis, value in enumerate(direction)}))


def ge(b_values: list[int], direction: list[float], component: int = 0) -> tuple:
    return ((0x43, "GEMS_PARM_01", {0x2F: ("SS", component), 0x39: ("IS", b_values)}),
            (0x19, "GEMS_ACQU_01", {0xBB + axis: ("DS", str(value)) for axis, value in enumerate(direction)}))


def united(b_value: float, direction: list[float]) -> tuple:
    return ((0x65, "Image Private Header", {0x09: ("FD", b_value), 0x37: ("FD", direction)}),)


DIRECTED = {"b_value": 1000.0, "direction": (0.0, 0.707, -0.707)}


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("block", [0x10, 0x12])
@pytest.mark.parametrize(("private", "expected"), [
    (siemens("1000", [0.0, HALF, -HALF]), DIRECTED),
    (siemens("1000", None), {"b_value": 1000.0}),
    (siemens("0", [0.0, 0.0, 1.0]), {"b_value": 0.0}),
    (philips(1000.0, [0.0, HALF, -HALF]), DIRECTED),
    (philips(1000.0, [0.0, 0.0, 0.0]), {"b_value": 1000.0}),
    (ge([1000, 8, 0, 0], [0.0, HALF, -HALF]), DIRECTED | {"component": "magnitude"}),
    (ge([1000001000, 8, 0, 0], [0.0, HALF, -HALF], 1), DIRECTED | {"component": "phase"}),
    (ge([0, 8, 0, 0], [1.0, 0.0, 0.0], 3), {"b_value": 0.0, "component": "imaginary"}),
    (united(1000.0, [0.0, HALF, -HALF]), DIRECTED),
    (philips(-1.0, [0.0, 0.0, 0.0]), {}),
], ids=["siemens", "siemens trace", "siemens b0", "philips", "philips trace", "ge", "ge with offset", "ge b0", "united", "no b-value"])
def test_private_elements(private, expected, block, syntax):
    """By their creator in any block, in any syntax: in the implicit one they have no type."""
    assert marks_of(reread(dataset(private=private, block=block), syntax)) == expected
    assert marks_of(reread(dataset(private=private, block=block), syntax, only=None)) == expected


def test_elements_of_another_creator_mean_nothing():
    private = tuple((group, "SOMEBODY ELSE", elements) for group, _, elements in siemens("1000", [1, 0, 0]) + ge([500, 0, 0, 0], [1, 0, 0]))
    assert marks_of(reread(dataset(private=private), ExplicitVRLittleEndian)) == {}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_standard_elements_first(syntax):
    ds = dataset(private=siemens("700", [1.0, 0.0, 0.0]), DiffusionBValue=1000.0, DiffusionGradientOrientation=[0.0, HALF, -HALF])
    assert marks_of(reread(ds, syntax)) == DIRECTED


@pytest.mark.parametrize(("tags", "expected"), [
    ({"SequenceName": "*ep_b1000#3"}, {"b_value": 1000.0, "direction": (3.0,)}),
    ({"SequenceName": "ep_b50t"}, {"b_value": 50.0}),
    ({"SequenceName": "*ep_b0"}, {"b_value": 0.0}),
    ({"SequenceName": "epfid2d1_72"}, {}),
    ({"ImageComments": "b=1500(0.445,0.000,0.895)"}, {"b_value": 1500.0, "direction": (0.445, 0.0, 0.895)}),
    ({"ImageComments": "follow-up, b=1000"}, {}),
    ({"EchoTime": "2.46", "InversionTime": "900"}, {"echo": 2.46, "inversion": 900.0}),
    ({"EchoTime": "0", "InversionTime": ""}, {}),
    ({"EchoTime": b"none"}, {}),
    ({"TriggerTime": "33.25"}, {"trigger": 33.25}),
    ({"NominalCardiacTriggerDelayTime": 40.0}, {"trigger": 40.0}),
    ({"TemporalPositionIdentifier": 7}, {"time": 7.0}),
    ({"StackID": "2"}, {"stack": "2"}),
])
def test_magnetic_resonance(tags, expected):
    assert marks_of(reread(dataset(**tags), ImplicitVRLittleEndian)) == expected


@pytest.mark.parametrize(("words", "expected"), [
    (["ORIGINAL", "PRIMARY", "M", "ND"], {"component": "magnitude"}),
    (["ORIGINAL", "PRIMARY", "P", "ND"], {"component": "phase"}),
    (["ORIGINAL", "PRIMARY", "R_FFE", "R", "FFE"], {"component": "real"}),
    (["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "SE"], {"component": "phase"}),
    (["DERIVED", "PRIMARY", "DIXON", "WATER"], {"kind": "water"}),
    (["DERIVED", "PRIMARY", "F", "F", "DERIVED"], {"kind": "fat"}),
    (["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "NORM"], {"kind": "adc"}),
    (["DERIVED", "SECONDARY", "MIP", "SUB"], {"kind": "mip+subtraction"}),
    (["DERIVED", "PRIMARY", "DOE^JOHN", "SMITH"], {}),
    (["WATER", "MIP"], {}),
    ([], {}),
])
def test_image_type(words, expected):
    """Only words of a fixed vocabulary, from the third value on."""
    assert marks_of(reread(dataset(ImageType=words), ExplicitVRLittleEndian)) == expected


@pytest.mark.parametrize(("modality", "expected"), [("CT", {"energy": 80.0}), ("PT", {"time": 1.5}), ("MR", {"echo": 10.0})])
def test_modality_decides_what_counts(modality, expected):
    assert marks_of(reread(dataset(modality, KVP="80", FrameReferenceTime="1500", EchoTime="10"), ExplicitVRLittleEndian)) == expected


def test_converted_values_read_alike():
    """A data set that pydicom has converted already, as in a nested item."""
    ds = reread(dataset(private=ge([1000, 0, 0, 0], [0.0, HALF, -HALF]), EchoTime="10.5", ImageType=["A", "B", "P"]), ExplicitVRLittleEndian, None)
    before = marks_of(ds)
    list(ds)
    assert marks_of(ds) == before == DIRECTED | {"component": "magnitude", "echo": 10.5}


def mapped(slope: float | None, intercept: float | None, units: str, table: list[float] | None = None) -> Dataset:
    one, code = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = units, "UCUM", "x"
    one.MeasurementUnitsCodeSequence = [code]
    if slope is not None:
        one.RealWorldValueSlope, one.RealWorldValueIntercept = slope, intercept
    if table is not None:
        one.RealWorldValueLUTData = table
    return one


def scale_slope(value: float) -> tuple:
    return ((0x2005, "Philips MR Imaging DD 001", {0x0E: ("FL", value)}),)


PRECISE = "floating-point values of the scanner (Philips scale slope)"


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("ds", "expected"), [
    (dataset(), (1.0, 0.0, False, "")),
    (dataset("CT", RescaleSlope="2", RescaleIntercept="-1024", RescaleType="HU"), (2.0, -1024.0, True, "HU")),
    (dataset("PT", RescaleSlope="0.5", RescaleIntercept="0", Units="BQML"), (0.5, 0.0, True, "Bq/ml")),
    (dataset("CT", RescaleSlope="2", RescaleType="DOE^JOHN"), (2.0, 0.0, True, "")),
    (dataset(RescaleIntercept="5"), (1.0, 5.0, True, "")),
    (dataset(private=scale_slope(0.25), RescaleSlope="2", RescaleIntercept="-6"), (4.0, -12.0, True, PRECISE)),
    (dataset(private=scale_slope(0.25)), (4.0, 0.0, True, PRECISE)),
    (dataset(private=scale_slope(0.0), RescaleSlope="2"), (2.0, 0.0, True, "")),
    (dataset(private=scale_slope(0.25), RescaleSlope="2", RealWorldValueMappingSequence=[mapped(9, 9, "ms")]), (4.0, 0.0, True, PRECISE)),
    (dataset(RescaleSlope="2", RealWorldValueMappingSequence=[mapped(9, 9, "ms")]), (2.0, 0.0, True, "")),
    (dataset(RescaleSlope="2", RealWorldValueMappingSequence=[mapped(None, None, "ms", [1, 2])]), (2.0, 0.0, True, "")),
    (dataset(RealWorldValueMappingSequence=[mapped(0.1, 3, "ms")]), (0.1, 3.0, True, "real-world values in ms")),
    (dataset(RealWorldValueMappingSequence=[mapped(0.1, 3, "furlong")]), (0.1, 3.0, True, "real-world values")),
    (dataset(RealWorldValueMappingSequence=[mapped(0.1, 3, "1")]), (1.0, 0.0, False, "")),
])
def test_scaling(ds, expected, syntax):
    assert scaling_of(reread(ds, syntax, None)) == pytest.approx(expected)


@pytest.mark.parametrize(("ds", "code"), [
    (dataset(RescaleSlope="0"), "bad-rescale"),
    (dataset(RescaleSlope=b"nan"), "bad-rescale"),
    (dataset(RescaleSlope=b"two "), "bad-rescale"),
    (dataset(RescaleSlope=["1", "2"]), "bad-rescale"),
    (dataset(RescaleSlope="1", RescaleIntercept=b"inf "), "bad-rescale"),
    (dataset(private=scale_slope(2.0), RescaleSlope="0", RescaleIntercept="1"), "bad-rescale"),
    (dataset(ModalityLUTSequence=[Dataset()]), "modality-lut"),
    (dataset(RealWorldValueMappingSequence=[mapped(None, None, "ms", [1, 2])]), "real-world-lut"),
    (dataset(RealWorldValueMappingSequence=[mapped(1, 0, "ms"), mapped(2, 0, "s")]), "real-world-lut"),
    (dataset(RealWorldValueMappingSequence=[mapped(0, 0, "ms")]), "bad-rescale"),
])
def test_refused_scaling(ds, code):
    with pytest.raises(Refused) as found:
        scaling_of(ds)
    assert found.value.code == code and found.value.remedy
