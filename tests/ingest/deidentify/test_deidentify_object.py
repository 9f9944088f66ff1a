"""What a de-identified object says, keeps and no longer holds."""

from __future__ import annotations

import datetime as dt
import re

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless, SecondaryCaptureImageStorage

from pipelines.errors import Refused, UsageError
from pipelines.ingest.deidentify import deidentifier, is_sealed, subject_of
from pipelines.ingest.deidentify.pixels import strip_comments
from pipelines.ingest.deidentify.values import moved, numbers
from pipelines.ingest.pseudonyms import Pseudonyms, load_key
from pipelines.params import Deidentify


def test_marks_and_identity(image, apply, pseudonyms):
    image.IssuerOfPatientID = "hospital"
    cleaned = apply(image)
    subject = pseudonyms("subject", "patient-1", "hospital")
    assert (cleaned.PatientID, str(cleaned.PatientName), cleaned.PatientIdentityRemoved) == (subject, subject, "YES")
    assert "IssuerOfPatientID" not in cleaned
    assert f"key {pseudonyms.key_id}" in cleaned.DeidentificationMethod
    assert [code.CodeValue for code in cleaned.DeidentificationMethodCodeSequence] == ["113100", "113105", "113111"]
    assert cleaned.LongitudinalTemporalInformationModified == "REMOVED"
    assert subject_of(cleaned, pseudonyms) == subject_of(image, pseudonyms) == subject
    assert not is_sealed(cleaned, Pseudonyms(b"another key, long enough"))
    with pytest.raises(Refused, match="before"):
        apply(cleaned)


def test_a_seal_cannot_be_moved_to_another_patient(image, apply, pseudonyms):
    cleaned = apply(image)
    cleaned.PatientID = "ABCDEFGH"
    assert not is_sealed(cleaned, pseudonyms)


def test_uids_are_new_everywhere_and_alike_everywhere(image, apply, pseudonyms):
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    image.SourceImageSequence = [reference]
    cleaned = apply(image)
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert cleaned[name].value == pseudonyms.uid(image[name].value) != image[name].value
        assert re.fullmatch(r"2\.25\.\d{30,39}", cleaned[name].value)
    assert cleaned.SourceImageSequence[0].ReferencedSOPInstanceUID == cleaned.SOPInstanceUID == cleaned.file_meta.MediaStorageSOPInstanceUID
    assert cleaned.SourceImageSequence[0].ReferencedSOPClassUID == cleaned.SOPClassUID == image.SOPClassUID


def test_geometry_and_pixels_stay(image, apply):
    cleaned = apply(image)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "SliceThickness", "Modality", "InstanceNumber"):
        assert cleaned[name].value == image[name].value, name
    assert np.array_equal(cleaned.pixel_array, image.pixel_array)
    assert (cleaned.Manufacturer, cleaned.ManufacturerModelName, cleaned.SeriesDescription) == ("Siemens", "Avanto", "t1 se tra")
    assert not {"Manufacturer", "ManufacturerModelName"} & set(apply(image, device="remove").dir())


def test_shifted_dates_keep_intervals_times_and_uptake(make_series, apply, pet_tags, pseudonyms):
    images = [make_series(np.ones((1, 7, 8)), study=day, pet=True, tags=pet_tags).datasets()[0] for day in ("20200101", "20200330")]
    images[0].ContentDate, images[0].PatientBirthDate = "20200101", "19500505"
    first, second = (apply(image, dates="shift") for image in images)
    days = [pydicom.valuerep.DA(one.StudyDate) for one in (first, second)]
    assert (days[1] - days[0]).days == 89
    assert (pydicom.valuerep.DA("20200101") - days[0]).days == pseudonyms.day_shift("patient-1")
    assert first.AcquisitionTime == images[0].AcquisitionTime
    assert first.PatientBirthDate == ""
    assert first.PatientWeight == 70
    injected = first.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime
    assert injected[:8] == first.StudyDate
    assert injected[8:] == "100000"
    assert "113108" in [code.CodeValue for code in first.DeidentificationMethodCodeSequence]


def test_weight_stays_for_pet_only(image, apply):
    image.PatientWeight = 70
    assert "PatientWeight" not in apply(image, dates="shift")


def test_partial_and_damaged_dates_go(image, apply):
    image.AcquisitionDateTime, image.StudyDate = "2020", "QUETZAL"
    cleaned = apply(image, dates="shift")
    assert "2020" not in str(cleaned.get("AcquisitionDateTime"))
    assert cleaned.StudyDate == ""


@given(st.dates(min_value=dt.date(1900, 1, 1)), st.integers(1, 3650))
def test_any_date_moves_by_the_same_days(date, days):
    assert pydicom.valuerep.DA(moved("StudyDate", "DA", f"{date:%Y%m%d}".rjust(8, "0"), days)) == date - dt.timedelta(days)


@given(st.text(max_size=16))
def test_only_numbers_pass_as_numbers(text):
    kept = numbers(text)
    assert kept in ("", []) or np.isfinite(float(kept))


