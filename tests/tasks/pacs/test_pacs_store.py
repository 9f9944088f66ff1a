"""Results stored at a real archive: by STOW-RS and C-STORE, once, through a broken connection, and only where the study is."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pydicom
import pytest
from tiny_studies import ROOT, write_study

from pipelines.errors import DataError, UsageError
from tasks.pacs.archive import Denied, Unavailable
from tasks.pacs.config import load_pacs
from tasks.pacs.store import Stored, files_of, store

KINDS = ("dicomweb", "get")
PATIENT = {"timeout_s": 2, "retries": {"attempts": 3, "first_s": 0.1, "max_s": 0.2, "jitter_s": 0}}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(write_study(tmp_path_factory.mktemp("study"), 3).rglob("*.dcm"))]


@pytest.fixture
def results(study, tmp_path) -> Path:
    """A folder with a segmentation of the study and another beside it, as a prediction leaves them."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    flair = [dataset for dataset in study if "FLAIR" in dataset.SeriesDescription]
    mask = np.zeros((len(flair), flair[0].Rows, flair[0].Columns), np.uint8)
    mask[3:5, 20:40, 15:40] = 1
    (tmp_path / "results").mkdir()
    for number, name in enumerate(("seg", "probability"), 1):
        segment = hd.seg.SegmentDescription(1, name, codes.SCT.Tissue, codes.SCT.Edema, "MANUAL", tracking_uid=f"2.25.70{number}", tracking_id=name)
        made = hd.seg.Segmentation(flair, mask, "BINARY", [segment], f"2.25.80{number}", 900 + number, f"2.25.90{number}", 1,
                                        "maker", "model", "1", "1")
        made.save_as(tmp_path / "results" / f"sub-A_{name}.dcm")
    (tmp_path / "results" / "qc.json").write_text("{}")
    return tmp_path / "results"


class Leaky:
    """A way to a port that breaks in the middle of the first `breaks` large messages."""

    def __init__(self, port: int, breaks: int, after_bytes: int = 2000) -> None:
        self._listener, self._port = socket.create_server(("127.0.0.1", 0)), port
        self.breaks, self._after, self.port = breaks, after_bytes, self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self._listener.accept()
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near, socket.create_connection(("127.0.0.1", self._port)) as far:
            threading.Thread(target=self._back, args=(far, near), daemon=True).start()
            seen = 0
            while data := near.recv(1024):
                far.sendall(data)
                seen += len(data)
                if seen > self._after and self.breaks > 0:
                    self.breaks -= 1
                    for side in (near, far):
                        side.shutdown(socket.SHUT_RDWR)
                    return

    @staticmethod
    def _back(far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                near.sendall(data)


def held(pacs) -> list[str]:
    return sorted(pacs.session.get(f"{pacs.root}/instances/{one}/simplified-tags", timeout=10).json()["SOPInstanceUID"]
                  for one in pacs.session.get(f"{pacs.root}/instances", timeout=10).json())


@pytest.mark.parametrize("kind", KINDS)
def test_results_arrive_once_and_unchanged(make_pacs, study, results, desk, kind):
    pacs = make_pacs(*study)
    config = load_pacs(pacs.config(desk.folder, kind))
    assert store(config, files_of([results])) == Stored(sent=2, present=0)
    assert len(held(pacs)) == len(study) + 2
    assert store(config, files_of([results])) == Stored(sent=0, present=2)
    assert len(held(pacs)) == len(study) + 2
    found = pacs.session.post(f"{pacs.root}/tools/lookup", data="2.25.901", timeout=10).json()
    (path,) = [one["Path"] for one in found if one["Type"] == "Instance"]
    back = pydicom.dcmread(pydicom.filebase.DicomBytesIO(pacs.session.get(f"{pacs.root}{path}/file", timeout=10).content))
    sent = pydicom.dcmread(results / "sub-A_seg.dcm")
    assert back == sent
    assert back.PatientName == study[0].PatientName, "filed under the study's own patient"


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_connection_is_tried_again_and_nothing_is_there_twice(make_pacs, study, results, desk, kind):
    pacs = make_pacs(*study)
    leak = Leaky(pacs.http if kind == "dicomweb" else pacs.dicom, breaks=2)
    where = {"url": f"http://127.0.0.1:{leak.port}/dicom-web"} if kind == "dicomweb" else {"port": leak.port}
    assert store(load_pacs(pacs.config(desk.folder, kind, **where, **PATIENT)), files_of([results])).sent == 2
    assert leak.breaks == 0, "the connection was really broken"
    assert len(held(pacs)) == len(study) + 2
    leak.breaks = 99
    with pytest.raises(Unavailable):
        other = pydicom.dcmread(results / "sub-A_seg.dcm")
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "2.25.999"
        other.save_as(results / "sub-A_other.dcm")
        store(load_pacs(pacs.config(desk.folder, kind, **where, **PATIENT)), [results / "sub-A_other.dcm"])


def test_results_go_only_where_their_study_is(make_pacs, study, results, desk, make_study):
    pacs = make_pacs(*make_study("Alice"))
    with pytest.raises(DataError, match="does not have the study that the objects belong to") as error:
        store(load_pacs(pacs.config(desk.folder, "dicomweb")), files_of([results]))
    for identifier in (study[0].PatientID, str(study[0].PatientName), study[0].StudyInstanceUID):
        assert identifier not in str(error.value)
    assert len(held(pacs)) == 6


def test_an_archive_that_refuses_says_so(make_pacs, study, results, desk):
    pacs = make_pacs(*study)
    with pytest.raises(Denied):
        store(load_pacs(pacs.config(desk.folder, "dicomweb", auth=None)), files_of([results]))
    pacs.kill()
    with pytest.raises(Unavailable, match="refuses connections"):
        store(load_pacs(pacs.config(desk.folder, "get", **PATIENT)), files_of([results]))


def test_the_command(make_pacs, study, results, desk):
    pacs = make_pacs(*study)
    command = [sys.executable, "-m", "tasks.pacs", "store", str(results), "--pacs", str(pacs.config(desk.folder, "dicomweb"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "2 object(s) stored, 0 there already\n"), done.stderr


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no DICOM file and no folder with any"):
        files_of([tmp_path])
    (tmp_path / "a.dcm").write_text("text")
    with pytest.raises(DataError, match="cannot be read as DICOM"):
        store(None, files_of([tmp_path]))
