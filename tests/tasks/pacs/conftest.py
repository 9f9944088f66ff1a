"""A real PACS: Orthanc with its DICOMweb plugin on free loopback ports, loaded with small made studies."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from pipelines.ingest.pseudonyms import Pseudonyms
from tasks.pacs.config import load_pacs
from tasks.pacs.retrieve import Summary, retrieve

ORTHANC, PLUGIN = "/usr/sbin/Orthanc", Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD, PASSWORD_VARIABLE = "semiflow", "correct horse", "TEST_PACS_PASSWORD"
KEY = b"a key that is known to the tests only"
AET, PACS_AET = "SEMIFLOW", "TESTPACS"


@dataclass
class Pacs:
    """An Orthanc that can be killed and started again with the same storage."""

    folder: Path
    tls: dict[str, Path] = field(default_factory=dict)  # ca, cert, key of the server
    extra: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.http, self.dicom, self.listen = free_ports(3)
        self.front = TlsFront(self.tls, self.http) if self.tls else None
        self.process: subprocess.Popen | None = None
        self.session = requests.Session()
        self.session.auth, self.session.trust_env = (USER, PASSWORD), False

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def start(self) -> Pacs:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "test", "StorageDirectory": str(self.folder / "db"), "IndexDirectory": str(self.folder / "db"), "Plugins": [str(PLUGIN)],
            "HttpPort": self.http, "DicomPort": self.dicom, "DicomAet": PACS_AET, "DicomCheckCalledAet": True, "RemoteAccessAllowed": True,
            "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD}, "DicomAlwaysAllowStore": False,
            "DicomModalities": {"us": {"AET": AET, "Host": "127.0.0.1", "Port": self.listen, "UseDicomTls": bool(self.tls)}},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False}, "SaveJobs": False} | self.extra
        if self.tls:
            settings |= {"DicomTlsEnabled": True, "DicomTlsCertificate": str(self.tls["cert"]), "DicomTlsPrivateKey": str(self.tls["key"]),
                         "DicomTlsTrustedCertificates": str(self.tls["ca"])}
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        with (self.folder / "log").open("ab") as log:
            fast = os.environ | {"TCP_NODELAY": "1"}  # else its DCMTK waits 40 ms before each instance
            self.process = subprocess.Popen([ORTHANC, str(self.folder / "orthanc.json")], stdout=log, stderr=log, env=fast)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                self.session.get(f"{self.root}/system", timeout=2).raise_for_status()
                return self
            except requests.RequestException:
                assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def load(self, *datasets: Dataset) -> None:
        for dataset in datasets:
            path = self.folder / "one.dcm"
            dataset.save_as(path, enforce_file_format=True)
            self.session.post(f"{self.root}/instances", data=path.read_bytes(), timeout=10).raise_for_status()

    def delete(self, dataset: Dataset) -> None:
        found = self.session.post(f"{self.root}/tools/lookup", data=dataset.SOPInstanceUID, timeout=10).json()
        for one in found:
            self.session.delete(f"{self.root}{one['Path']}", timeout=10).raise_for_status()

    def config(self, folder: Path, kind: str, **changes: object) -> Path:
        """A configuration for this archive; `kind` is dicomweb, get or move."""
        content: dict = {"query": {"modalities": ["MR"]}, "settle_s": 0, "timeout_s": 10, "retries": {"attempts": 1}}
        if self.tls:
            content["tls"] = {name: str(path) for name, path in self.tls.items()}
        if kind == "dicomweb":
            content |= {"kind": kind, "url": f"{self.front.root if self.front else self.root}/dicom-web",
                        "auth": {"kind": "basic", "user": USER, "password": {"env": PASSWORD_VARIABLE}}}
        else:
            content |= {"kind": "dimse", "host": "127.0.0.1", "port": self.dicom, "called_aet": PACS_AET, "calling_aet": AET, "retrieve_by": kind,
                        "listen": {"host": "127.0.0.1", "port": self.listen}}
        path = folder / f"{kind}.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path


class TlsFront:
    """What terminates TLS before Orthanc's HTTP port, and asks for a certificate (Debian's Orthanc 1.10.1 crashes at its first HTTPS request)."""

    def __init__(self, tls: dict[str, Path], port: int) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls["ca"])
        context.load_cert_chain(tls["cert"], tls["key"])
        context.verify_mode = ssl.CERT_REQUIRED
        self._listener, self._context, self._port = socket.create_server(("127.0.0.1", 0)), context, port
        self.root = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            plain, _ = self._listener.accept()
            threading.Thread(target=self._connect, args=(plain,), daemon=True).start()

    def _connect(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as near, (
                socket.create_connection(("127.0.0.1", self._port))) as far:
            back = threading.Thread(target=self._copy, args=(far, near), daemon=True)
            back.start()
            self._copy(near, far)
            back.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


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
    if not (shutil.which(ORTHANC) and PLUGIN.exists()):
        reason = "Orthanc and its DICOMweb plugin are not installed (Debian: apt-get install orthanc orthanc-dicomweb)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


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
