"""A real PACS: Orthanc with its DICOMweb plugin on free loopback ports, loaded with small made studies."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from tiny_pacs import PASSWORD, PASSWORD_VARIABLE, Pacs, needs_orthanc

from pipelines.ingest.pseudonyms import Pseudonyms
from tasks.pacs.config import load_pacs
from tasks.pacs.retrieve import Summary, retrieve

KEY = b"a key that is known to the tests only"


def study(patient: str, series: int = 2, slices: int = 3, size: int = 16) -> list[Dataset]:
    """A study of MR series, with a patient's name and number everywhere that software puts them."""
    random, study_uid, datasets = np.random.default_rng(0), generate_uid(entropy_srcs=[patient]), []
    for number in range(series):
        series_uid = generate_uid(entropy_srcs=[patient, str(number)])
        for index in range(slices):
            ds = Dataset()
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[patient, str(number), str(index)])
            ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
            ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = f"Canary^{patient}", f"ID-{patient}", "19500101", "O"
            ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "20240102", "120000", "1", f"ACC-{patient}", ""
            ds.Modality, ds.SeriesNumber, ds.InstanceNumber, ds.SeriesDescription = "MR", number + 1, index + 1, f"t1 {patient}"
            ds.Rows = ds.Columns = size
            ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, "MONOCHROME2", 16, 16, 15
            ds.PixelRepresentation = 0
            ds.PixelData = random.integers(0, 1000, (size, size)).astype("<u2").tobytes()
            datasets.append(ds)
    return datasets


@dataclass
class Desk:
    """One user's side: a folder for configurations and an inbox."""

    folder: Path

    @property
    def inbox(self) -> Path:
        return self.folder / "inbox"

    def fetch(self, config: Path, change=lambda dataset: dataset, out: str = "inbox", **options) -> Summary:
        return retrieve(load_pacs(config), self.folder / out, Pseudonyms(KEY), change, content="identified", **options)

    def files(self, out: str = "inbox") -> dict[str, bytes]:
        """What is seen of the inbox: name -> pixels."""
        root = self.folder / out
        return {str(path.relative_to(root)): dcmread(path).PixelData for path in sorted(root.glob("*/*/*.dcm")) if ".arriving" not in path.parts}


@pytest.fixture(scope="session")
def make_study():
    return study


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(scope="session")
def orthanc_installed() -> None:
    needs_orthanc()


@pytest.fixture(scope="session", autouse=True)
def password():
    os.environ[PASSWORD_VARIABLE] = PASSWORD
    yield
    del os.environ[PASSWORD_VARIABLE]


@pytest.fixture(scope="session")
def pacs(orthanc_installed, tmp_path_factory):
    """An archive with two studies. Do not change it: `make_pacs` is for that."""
    archive = Pacs(tmp_path_factory.mktemp("pacs")).start()
    archive.load(*study("Alice"), *study("Bob"))
    yield archive
    archive.kill()


@pytest.fixture
def make_pacs(orthanc_installed, tmp_path_factory):
    started = []

    def make(*datasets: Dataset, **options) -> Pacs:
        archive = Pacs(tmp_path_factory.mktemp("pacs"), **options).start()
        started.append(archive)
        archive.load(*datasets)
        return archive

    yield make
    for archive in started:
        archive.kill()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> dict[str, dict[str, Path]]:
    """Two authorities, each with a certificate for 127.0.0.1: {"ours" | "others": {"ca", "cert", "key"}}."""
    return {name: _authority(tmp_path_factory.mktemp(name), name) for name in ("ours", "others")}


def _authority(folder: Path, name: str) -> dict[str, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def certificate(subject: str, issuer: str, signer, key, *extensions) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = (x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
                   .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])).public_key(key.public_key())
                   .serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(2)))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca_key, key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    paths = {part: folder / f"{part}.pem" for part in ("ca", "cert", "key")}
    usage = x509.KeyUsage(**dict.fromkeys(["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                                           "encipher_only", "decipher_only"], False), key_cert_sign=True, crl_sign=True)
    paths["ca"].write_bytes(certificate(name, name, ca_key, ca_key, (x509.BasicConstraints(True, None), True), (usage, True),
                                        (x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False)))
    paths["cert"].write_bytes(certificate(
        f"{name} server", name, ca_key, key, (x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)))
    paths["key"].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                                               serialization.NoEncryption()))
    return paths
