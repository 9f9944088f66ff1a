"""A simulated acquisition as the DICOM a hospital would export: classic MR and PET series, and the tumour as a segmentation object.

Attributes follow PS3.3 A.4 (MR), A.21 (PET) and A.51 (segmentation). Everything that a library would draw from the clock or at random is
set here, because the same seed has to make the same bytes.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, PositronEmissionTomographyImageStorage
from pydicom.valuerep import format_number_as_ds

from pipelines.phantoms.identity import Visit
from pipelines.phantoms.physics import HALF_LIFE_F18_S, suv_scale
from pipelines.phantoms.scanner import Plane
from pipelines.phantoms.sites import Pet, Series, Site

#: RAS (ours) to LPS (DICOM's patient coordinates).
TO_LPS = np.array([-1.0, -1.0, 1.0])
LARGEST_STORED = 4095  # 12 bits, as most MR scanners store
SEGMENTS = ("Necrosis", "Enhancing lesion", "Edema")
IMPLEMENTATION = UID("1.2.826.0.1.3680043.8.498.55571922910437")


@dataclass(frozen=True)
class Exam:
    """Who is examined where, and the folder that the exam is written to."""

    visit: Visit
    site: Site
    folder: Path


def write_mr(exam: Exam, series: Series, plane: Plane, image: np.ndarray, *, number: int, contrast: bool) -> list[Path]:
    """One MR series, a file per slice. `image` is (slices, rows, columns), not negative. Returns the files, feet to head."""
    visit, site = exam.visit, exam.site
    when = visit.start + dt.timedelta(minutes=6 * number)
    ds = _common(visit, site, when, MRImageStorage, "MR")
    _describe(ds, visit, number, series.description, series.protocol)
    ds.ManufacturerModelName = site.model
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"] if site.manufacturer == "SIEMENS" else ["ORIGINAL", "PRIMARY", "OTHER"]
    ds.ScanningSequence, ds.SequenceName = series.scanning_sequence, series.sequence_name
    ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SP" if series.timing.kind == "gre" else "SK", "", "2D"
    ds.RepetitionTime, ds.EchoTime, ds.FlipAngle = series.timing.tr_ms, series.timing.te_ms, series.timing.flip_deg
    if series.timing.kind == "ir":
        ds.InversionTime = series.timing.ti_ms
    ds.EchoTrainLength, ds.NumberOfAverages, ds.MagneticFieldStrength = (1 if series.timing.te_ms < 40 else 15), 1, site.field_t
    ds.ImagingFrequency, ds.ImagedNucleus, ds.EchoNumbers = round(42.577 * site.field_t, 4), "1H", 1
    ds.PixelBandwidth, ds.InPlanePhaseEncodingDirection, ds.PatientPosition = 190, "ROW", "HFS"
    ds.ReceiveCoilName, ds.SAR = "HEAD", 0.4
    if contrast:
        ds.ContrastBolusAgent, ds.ContrastBolusVolume, ds.ContrastBolusRoute = "Gadoteract 0.5 mmol/ml", round(0.2 * visit.weight_kg, 1), "IV"
    slope = float(f"{max(float(image.max()), 1.0) / LARGEST_STORED:.6g}") if site.rescale else 1.0
    if site.rescale:
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, 0, "normalized"
    stored = np.clip(np.rint(image / slope), 0, LARGEST_STORED).astype("<i2")
    _pixels(ds, plane, plane.thickness_mm, signed=False, bits=12)
    ds.WindowCenter, ds.WindowWidth = _window(image)
    return _write_slices(exam, ds, plane, stored, when)


def write_pet(exam: Exam, pet: Pet, plane: Plane, suv: np.ndarray, *, number: int) -> list[Path]:
    """One PET series in Bq/ml, decay-corrected to its start, with what a reader needs for SUV by body weight.

    `plane` is in the PET's own coordinates, which are the MR's where `pet.same_frame`.
    """
    visit, site = exam.visit, exam.site
    injected = visit.start - dt.timedelta(minutes=3)
    when = injected + dt.timedelta(minutes=pet.uptake_min)
    ds = _common(visit, site, when, PositronEmissionTomographyImageStorage, "PT")
    _describe(ds, visit, number, pet.description, "FET Brain")
    ds.ManufacturerModelName = pet.model
    if not pet.same_frame:
        ds.FrameOfReferenceUID, ds.StationName, ds.DeviceSerialNumber = visit.uid("frame", "pet"), site.station + "-PET", site.serial + "7"
    dose = round(pet.dose_mbq * 1e6 * (0.9 + 0.2 * (visit.weight_kg - 46) / 74))
    drug, nuclide, code = Dataset(), Dataset(), Dataset()
    drug.Radiopharmaceutical, drug.RadiopharmaceuticalRoute = "Fluoroethyl-L-tyrosine", "IV"
    drug.RadiopharmaceuticalStartTime, drug.RadiopharmaceuticalStartDateTime = _time(injected), f"{injected:%Y%m%d%H%M%S}.000000"
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife, drug.RadionuclidePositronFraction = dose, HALF_LIFE_F18_S, 0.9673
    nuclide.CodeValue, nuclide.CodingSchemeDesignator, nuclide.CodeMeaning = "77004003", "SCT", "^18^Fluorine"
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "456995004", "SCT", "Fluoroethyl-L-tyrosine F^18^"
    drug.RadionuclideCodeSequence, drug.RadiopharmaceuticalCodeSequence = [nuclide], [code]
    ds.RadiopharmaceuticalInformationSequence = [drug]
    ds.ImageType, ds.SeriesType, ds.Units = ["ORIGINAL", "PRIMARY"], ["STATIC", "IMAGE"], "BQML"
    ds.CountsSource, ds.DecayCorrection, ds.RandomsCorrectionMethod = "EMISSION", "START", "DLYD"
    ds.CorrectedImage, ds.CollimatorType, ds.AttenuationCorrectionMethod = ["NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN"], "NONE", "measured"
    ds.ReconstructionMethod, ds.ScatterCorrectionMethod, ds.NumberOfSlices = "OSEM 3i21s", "model based", plane.shape[0]
    ds.FrameReferenceTime, ds.ActualFrameDuration, ds.DecayFactor, ds.PatientPosition = 0, 1_200_000, 1.0, "HFS"
    activity = suv * suv_scale(visit.weight_kg, dose, pet.uptake_min * 60)
    slope = float(f"{max(float(activity.max()), 1.0) / 32000:.8g}")
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, 0, "BQML"
    _pixels(ds, plane, plane.thickness_mm, signed=True, bits=16)
    ds.WindowCenter, ds.WindowWidth = _window(activity)
    return _write_slices(exam, ds, plane, np.rint(activity / slope).astype("<i2"), when)


def write_segmentation(exam: Exam, files: list[Path], masks: np.ndarray, *, number: int) -> Path:
    """The tumour on the slices of `files` as DICOM SEG; `masks` is (slices, rows, columns, segments in the order of `SEGMENTS`)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    visit = exam.visit
    kinds = (codes.cid7159.Necrosis, codes.cid7159.EnhancingLesion, codes.cid7159.Edema)
    described = [hd.seg.SegmentDescription(
        segment_number=i + 1, segment_label=name, segmented_property_category=codes.cid7150.MorphologicallyAbnormalStructure,
        segmented_property_type=kind, algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL, tracking_uid=visit.uid("tracking", i),
        tracking_id=f"{name} 1") for i, (name, kind) in enumerate(zip(SEGMENTS, kinds, strict=True))]
    ds = hd.seg.Segmentation(
        [pydicom.dcmread(path) for path in files], masks.astype(np.uint8), hd.seg.SegmentationTypeValues.BINARY, described,
        series_instance_uid=visit.uid("series", number), series_number=number, sop_instance_uid=visit.uid("instance", number, 1), instance_number=1,
        manufacturer="Semiflow", manufacturer_model_name="phantom reader", software_versions="1", device_serial_number="1",
        content_description="Tumour, drawn on FLAIR", content_creator_name=visit.physician, content_label="TUMOUR")
    when = visit.start + dt.timedelta(days=1)
    ds.SeriesDescription = "Tumour segmentation"
    _fix_clock_and_chance(ds, when, visit.uid("dimensions"))
    ds.file_meta.ImplementationClassUID, ds.file_meta.ImplementationVersionName = IMPLEMENTATION, "PHANTOM"
    folder = _series_folder(exam, number, ds.SeriesDescription)
    path = folder / exam.site.file_name.format(patient=visit.patient_id, series=number, instance=1, index=9000)
    ds.save_as(path, enforce_file_format=True)
    return path


