"""Label objects of known truth, drawn on a small series, and what they must be on the grid of its volume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from pipelines.ingest.labels import LabelSource, Segments
from pipelines.ingest.volumes import canonical, write_image

TURN = np.diag([-1.0, -1.0, 1.0])  # LPS to RAS
ITEM, FRAME = "series-A", "frame-A"


def home(series, folder: Path, item: str = ITEM, frame: str = FRAME) -> SimpleNamespace:
    """The series' volume as ingest writes it, as one of the images of a session."""
    path = Path(f"{item}_T1w.nii.gz")
    write_image(folder / path, canonical(series.array.astype(float), series.affine, 0))
    return SimpleNamespace(item=item, path=path.as_posix(), frame=frame)


def source(path: Path, kind: str = "seg", **more) -> LabelSource:
    return LabelSource(**{"item": "label", "kind": kind, "paths": (path,), "rule": "r", "frame": FRAME, "refers_to": ITEM} | more)


def expected(series, mask: np.ndarray, segments: Segments) -> np.ndarray:
    """`mask` (slice, row, column) of the series, on the grid of `segments`, by world coordinates alone."""
    world = np.argwhere(mask) @ series.affine[:3, :3].T + series.affine[:3, 3]
    exact = (world - segments.affine[:3, 3]) @ np.linalg.inv(segments.affine[:3, :3]).T
    np.testing.assert_allclose(exact, np.round(exact), atol=1e-3)
    result = np.zeros(segments.array.shape, bool)
    result[tuple(np.round(exact).astype(int).T)] = True
    return result


def found(segments: Segments, name: str) -> np.ndarray:
    """Where a segment is, alone or with others."""
    return np.isin(segments.array, [value for value, names in segments.names.items() if name in names])


def described(names, meaning=codes.SCT.Lesion) -> list[hd.seg.SegmentDescription]:
    return [hd.seg.SegmentDescription(
        segment_number=number, segment_label=name, segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=meaning, algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL) for number, name in enumerate(names, 1)]


def segmentation(series, array: np.ndarray, names, kind: str = "BINARY", **more) -> Dataset:
    """A segmentation object of `array` (slice, row, column, segment), or of segment numbers (slice, row, column)."""
    more = {"segment_descriptions": described(names)} | more
    return hd.seg.Segmentation(
        series.datasets(), array, kind, series_instance_uid=generate_uid(), series_number=9, sop_instance_uid=generate_uid(), instance_number=1,
        manufacturer="x", manufacturer_model_name="x", software_versions="1", device_serial_number="1", **more)


def reorder_frames(dataset: Dataset, order) -> Dataset:
    """The same object with its frames in another order."""
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)[list(order)]
    dataset.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
    dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)
    dataset.PerFrameFunctionalGroupsSequence = [dataset.PerFrameFunctionalGroupsSequence[index] for index in order]
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def to_patient(series, depth: float, rows, columns) -> np.ndarray:
    """Points of a slice in rows and columns (fractions allowed) as ContourData, mm LPS."""
    indices = np.column_stack([np.full(len(rows), depth), rows, columns])
    return (indices @ series.affine[:3, :3].T + series.affine[:3, 3]) @ TURN


def contour(points: np.ndarray, kind: str = "CLOSED_PLANAR") -> Dataset:
    item = Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
    item.ContourData = [f"{value:.9g}" for value in np.asarray(points).ravel()]
    return item


def structure_set(series, regions: dict[str, list[Dataset]]) -> Dataset:
    """An RT structure set with these regions, referring to `series` as the standard nests it."""
    ds, image = Dataset(), series.datasets()[0]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.Modality, ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "RTSTRUCT", image.PatientID, image.StudyInstanceUID, generate_uid()
    referred, study, frame = Dataset(), Dataset(), Dataset()
    referred.SeriesInstanceUID = image.SeriesInstanceUID
    study.ReferencedSOPInstanceUID, study.RTReferencedSeriesSequence = image.StudyInstanceUID, [referred]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = image.FrameOfReferenceUID, [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for number, (name, contours) in enumerate(regions.items(), 7):
        roi, drawn, observed = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, image.FrameOfReferenceUID
        drawn.ReferencedROINumber, drawn.ContourSequence = number, contours
        observed.ObservationNumber = observed.ReferencedROINumber = number
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
        ds.RTROIObservationsSequence.append(observed)
    return ds


def contours_of(series, mask: np.ndarray) -> list[Dataset]:
    """The outlines of a mask, half way between voxel centres."""
    import contourpy

    items = []
    for depth in np.flatnonzero(mask.any(axis=(1, 2))):
        for line in contourpy.contour_generator(z=np.pad(mask[depth].astype(float), 1)).lines(0.5):
            items.append(contour(to_patient(series, depth, line[:-1, 1] - 1, line[:-1, 0] - 1)))
    return items
