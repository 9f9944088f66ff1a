"""Folders and archives that nobody should trust: each entry is read, or accounted for, or the whole is refused; nothing outside is touched."""

from __future__ import annotations

import io
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError, UsageError
from pipelines.ingest.source import SourceFile, fingerprint, kind_of, open_source, unusable
from pipelines.ingest.source.scratch import remove_stale
from pipelines.params import Limits

DICOM = bytes(128) + b"DICM" + b"a slice's bytes"
CANARY = "Quetzalcoatl"
TARS = {"in.tar": "w", "in.tar.gz": "w:gz", "in.tgz": "w:gz", "in.tar.bz2": "w:bz2", "in.tar.xz": "w:xz", "in.bin": "w:gz"}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch) -> Path:
    """A temporary folder of the test's own, to see what is left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def read(source: Path, limits: Limits | None = None) -> dict[tuple[str, ...], bytes]:
    with open_source(source, limits) as files:
        return {file.parts: file.path.read_bytes() for file in files}


def refusal(source: Path, limits: Limits | None = None) -> str:
    with pytest.raises(DataError) as error, open_source(source, limits):
        pytest.fail("it was opened")
    assert CANARY not in str(error.value)
    assert error.value.exit_code == 1
    return str(error.value).replace(str(source), "")  # whose folder bears the test's name


MEMBERS = {"site/p1/a.dcm": DICOM, "site/p1/b.dcm": DICOM + b"2", "site/p2/a.dcm": b"", "notes.txt": b"x"}


@pytest.mark.parametrize("name", ["in.zip", *TARS])
def test_archive_equals_its_folder(tmp_path, scratch, name):
    for member, content in MEMBERS.items():
        (tmp_path / "in" / member).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / member).write_bytes(content)
    path = make_zip(tmp_path / name, MEMBERS) if name.endswith(".zip") else make_tar(tmp_path / name, MEMBERS, TARS[name])
    assert read(path) == read(tmp_path / "in") == {tuple(member.split("/")): content for member, content in MEMBERS.items()}
    assert not list(scratch.iterdir())


def test_unpacked_folder_is_private_and_names_are_numbers(tmp_path, scratch):
    with open_source(make_zip(tmp_path / "in.zip", {f"{CANARY}/{CANARY}.dcm": DICOM, f"{CANARY}.NII.gz": DICOM})) as files:
        (folder,) = scratch.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not [path for path in folder.rglob("*") if CANARY in str(path)]
        assert sorted(file.path.name for file in files) == ["0000000", "0000001.nii.gz"]
    assert not folder.exists()


@pytest.mark.parametrize("name", [f"../{CANARY}.dcm", f"/etc/{CANARY}.dcm", f"a/../../{CANARY}.dcm", f"C:\\{CANARY}.dcm", f"..\\{CANARY}.dcm"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_archive_that_leads_out_of_itself_is_refused(tmp_path, name, make):
    assert "leads out of the archive" in refusal(make(tmp_path / "in", {"fine.dcm": DICOM, name: DICOM}))
    assert not list(tmp_path.rglob(f"*{CANARY}*"))


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_zip_with_a_link_or_device_is_refused(tmp_path, mode):
    info = zipfile.ZipInfo(CANARY)
    info.external_attr = (mode | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr(info, b"/etc/passwd")
    assert ("symbolic link" if mode == stat.S_IFLNK else "pipe or device") in refusal(tmp_path / "in.zip")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.GNUTYPE_SPARSE])
def test_tar_with_a_link_or_device_is_refused(tmp_path, kind):
    member = tarfile.TarInfo(CANARY)
    member.type, member.linkname = kind, "fine.dcm"
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("fine.dcm"))
        archive.addfile(member)
    assert "refused" in refusal(tmp_path / "in.tar")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_two_members_of_one_name_are_refused(tmp_path, make):
    class Twice(dict):
        def items(self):
            return [(f"{CANARY}/a.dcm", DICOM), (f"./{CANARY}/a.dcm", DICOM + b"other")]

    assert "the name of another member" in refusal(make(tmp_path / "in", Twice()))


def test_encrypted_zip_is_refused(tmp_path):
    data = bytearray(make_zip(tmp_path / "in.zip", {f"{CANARY}.dcm": DICOM}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    (tmp_path / "in.zip").write_bytes(data)
    assert "member 1 of 1 is encrypted" in refusal(tmp_path / "in.zip")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_too_many_members_are_refused(tmp_path, scratch, make):
    path = make(tmp_path / "in", {f"{CANARY}{number}": DICOM for number in range(11)})
    assert "more than 10 files" in refusal(path, Limits(files=10))
    assert len(read(path, Limits(files=11))) == 11
    assert not list(scratch.iterdir())


def test_folder_with_too_many_files_is_refused(tmp_path):
    make_folder(tmp_path / "in", {f"{number}": DICOM for number in range(11)})
    assert "more than 10 files" in refusal(tmp_path / "in", Limits(files=10))


def make_folder(folder: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["in.zip", "in.tar", "in.tgz", "in.tar.xz"])
@pytest.mark.parametrize("bound", [(Limits(file_gb=0.001), "more than 0.001 GB"), (Limits(total_gb=0.0015), "the source unpacks to more than"),
                                   (Limits(ratio=50), "50 times")])
def test_bomb_is_refused_while_it_unpacks(tmp_path, scratch, monkeypatch, name, bound):
    limits, words = bound
    if limits.ratio == 50:
        monkeypatch.setattr("pipelines.ingest.source.archives.HARMLESS_BYTES", 100_000)
    members = {f"{CANARY}{number}": bytes(1_000_001 if limits.file_gb < 1 else 900_000) for number in range(2)}
    path = make_zip(tmp_path / name, members) if name.endswith("zip") else make_tar(tmp_path / name, members, TARS[name])
    if name == "in.tar" and limits.ratio == 50:
        assert len(read(path, limits)) == 2  # nothing is compressed
        return
    assert words in refusal(path, limits)
    assert not list(scratch.iterdir())


def test_small_archives_may_compress_well(tmp_path):
    assert len(read(make_zip(tmp_path / "in.zip", {"mask.dcm": bytes(2_000_000)}))) == 1


def patched(path: Path, **fields: int) -> Path:
    """The first member's entry in a zip's directory, with another size or place."""
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    for name, value in fields.items():
        struct.pack_into("<I", data, entry + {"packed": 20, "size": 24, "offset": 42}[name], value)
    path.write_bytes(data)
    return path


def test_zip_that_declares_less_than_it_holds_unpacks_no_more_than_declared(tmp_path, scratch):
    path = patched(make_zip(tmp_path / "in.zip", {f"{CANARY}.dcm": bytes(5_000_000)}), size=1000)
    assert "cannot be unpacked (BadZipFile" in refusal(path)
    assert not list(scratch.iterdir())


def test_zip_that_declares_more_than_the_disk_holds_is_refused_before_unpacking(tmp_path):
    path = patched(make_zip(tmp_path / "in.zip", {f"{CANARY}.dcm": DICOM}), size=4_000_000_000)
    assert "200 times" in refusal(path)


def test_zip_with_overlapping_members_is_refused(tmp_path):
    path = make_zip(tmp_path / "in.zip", {f"{CANARY}1": os.urandom(500), f"{CANARY}2": os.urandom(500)}, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path) as archive:
        second = archive.infolist()[1].header_offset
    assert "members overlap" in refusal(patched(path, offset=second))


def test_tar_with_a_header_that_would_fill_the_memory_is_refused(tmp_path):
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 7 << 30
    (tmp_path / "in.tar").write_bytes(member.tobuf() + bytes(10_240))
    assert "a header of 7516192768 bytes" in refusal(tmp_path / "in.tar")


def test_archive_cut_anywhere_is_refused_or_no_archive(tmp_path):
    whole = {"zip": make_zip(tmp_path / "whole.zip", MEMBERS).read_bytes()}
    tars = ("in.tar", "in.tgz", "in.tar.xz", "in.tar.bz2")
    whole |= {name: make_tar(tmp_path / f"whole.{name}", MEMBERS, TARS[name]).read_bytes() for name in tars}
    for name, data in whole.items():
        # The two zero blocks at a tar's end, and what pads it, hold no member: one block of them is proof that all came.
        last = (len(data.rstrip(b"\0")) // 512 + 2) * 512 if name == "in.tar" else len(data)
        for size in {*range(0, last - 512, 509), last - 513}:
            (tmp_path / "cut").write_bytes(data[:size])
            with pytest.raises((DataError, UsageError)), open_source(tmp_path / "cut"):
                pytest.fail(f"{name} cut at {size} of {len(data)} was opened")


def test_joined_tars_are_refused_instead_of_losing_the_second(tmp_path):
    one, two = make_tar(tmp_path / "1.tar", {"a": DICOM}), make_tar(tmp_path / "2.tar", {"b": DICOM})
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + two.read_bytes())
    assert "behind its end mark" in refusal(tmp_path / "both.tar")


def test_folder_of_archives_is_read_as_a_folder_of_folders(tmp_path):
    source = make_folder(tmp_path / "in", {"site-a/p3/x.dcm": DICOM})
    make_zip(source / "site-a" / "p1.zip", {"s/x.dcm": DICOM + b"1"})
    make_tar(source / "site-a" / "p2.tar.gz", {"s/x.dcm": DICOM + b"2"}, "w:gz")
    assert read(source) == {("site-a", "p1", "s", "x.dcm"): DICOM + b"1", ("site-a", "p2", "s", "x.dcm"): DICOM + b"2",
                            ("site-a", "p3", "x.dcm"): DICOM}
    prints = []
    for _ in range(2):  # the same however often it is unpacked
        with open_source(source) as files:
            prints.append(fingerprint(source, files))
    assert prints[0] == prints[1]
    make_zip(source / "site-a" / "p1.zip", {"s/x.dcm": DICOM + b"11"})
    with open_source(source) as files:
        assert fingerprint(source, files) not in prints


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_with_long_and_foreign_names(tmp_path, form):
    members = {"/".join(["Übersicht" * 9, "ser" * 40, f"{number}.dcm"]): DICOM for number in range(3)}
    headers = {"pax_headers": {"comment": "x"}} if form == tarfile.PAX_FORMAT else {}
    path = make_tar(tmp_path / "in.tar", members, format=form, **headers)
    assert read(path) == {tuple(name.split("/")): content for name, content in members.items()}


def test_refused_archive_uses_up_no_limit_of_the_others(tmp_path):
    source = make_folder(tmp_path / "in", {})
    source.mkdir()
    make_zip(source / "a.zip", {**{f"{number}": DICOM for number in range(8)}, "../out": DICOM})
    make_zip(source / "b.zip", {f"{number}": DICOM for number in range(8)})
    with open_source(source, Limits(files=10)) as files:
        assert len(files) == 8
        assert [refused.code for _, refused in files.refused] == ["archive-path"]


def test_archives_of_a_folder_share_the_limit_of_the_total(tmp_path):
    source = make_folder(tmp_path / "in", {})
    source.mkdir()
    for name in "abc":
        make_zip(source / f"{name}.zip", {"x": os.urandom(400_000)})
    with open_source(source, Limits(total_gb=0.001)) as files:
        assert [file.parts[0] for file in files] == ["a", "b"]
        assert [refused.code for _, refused in files.refused] == ["archive-size"]


def test_one_bad_archive_among_good_ones_is_accounted_for(tmp_path, scratch):
    source = make_folder(tmp_path / "in", {"cut.zip": b"PK\x03\x04 and no more"})
    make_zip(source / f"{CANARY}.zip", {f"../{CANARY}": DICOM})
    make_zip(source / "good.zip", {"x.dcm": DICOM})
    with open_source(source) as files:
        assert [file.parts for file in files] == [("good", "x.dcm")]
        assert sorted(refused.code for _, refused in files.refused) == ["archive-damaged", "archive-path"]
        assert CANARY not in str([(item, refused.reason, refused.remedy) for item, refused in unusable(files)])
    assert not list(scratch.iterdir())


def test_archive_inside_an_archive_is_named_and_not_opened(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", {"x.dcm": DICOM}).read_bytes()
    with open_source(make_zip(tmp_path / "in.zip", {f"{CANARY}.zip": inner, "x.dcm": DICOM})) as files:
        assert files.kinds() == {"zip": 1, "dicom": 1}
        ((item, refused),) = unusable(files)
    assert refused.code == "nested-archive"
    assert CANARY not in item + str(refused)


def test_every_entry_of_a_folder_is_accounted_for(tmp_path):
    source = make_folder(tmp_path / "in", {"a.dcm": DICOM, f"{CANARY}-empty.dcm": b"", "b/old": b"\x08\x00\x05\x00" + bytes(200),
                                           "b/t1.nii.gz": b"\x1f\x8b", f"{CANARY}-photo": b"no image", "table.xlsx": b"PK\x03\x04",
                                           "participants.tsv": b"x",
                                           ".hidden": b"x", "DICOMDIR": DICOM, ".git/config": b"x"})
    os.mkfifo(source / f"{CANARY}-pipe")
    (source / "loop").symlink_to(source)
    (source / "itself").symlink_to(source / "itself")
    (source / "gone").symlink_to(tmp_path / "gone")
    (source / "zero").symlink_to("/dev/zero")
    (source / "linked.dcm").symlink_to(source / "a.dcm")
    with open_source(source) as files:
        assert files.kinds() == {"dicom": 3, "empty": 1, "nifti": 1, "other": 1, "companion": 2}
        assert files.system == 3
        codes = sorted(refused.code for _, refused in unusable(files))
        assert codes == ["broken-link", "broken-link", "empty-file", "linked-folder", "not-dicom", "special-file", "special-file"]
        for item, refused in unusable(files):
            assert CANARY not in f"{item} {refused}"
            assert refused.row("", "", item)["remedy"]


def test_file_larger_than_the_limit_is_accounted_for(tmp_path):
    source = make_folder(tmp_path / "in", {"a.dcm": DICOM, "b.dcm": DICOM * 10})
    with open_source(source, Limits(file_gb=1e-6)) as files:
        assert [refused.code for _, refused in files.refused] == ["too-large"]


def test_names_that_are_not_utf8(tmp_path):
    source = make_folder(tmp_path / "in", {"a.dcm": DICOM})
    Path(os.fsdecode(os.fsencode(source) + b"/M\xfcller.dcm")).write_bytes(DICOM)
    make_tar(source / "p.tar", {os.fsdecode(b"M\xfcller\n/x.dcm"): DICOM}, format=tarfile.GNU_FORMAT)
    with open_source(source) as files:
        assert len(files) == 3
        assert len(fingerprint(source, files)) == 64
        "".join("".join(file.parts) for file in files).encode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user to whom files are closed")
def test_what_this_user_may_not_read_is_accounted_for():
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        make_folder(folder, {"open/a.dcm": DICOM, "closed/b.dcm": DICOM, "c.dcm": DICOM})
        folder.chmod(0o755)
        (folder / "closed").chmod(0)
        (folder / "c.dcm").chmod(0)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65534)
                tempfile.tempdir = "/tmp"
                with open_source(folder) as files:
                    os.write(write, f"{len(files)} {sorted(refused.code for _, refused in files.refused)}".encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        assert os.read(read, 1000).decode() == "1 ['unreadable-file', 'unreadable-folder']"
    finally:
        shutil.rmtree(folder)


HOLD = """
import signal, sys, time; from pathlib import Path; from pipelines.ingest.source import open_source
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
with open_source(Path(sys.argv[1])) as files:
    print("open", flush=True); time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_unpacked_files_of_an_ended_run_are_removed_at_the_latest_by_the_next(tmp_path, scratch, number):
    path = make_zip(tmp_path / "in.zip", {"x.dcm": DICOM})
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               cwd=Path(__file__).parents[2], env={**os.environ, "TMPDIR": str(scratch)})
    assert process.stdout.readline() == b"open\n"
    (folder,) = scratch.iterdir()
    assert int((folder / "owner").read_text()) == process.pid
    assert remove_stale(scratch) == 0  # it lives
    assert folder.exists()
    process.send_signal(number)
    process.wait(10)
    assert folder.exists() == (number == signal.SIGKILL)
    with open_source(path):
        assert not folder.exists()
    assert not list(scratch.iterdir())