def _common(visit: Visit, site: Site, when: dt.datetime, sop_class: UID, modality: str) -> Dataset:
    """Patient, study, equipment and frame of reference: what all images of a visit share."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.TransferSyntaxUID = sop_class, ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID, ds.file_meta.ImplementationVersionName = IMPLEMENTATION, "PHANTOM"
    ds.SpecificCharacterSet, ds.SOPClassUID, ds.Modality = "ISO_IR 100", sop_class, modality
    ds.PatientName, ds.PatientID, ds.PatientSex, ds.PatientBirthDate = visit.name, visit.patient_id, visit.sex, f"{visit.born:%Y%m%d}"
    ds.PatientAge, ds.PatientWeight, ds.PatientSize = f"{visit.age:03d}Y", visit.weight_kg, visit.height_m
    ds.OtherPatientIDs, ds.PatientAddress = f"INS-{visit.accession}", f"{visit.age} Elm Walk"
    ds.AdditionalPatientHistory = f"{visit.name.split('^')[0]}, known glioma, follow-up"
    ds.StudyInstanceUID, ds.StudyID, ds.AccessionNumber = visit.uid("study"), visit.accession[-4:], visit.accession
    ds.StudyDate, ds.StudyTime, ds.StudyDescription = f"{visit.start:%Y%m%d}", _time(visit.start), site.study_description
    ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = f"{when:%Y%m%d}"
    ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = _time(when)
    ds.InstanceCreationDate, ds.InstanceCreationTime = f"{when:%Y%m%d}", _time(when)
    ds.ReferringPhysicianName, ds.PerformingPhysicianName, ds.OperatorsName = visit.physician, visit.physician, visit.operator
    ds.InstitutionName, ds.InstitutionAddress, ds.InstitutionalDepartmentName = site.institution, site.address, "Neuroradiology"
    ds.Manufacturer, ds.StationName, ds.DeviceSerialNumber = site.manufacturer, site.station, site.serial
    ds.SoftwareVersions = site.software.split("\\")
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator, ds.BodyPartExamined = visit.uid("frame"), "", "HEAD"
    for (group, creator), elements in site.private.items():
        block = ds.private_block(group, creator, create=True)
        for element, vr, value in elements:
            block.add_new(element, vr, value.format(name=visit.name, physician=visit.physician))
    return ds


def _describe(ds: Dataset, visit: Visit, number: int, description: str, protocol: str) -> None:
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.AcquisitionNumber = visit.uid("series", number), number, 1
    ds.SeriesDescription, ds.ProtocolName = description, protocol


def _pixels(ds: Dataset, plane: Plane, thickness_mm: float, *, signed: bool, bits: int) -> None:
    slice_mm, row_mm, column_mm = plane.voxel_mm
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", plane.shape[1], plane.shape[2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, int(signed)
    ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = [round(row_mm, 6), round(column_mm, 6)], thickness_mm, round(slice_mm, 6)
    axes = (plane.affine[:3, :3] / np.linalg.norm(plane.affine[:3, :3], axis=0)) * TO_LPS[:, None]
    ds.ImageOrientationPatient = [format_number_as_ds(float(n)) for n in (*axes[:, 2], *axes[:, 1])]


def _write_slices(exam: Exam, ds: Dataset, plane: Plane, stored: np.ndarray, when: dt.datetime) -> list[Path]:
    """Complete `ds` for every slice and write it."""
    visit, number = exam.visit, int(ds.SeriesNumber)
    folder = _series_folder(exam, number, ds.SeriesDescription)
    axis = plane.affine[:3, 0] / plane.voxel_mm[0]
    files = []
    for i, pixels in enumerate(stored):
        position = plane.affine[:3, 3] + i * plane.affine[:3, 0]
        ds.ImagePositionPatient = [format_number_as_ds(float(n)) for n in position * TO_LPS]
        ds.SliceLocation = round(float(position @ axis), 4)
        ds.InstanceNumber = i + 1
        if ds.Modality == "PT":
            ds.ImageIndex = i + 1
        else:
            ds.AcquisitionTime = ds.ContentTime = _time(when + dt.timedelta(milliseconds=137 * i))
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = visit.uid("instance", number, i + 1)
        ds.PixelData = pixels.tobytes()
        name = exam.site.file_name.format(patient=visit.patient_id, series=number, instance=i + 1, index=100 * number + i)
        ds.save_as(folder / name, enforce_file_format=True)
        files.append(folder / name)
    return files


def _series_folder(exam: Exam, number: int, description: str) -> Path:
    """The folder an export makes of a series."""
    folder = exam.folder / f"{number:03d}_{''.join(c if c.isalnum() or c in '-_' else '_' for c in description)}"
    folder.mkdir(parents=True)
    return folder


def _window(image: np.ndarray) -> tuple[int, int]:
    top = float(np.percentile(image, 99.5))
    return round(top / 2), max(round(top), 1)


def _time(when: dt.datetime) -> str:
    return f"{when:%H%M%S}.{when.microsecond:06d}"


def _fix_clock_and_chance(ds: Dataset, when: dt.datetime, dimension_uid: str) -> None:
    """Replace what highdicom takes from the clock and the random UID of its dimensions, wherever they stand."""
    for element in ds.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = dimension_uid
        elif element.keyword in ("ContentDate", "InstanceCreationDate", "SeriesDate"):
            element.value = f"{when:%Y%m%d}"
        elif element.keyword in ("ContentTime", "InstanceCreationTime", "SeriesTime"):
            element.value = _time(when)
        elif element.keyword == "ContributionDateTime":
            element.value = f"{when:%Y%m%d%H%M%S}.000000"
