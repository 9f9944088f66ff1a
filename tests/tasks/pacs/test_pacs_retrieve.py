"""Retrieval that is interrupted, repeated, incomplete or refused: nothing twice, nothing half, nothing lost, and no identifier anywhere."""

from __future__ import annotations

import copy
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from pipelines.errors import Refused, UsageError
from tasks.pacs.archive import Unavailable
from tasks.pacs.retrieve import Watcher

ROOT = Path(__file__).parents[3]


class After(Watcher):
    """Does something when the n-th instance has come."""

    def __init__(self, number: int, action) -> None:
        self.left, self._action = number, action

    def instance(self, size: int) -> None:
        self.left -= 1
        if self.left == 0:
            self._action()


@pytest.mark.parametrize("kind", ["dicomweb", "get"])
def test_second_run_fetches_nothing(pacs, desk, kind):
    config = pacs.config(desk.folder, kind)
    desk.fetch(config)
    before = {name: (desk.inbox / name).stat().st_mtime_ns for name in desk.files()}
    again = desk.fetch(config)
    assert (again.fetched, dict(again.studies)) == (0, {"unchanged": 2})
    assert before == {name: (desk.inbox / name).stat().st_mtime_ns for name in desk.files()}
    assert stat.S_IMODE(desk.inbox.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["dicomweb", "get", "move"])
def test_archive_killed_in_the_middle(make_pacs, make_study, desk, kind):
    pacs = make_pacs(*make_study("Alice", series=1, slices=8, size=512), *make_study("Bob", series=1, slices=2))
    config = pacs.config(desk.folder, kind, timeout_s=3)
    with pytest.raises(Unavailable, match=r"\d instance\(s\) fetched in this run are kept") as error:
        desk.fetch(config, watcher=After(3, pacs.kill))
    assert "run again" in str(error.value)
    kept = len(list(desk.inbox.rglob("*.dcm")))
    assert 3 <= kept < 10
    assert all(len(list((desk.inbox / name).rglob("*.dcm"))) in (2, 8) for name in {name.split("/")[0] for name in desk.files()})
    pacs.start()
    summary = desk.fetch(config)
    assert summary.fetched == 10 - kept
    assert len(desk.files()) == 10


def test_archive_that_comes_back_is_asked_again(make_pacs, make_study, desk):
    pacs = make_pacs(*make_study("Alice", series=1, slices=8, size=512))

    def restart() -> None:
        pacs.kill()
        pacs.start()

    retries = {"attempts": 3, "first_s": 0.1, "jitter_s": 0.1}
    summary = desk.fetch(pacs.config(desk.folder, "dicomweb", retries=retries), watcher=After(2, restart))
    assert (summary.fetched, dict(summary.studies)) == (8, {"whole": 1})