def test_overlays_in_unused_bits_and_bytes_are_blanked(image, apply):
    image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 11, 0
    array = np.arange(56, dtype="<u2")
    image.PixelData = (array | 0x5000).tobytes() + b"QUETZAL!"
    assert apply(image).PixelData == array.tobytes()
    image.PixelRepresentation = 1
    signed = array.astype("<i2") - 20
    image.PixelData = ((signed.view("<u2") & 0x0FFF) | 0x5000).tobytes()
    assert np.array_equal(apply(image).pixel_array.ravel(), signed)


def test_graphics_private_and_padding_go(image, apply):
    image.add_new(0x60003000, "OW", b"QUETZAL!")
    image.add_new(0x60004000, "LT", "QUETZAL")
    image.add_new(0x50000010, "LO", "QUETZAL")
    image.add_new(0xFFFCFFFC, "OB", b"QUETZAL!")
    icon = Dataset()
    icon.PixelData = b"QUETZAL!"
    image.IconImageSequence = [icon]
    image.private_block(0x0009, "QUETZAL", create=True).add_new(1, "LO", "QUETZAL")
    block = image.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0D, "CS", "QUETZAL")
    cleaned = apply(image)
    assert "QUETZAL" not in str(cleaned)
    assert not [element for element in cleaned if element.tag.group in (0x6000, 0x5000, 0xFFFC, 0x0009, 0x0088)]
    assert cleaned.get_private_item(0x0019, 0x0C, "SIEMENS MR HEADER").value == 1000


def test_compressed_stream_loses_its_comments():
    body = b"\xff\xda\x00\x04ab" + b"pixels" + b"\xff\xd9"
    comment = b"\xff\xfe" + (2 + 7).to_bytes(2, "big") + b"QUETZAL"
    exif = b"\xff\xe1" + (2 + 7).to_bytes(2, "big") + b"QUETZAL"
    frame = b"\xff\xf7\x00\x04ab"
    assert strip_comments(b"\xff\xd8" + exif + comment + frame + body + b"QUETZAL!") == b"\xff\xd8" + frame + body
    size, jpeg2000 = b"\xff\x51\x00\x04ab", b"\xff\x64" + (2 + 9).to_bytes(2, "big") + b"\0\1QUETZAL"
    tile = b"\xff\x90\x00\x04ab\xff\x93pixels\xff\xd9"
    assert strip_comments(b"\xff\x4f" + size + jpeg2000 + tile) == b"\xff\x4f" + size + tile


def test_compressed_pixels_are_the_same_pixels(image, apply):
    original = image.pixel_array.copy()
    image.compress(JPEGLSLossless) if _can_compress(image) else pytest.skip("no JPEG-LS encoder is installed")
    assert np.array_equal(apply(image).pixel_array, original)


def _can_compress(image) -> bool:
    return pydicom.pixels.get_encoder(JPEGLSLossless).is_available


def test_rle_round_trip(image, apply):
    from pydicom.uid import RLELossless

    original = image.pixel_array.copy()
    image.compress(RLELossless)
    assert np.array_equal(apply(image).pixel_array, original)
    assert encapsulate([b"ab"])  # what pydicom writes


@pytest.mark.parametrize(("change", "code"), [
    ({"BurnedInAnnotation": "YES"}, "burned-in"),
    ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "burned-in"),
    ({"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None}, "burned-in"),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1", "ImageOrientationPatient": None}, "burned-in"),
    ({"Rows": None}, "no-image"),
    ({"PatientID": ""}, "no-patient-id"),
])
def test_refused(image, apply, change, code):
    for name, value in change.items():
        setattr(image, name, value)
    with pytest.raises(Refused) as refused:
        apply(image)
    assert refused.value.code == code


@pytest.mark.parametrize("change", [{"BurnedInAnnotation": "NO", "ImagePositionPatient": None}, {}])
def test_a_secondary_capture_with_a_place_or_a_warrant_passes(image, apply, change):
    image.SOPClassUID = SecondaryCaptureImageStorage
    for name, value in change.items():
        setattr(image, name, value)
    assert apply(image).SOPClassUID == SecondaryCaptureImageStorage


def test_a_broken_object_is_refused_without_its_text(image, pseudonyms):
    image.BitsAllocated, image.PatientName = "QUETZAL", "QUETZAL"
    with pytest.raises(Refused) as refused:
        deidentifier(pseudonyms, Deidentify())(image)
    assert "QUETZAL" not in str(refused.value)


def test_codes_stay_only_if_the_standard_has_them(image, apply):
    known, unknown = Dataset(), Dataset()
    known.CodeValue, known.CodingSchemeDesignator, known.CodeMeaning = "12738006", "SCT", "QUETZAL"
    unknown.CodeValue, unknown.CodingSchemeDesignator, unknown.CodeMeaning = "QUETZAL", "99LOCAL", "QUETZAL"
    image.AnatomicRegionSequence = [known, unknown]
    kept = apply(image).AnatomicRegionSequence
    assert kept[0].CodeValue == "12738006"
    assert kept[0].CodeMeaning.startswith("Brain")
    assert kept[1].CodeMeaning == "removed"


def test_key_inside_the_data_is_refused(tmp_path):
    key = tmp_path / "data" / "key"
    key.parent.mkdir()
    key.write_bytes(b"k" * 32)
    with pytest.raises(UsageError, match="keep the key elsewhere"):
        load_key(key, data=[tmp_path / "data"])
    assert load_key(key, data=[tmp_path / "other"]) == b"k" * 32
