"""Small DICOM series made for tests, and the stage's command line run in this process."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, PositronEmissionTomographyImageStorage

from pipelines.cli import run
from pipelines.ingest.__main__ import app
from pipelines.ingest.stage import Summary, ingest
from pipelines.params import Params, SiteRule, load_params

UPRIGHT = np.eye(3)  # columns: along a row, down a column, across slices (LPS)
KEY = b"a key that is known to the tests only"


def uid(*words: object) -> str:
    """A UID that depends on `words` alone."""
    return "2.25." + str(int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:14], "big"))


@dataclass(frozen=True)
class Series:
    """A single-frame series to write. `array` is (slices, rows, columns) of stored values."""

    array: np.ndarray
    description: str = "t1 se tra"
    patient: str = "patient-1"
    study: str = "20200101"  # its date
    axes: np.ndarray = field(default_factory=lambda: UPRIGHT)
    spacing: tuple[float, float, float] = (5.0, 1.2, 0.8)  # slices, rows, columns, mm
    origin: tuple[float, float, float] = (-20.0, -30.0, -40.0)
    tags: dict[str, object] = field(default_factory=dict)
    per_slice: Callable[[Dataset, int], None] | None = None
    pet: bool = False

    @property
    def affine(self) -> np.ndarray:
        """Voxel (slice, row, column) to RAS mm."""
        lps = np.eye(4)
        lps[:3, 0] = self.axes[:, 2] * self.spacing[0]
        lps[:3, 1] = self.axes[:, 1] * self.spacing[1]
        lps[:3, 2] = self.axes[:, 0] * self.spacing[2]
        lps[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps

    def datasets(self) -> list[Dataset]:
        return [self._slice(index) for index in range(len(self.array))]

    def write(self, folder: Path, names: Sequence[str] | None = None) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for index, dataset in enumerate(self.datasets()):
            path = folder / (names[index] if names else f"{index:03d}.dcm")
            dataset.save_as(path, enforce_file_format=True)
            paths.append(path)
        return paths

    def _slice(self, index: int) -> Dataset:
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = PositronEmissionTomographyImageStorage if self.pet else MRImageStorage
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid(self.patient, self.study, self.description, index)
        ds.Modality, ds.SeriesDescription = "PT" if self.pet else "MR", self.description
        ds.PatientID, ds.PatientName = self.patient, f"{self.patient}^"
        ds.StudyDate, ds.StudyTime, ds.StudyInstanceUID = self.study, "120000", uid(self.patient, self.study)
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid(self.patient, self.study, self.description), uid(self.patient, self.study, "frame")
        ds.SeriesNumber, ds.InstanceNumber, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = 1, index + 1, "", "", ""
        ds.PatientBirthDate, ds.PatientSex, ds.PatientPosition, ds.Manufacturer, ds.ManufacturerModelName = "", "", "HFS", "SIEMENS", "Avanto"
        ds.ImageOrientationPatient = [f"{value:.10g}" for value in (*self.axes[:, 0], *self.axes[:, 1])]
        ds.ImagePositionPatient = [f"{value:.8f}" for value in np.array(self.origin) + index * self.spacing[0] * self.axes[:, 2]]
        ds.PixelSpacing, ds.SliceThickness = list(self.spacing[1:]), self.spacing[0]
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *self.array.shape[1:], 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelData = self.array[index].astype("<i2").tobytes()
        for name, value in self.tags.items():
            setattr(ds, name, value)
        if self.per_slice:
            self.per_slice(ds, index)
        return ds


@pytest.fixture(scope="session")
def make_series() -> type[Series]:
    return Series


@pytest.fixture
def voxels() -> np.ndarray:
    """Six slices of 7 x 8 values, no two alike."""
    return np.random.default_rng(0).permutation(6 * 7 * 8).reshape(6, 7, 8)


@pytest.fixture(scope="session")
def key_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "pseudonym.key"
    path.write_bytes(KEY)
    return path


@pytest.fixture(scope="session")
def params() -> Params:
    """The project's params with one site for everything and no key of their own."""
    project = load_params()
    return project.model_copy(update={"cohort": project.cohort.model_copy(update={"site": SiteRule(constant="here"), "pseudonym_key": ""})})


@pytest.fixture(scope="session")
def convert(params, key_file) -> Callable[[Path, Path], Summary]:
    """The stage in this process, with the tests' params and key."""
    return lambda source, out: ingest(source, out, params, key_file=key_file, jobs=1)


@pytest.fixture
def cli(key_file, capfd) -> Callable[..., tuple[int, str]]:
    """`python -m pipelines.ingest` with the project's params, in this process: exit status and everything printed."""

    def call(source: Path, out: Path, *more: str, key: Path = key_file) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            run(app, ["--source", str(source), "--out", str(out), "--site", "here", "--key", str(key), "--jobs", "1", *more])
        return end.value.code, "".join(capfd.readouterr())

    return call


@pytest.fixture
def pet_tags() -> dict[str, object]:
    """What a PET series in Bq/ml needs for SUV: 100 MBq at 10:00, scanned one half-life later, 70 kg."""
    agent = Dataset()
    agent.RadionuclideTotalDose, agent.RadionuclideHalfLife = 100e6, 6586.2
    injected = dt.datetime(2020, 1, 1, 10)
    started = injected + dt.timedelta(seconds=6586)
    agent.RadiopharmaceuticalStartDateTime = f"{injected:%Y%m%d%H%M%S}"
    return {"Units": "BQML", "CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "START", "PatientWeight": 70,
            "RadiopharmaceuticalInformationSequence": [agent], "SeriesDate": "20200101", "SeriesTime": f"{started:%H%M%S}",
            "AcquisitionDate": "20200101", "AcquisitionTime": f"{started:%H%M%S}", "RescaleSlope": 2.5, "RescaleIntercept": 0}