def test_retrieval_killed_in_the_middle(make_pacs, make_study, desk):
    pacs = make_pacs(*make_study("Alice", series=2, slices=20, size=256))
    config = pacs.config(desk.folder, "dicomweb")
    key = desk.folder / "key"
    key.write_bytes(b"a key that is known to the tests only")
    process = subprocess.Popen([sys.executable, "-m", "tasks.pacs", "retrieve", "--pacs", str(config), "--key", str(key), "--out", str(desk.inbox),
                                "--identified"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(list(desk.inbox.rglob("*.dcm"))) < 5:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert desk.files() == {}, "half a study is not seen"
    kept = len(list(desk.inbox.rglob("*.dcm")))
    assert 5 <= kept < 40
    summary = desk.fetch(config)
    assert 40 - kept <= summary.fetched <= 41 - kept  # the one under way may be on the disk and not yet in the journal
    assert len(desk.files()) == 40
    assert not list(desk.inbox.glob(".arriving/*"))


def test_instance_added_later(make_pacs, make_study, desk):
    *first, late = make_study("Alice", series=1, slices=4)
    pacs = make_pacs(*first)
    config = pacs.config(desk.folder, "dicomweb")
    desk.fetch(config)
    assert len(desk.files()) == 3
    pacs.load(late)
    summary = desk.fetch(config)
    assert (summary.fetched, dict(summary.studies), len(desk.files())) == (1, {"whole": 1}, 4)


def test_instance_withdrawn_at_the_archive(make_pacs, make_study, desk):
    datasets = make_study("Alice", series=1, slices=4)
    pacs = make_pacs(*datasets)
    config = pacs.config(desk.folder, "dicomweb")
    desk.fetch(config)
    pacs.delete(datasets[0])
    desk.fetch(config)
    assert sorted(desk.files().values()) == sorted(ds.PixelData for ds in datasets[1:])


def test_study_that_grows_between_the_looks(make_pacs, make_study, desk):
    *first, late = make_study("Alice", series=1, slices=4)
    pacs = make_pacs(*first)
    config = pacs.config(desk.folder, "dicomweb")
    summary = desk.fetch(config, watcher=After(3, lambda: pacs.load(late)))
    assert (dict(summary.studies), desk.files()) == ({"arriving": 1}, {})
    assert "still arriving" in str(summary) and "4 instance(s) now" in str(summary)
    assert (desk.fetch(config).fetched, len(desk.files())) == (1, 4)


def test_second_look_comes_after_the_pause(make_pacs, make_study, desk):
    pacs = make_pacs(*make_study("Alice", series=1, slices=1))
    started = time.monotonic()
    assert dict(desk.fetch(pacs.config(desk.folder, "dicomweb", settle_s=0.7)).studies) == {"whole": 1}
    assert time.monotonic() - started > 0.7


def test_partial_study_is_not_handed_on_and_completed_later(make_pacs, make_study, desk):
    """An archive that lists an instance whose file it has lost."""
    datasets = make_study("Alice", series=1, slices=4)
    pacs = make_pacs(*datasets, extra={"MaximumStorageCacheSize": 0})
    lost = next(path for path in (pacs.folder / "db").rglob("*") if path.is_file() and datasets[2].PixelData in path.read_bytes())
    bytes_ = lost.read_bytes()
    lost.unlink()
    config = pacs.config(desk.folder, "get")
    summary = desk.fetch(config)
    assert summary.studies["partial"] + summary.studies["failed"] == 1
    assert desk.files() == {}
    lost.write_bytes(bytes_)
    completed = desk.fetch(config)
    assert summary.fetched + completed.fetched == 4
    assert len(desk.files()) == 4


@pytest.mark.parametrize("thorough", [False, True])
def test_damaged_file_is_fetched_again(make_pacs, make_study, desk, thorough):
    pacs = make_pacs(*make_study("Alice", series=1, slices=4))
    config = pacs.config(desk.folder, "dicomweb")
    desk.fetch(config)
    whole = desk.files()
    victim = desk.inbox / sorted(whole)[1]
    if thorough:  # same size, same time: only the contents tell
        stamp, data = victim.stat(), victim.read_bytes()
        victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(victim, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    else:
        os.truncate(victim, 100)
    assert desk.fetch(config, thorough=thorough).fetched == 1
    assert desk.files() == whole


def test_refused_instance_is_quarantined_and_not_fetched_again(make_pacs, make_study, desk):
    datasets = make_study("Alice", series=1, slices=4)
    pacs = make_pacs(*datasets)
    config = pacs.config(desk.folder, "dicomweb")
    calls = []

    def change(dataset):
        calls.append(1)
        if dataset.InstanceNumber == 2:
            raise Refused("burned-in", "the pixels may show text", "look at it")
        if dataset.InstanceNumber == 3:
            raise KeyError("Canary^Alice")  # a bug in a changer, or a header that breaks it
        return dataset

    summary = desk.fetch(config, change)
    assert (summary.fetched, summary.refused, dict(summary.studies), len(desk.files())) == (2, 2, {"whole": 1}, 2)
    table = (desk.inbox / "quarantine.tsv").read_text()
    assert "burned-in" in table and "unreadable-instance" in table and "Canary" not in table
    assert dict(desk.fetch(config, change).studies) == {"unchanged": 1}
    assert len(calls) == 4
    assert desk.fetch(config, retry_refused=True).fetched == 2
    assert len(desk.files()) == 4


def test_series_of_some_modalities_only(make_pacs, make_study, desk):
    images, other = make_study("Alice", series=1, slices=2), make_study("Alice", series=1, slices=1)[0]
    other.Modality, other.SeriesInstanceUID, other.SOPInstanceUID = "SR", generate_uid(), generate_uid()
    other.file_meta.MediaStorageSOPInstanceUID = other.SOPInstanceUID
    pacs = make_pacs(*images, other)
    for kind in ("dicomweb", "get"):
        config = pacs.config(desk.folder, kind, query={"modalities": ["MR"], "series_modalities": ["MR"]})
        assert dict(desk.fetch(config, out=kind).studies) == {"whole": 1}
        assert len(desk.files(kind)) == 2


def test_studies_of_a_list(pacs, desk):
    ids = desk.folder / "ids.txt"
    ids.write_text("ACC-Bob\n\nACC-Nobody\n")
    for kind in ("dicomweb", "get"):
        config = pacs.config(desk.folder, kind, query={"ids": {"attribute": "AccessionNumber", "file": str(ids)}})
        assert dict(desk.fetch(config, out=kind).studies) == {"whole": 1}


def test_nothing_matches(pacs, desk):
    for kind in ("dicomweb", "get"):
        summary = desk.fetch(pacs.config(desk.folder, kind, query={"study_date": "19000101"}), out=kind)
        assert (summary.fetched, str(summary)) == (0, "studies: none found; instances: 0 fetched (0.0 MB)")


@pytest.mark.parametrize("classes_told", [True, False])
def test_compressed_data_stay_as_they_are(make_pacs, make_study, desk, classes_told):
    """Also where the archive does not tell the SOP class of an instance in C-FIND."""
    from pydicom import dcmread
    from pydicom.uid import RLELossless

    (dataset,) = make_study("Alice", series=1, slices=1)
    dataset.compress(RLELossless, generate_instance_uid=False)
    pacs = make_pacs(dataset, extra={"StorageAccessOnFind": "Always" if classes_told else "Never"})
    for kind in ("dicomweb", "get", "move"):
        desk.fetch(pacs.config(desk.folder, kind), out=kind)
        (path,) = (desk.folder / kind).glob("*/*/*.dcm")
        assert dcmread(path).file_meta.TransferSyntaxUID == RLELossless, kind
        assert dcmread(path).PixelData == dataset.PixelData


def test_results_are_stored(make_pacs, make_study, desk):
    from tasks.pacs.archive import open_archive
    from tasks.pacs.config import load_pacs

    first, second = make_study("Alice", series=1, slices=2)
    pacs = make_pacs()
    for kind, dataset in (("dicomweb", first), ("get", second)):
        with open_archive(load_pacs(pacs.config(desk.folder, kind))) as archive:
            archive.store(dataset)
    assert desk.fetch(config=pacs.config(desk.folder, "get")).fetched == 2


def test_no_identifier_in_names_logs_or_journal(make_pacs, make_study, desk, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    datasets = make_study("Alice", series=2, slices=3, size=256)
    pacs = make_pacs(*datasets)

    def anonymous(dataset):
        """As a de-identifier leaves it: nothing of the patient, other UIDs."""
        if dataset.InstanceNumber == 2:
            raise Refused("burned-in", "the pixels may show text", "look at it")
        clean = copy.copy(dataset)
        for keyword in ("PatientName", "PatientID", "AccessionNumber", "SeriesDescription"):
            setattr(clean, keyword, "")
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(clean, keyword, "1.2.3")
        clean.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        return clean

    told = []
    for kind in ("dicomweb", "get", "move"):
        out, config = f"{kind}-inbox", pacs.config(desk.folder, kind, timeout_s=3)
        with pytest.raises(Unavailable) as error:
            desk.fetch(config, anonymous, out=out, watcher=After(2, pacs.kill))
        pacs.start()
        told += [str(error.value), str(desk.fetch(config, anonymous, out=out))]
    words = [word for ds in datasets for word in ("Alice", "Canary", "ACC-", ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)]
    seen = "\n".join([*told, caplog.text, *capfd.readouterr()]).encode()
    for path in desk.folder.glob("*-inbox/**/*"):
        seen += str(path.relative_to(desk.folder)).encode() + (path.read_bytes() if path.is_file() else b"")
    assert len(seen) > 1e6
    assert [word for word in words if word.encode() in seen] == []


def test_folder_that_is_no_inbox(pacs, desk):
    desk.inbox.mkdir()
    (desk.inbox / "thesis.docx").touch()
    with pytest.raises(UsageError, match="is no inbox"):
        desk.fetch(pacs.config(desk.folder, "dicomweb"))