def test_folders_of_others_are_never_removed(scratch, tmp_path):
    (scratch / "semiflow-notes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "owner").write_text("1")
    (scratch / "semiflow-link").symlink_to(tmp_path / "elsewhere")
    if os.geteuid() == 0:  # another user's, whose lock this one could take
        make_folder(scratch / "semiflow-theirs", {"owner": b"1"})
        os.chown(scratch / "semiflow-theirs", 65534, 65534)
    assert remove_stale(scratch) == 0
    assert (scratch / "semiflow-notes").is_dir()
    assert (tmp_path / "elsewhere" / "owner").is_file()


def test_full_disk_says_so(tmp_path, monkeypatch):
    class Full:
        free = 10

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Full)
    assert "set TMPDIR to a larger disk" in refusal(make_zip(tmp_path / "in.zip", {"x.dcm": DICOM}))


def test_neither_folder_nor_archive_is_misuse(tmp_path):
    (tmp_path / "x.dcm").write_bytes(DICOM)
    for source in (tmp_path / "x.dcm", tmp_path / "none"):
        with pytest.raises(UsageError, match=r"folder.* zip|folder, \.zip"), open_source(source):
            pass


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2000), flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
       which=st.sampled_from(["zip", "tar", "tgz"]))
def test_altered_archive_never_crashes_and_never_leaves_anything(tmp_path, scratch, data, flips, which):
    path = tmp_path / f"in.{which}"
    content = {"a/x.dcm": DICOM, "b": data}
    altered = bytearray((make_zip(path, content) if which == "zip" else make_tar(path, content, "w:gz" if which == "tgz" else "w")).read_bytes())
    for place, value in flips:
        altered[place % len(altered)] = value
    path.write_bytes(altered)
    try:
        with open_source(path) as files:
            assert all(isinstance(file, SourceFile) and kind_of(file) for file in files)
    except (DataError, UsageError):
        pass
    assert not list(scratch.iterdir())
    assert sorted(entry.name for entry in tmp_path.iterdir() if not entry.name.startswith("in.")) == ["scratch"]
