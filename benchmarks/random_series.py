"""Undamaged series of small images with known voxels, in random orientation, spacing, precision and order, for the fuzzer and for false alarms."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

NAME, NUMBER = "Zebedee^Quux", "ZQ-4711"  # of the patient, which nothing may repeat


@dataclass(frozen=True)
class Geometry:
    """Where slices lie, before their headers round it: axes are columns (along a row, down a column, across slices), mm LPS."""

    axes: np.ndarray
    spacing: np.ndarray  # slices, rows, columns
    origin: np.ndarray
    shape: tuple[int, int, int]

    @property
    def affine(self) -> np.ndarray:
        """Voxel (slice, row, column) to world, mm RAS."""
        lps = np.eye(4)
        lps[:3, :3] = self.axes[:, ::-1] * self.spacing
        lps[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps

    def position(self, index: int) -> np.ndarray:
        return self.origin + index * self.spacing[0] * self.axes[:, 2]


def geometry(rng: np.random.Generator, slices: tuple[int, int] = (2, 12), edge: tuple[int, int] = (4, 12)) -> Geometry:
    """Any rotation, or none for one in four; slices may run either way along the normal."""
    from scipy.spatial.transform import Rotation

    axes = np.eye(3)[:, rng.permutation(3)] if rng.random() < 0.25 else Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1]) * rng.choice([-1, 1])
    shape = int(rng.integers(*slices)), int(rng.integers(*edge)), int(rng.integers(*edge))
    return Geometry(axes, np.array([rng.uniform(0.5, 8), rng.uniform(0.2, 3), rng.uniform(0.2, 3)]), rng.uniform(-200, 200, 3), shape)


def decimal(values: Sequence[float], decimals: int) -> list[str]:
    """Numbers as a DICOM text of at most 16 characters."""
    return [f"{value:.{decimals}f}"[:16] for value in values]


def common(rng: np.random.Generator, where: Geometry, implicit: bool = False) -> Dataset:
    """What all images of a series have in common."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    seed = str(rng.integers(2**62))
    ds.PatientName, ds.PatientID, ds.StudyDate, ds.StudyTime = NAME, NUMBER, "20200101", "120000"
    for word in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(ds, word, generate_uid(entropy_srcs=[seed, word]))
    ds.Modality, ds.SeriesDescription, ds.SeriesNumber, ds.SOPClassUID = "MR", "t2 tse", 1, MRImageStorage
    ds.Manufacturer, ds.ManufacturerModelName, ds.PatientPosition = "SIEMENS", "Avanto", "HFS"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *where.shape[1:], 1, "MONOCHROME2"
    stored = int(rng.integers(9, 17))
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, stored, stored - 1, int(rng.integers(2))
    return ds


def voxels(rng: np.random.Generator, where: Geometry, ds: Dataset) -> np.ndarray:
    """Random stored values `(slices, rows, columns)` of the type that the header says."""
    low = -(2 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
    return rng.integers(low, low + 2**ds.BitsStored, where.shape).astype("<i2" if ds.PixelRepresentation else "<u2")


def classic(rng: np.random.Generator, where: Geometry | None = None, *, compressed: bool = False) -> tuple[list[Dataset], np.ndarray, np.ndarray]:
    """A series of single-frame images in random order: data sets, measured values and affine.

    Headers have 2 to 10 decimals for lengths, and 4 to 10 for directions, of which fewer would tilt the stack by more than they can say.
    """
    where = where or geometry(rng)
    base = common(rng, where, implicit=rng.random() < 0.3 and not compressed)
    stored, lengths, directions = voxels(rng, where, base), int(rng.integers(2, 11)), int(rng.integers(4, 11))
    kind = rng.choice(["none", "same", "per slice"])
    slopes, intercepts = np.ones(len(stored)), np.zeros(len(stored))
    if kind != "none":
        slopes = np.round(rng.uniform(0.1, 9, len(stored) if kind == "per slice" else 1), 4) * np.ones(len(stored))
        intercepts += round(float(rng.uniform(-1024, 1024)), 2)
    if rng.random() < 0.3:
        base.Modality, base.SOPClassUID = "CT", CTImageStorage
    numbers = rng.permutation(len(stored)) if rng.random() < 0.3 else np.arange(len(stored))
    datasets = []
    for index, image in enumerate(stored):
        ds = Dataset()
        ds.update(base)
        ds.file_meta = copy.deepcopy(base.file_meta)
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[base.SeriesInstanceUID, str(index)])
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
        ds.InstanceNumber = int(numbers[index]) + 1
        ds.ImageOrientationPatient = decimal(where.axes[:, :2].T.ravel(), directions)
        ds.ImagePositionPatient = decimal(where.position(index), lengths)
        ds.PixelSpacing, ds.SliceThickness = decimal(where.spacing[1:], lengths), decimal(where.spacing[:1], lengths)[0]
        if kind != "none":
            ds.RescaleSlope, ds.RescaleIntercept = f"{slopes[index]:.4f}", f"{intercepts[index]:.2f}"
        ds.PixelData = image.tobytes()
        if compressed:
            ds.compress(RLELossless, generate_instance_uid=False)
        datasets.append(ds)
    measured = stored * slopes[:, None, None] + intercepts[:, None, None]
    return [datasets[index] for index in rng.permutation(len(datasets))], measured, where.affine


def enhanced(rng: np.random.Generator) -> list[Dataset]:
    """One Enhanced MR object with a frame for each slice, in random order."""
    where = geometry(rng)
    ds = common(rng, where)
    stored = voxels(rng, where, ds)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[ds.SeriesInstanceUID])
    ds.NumberOfFrames, ds.InstanceNumber = len(stored), 1
    orientation, measures, transformation = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = decimal(where.axes[:, :2].T.ravel(), 8)
    measures.PixelSpacing, measures.SliceThickness = decimal(where.spacing[1:], 6), decimal(where.spacing[:1], 6)[0]
    transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = "1.5", "-3", "US"
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    shared.PixelValueTransformationSequence = [transformation]
    ds.SharedFunctionalGroupsSequence = [shared]
    order, frames = rng.permutation(len(stored)), []
    for number, index in enumerate(order, 1):
        frame, content, place = Dataset(), Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", int(index) + 1, [1, number]
        place.ImagePositionPatient = decimal(where.position(index), 6)
        frame.FrameContentSequence, frame.PlanePositionSequence = [content], [place]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    ds.PixelData = stored[order].tobytes()
    return [ds]


def encoded(ds: Dataset) -> bytes:
    """A data set as the bytes of a file."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(datasets: Sequence[Dataset], folder: Path) -> None:
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{number:03d}", enforce_file_format=True)
