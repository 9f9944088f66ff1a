"""A real PACS for tests: Orthanc with its DICOMweb plugin on free loopback ports."""

from __future__ import annotations

import contextlib
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

import pytest
import requests
import yaml
from pydicom import Dataset

ORTHANC, PLUGIN = "/usr/sbin/Orthanc", Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD, PASSWORD_VARIABLE = "semiflow", "correct horse", "TEST_PACS_PASSWORD"
AET, PACS_AET = "SEMIFLOW", "TESTPACS"


def needs_orthanc() -> None:
    """Skip where there is no Orthanc, with the reason; in CI its absence is a failure."""
    if not (shutil.which(ORTHANC) and PLUGIN.exists()):
        reason = "Orthanc and its DICOMweb plugin are not installed (Debian: apt-get install orthanc orthanc-dicomweb)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


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
