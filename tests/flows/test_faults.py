"""The service under real kills, locks and a full disk, in short (`benchmarks/faults.py` has forty of them), and checks that find what is wrong."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_pacs import needs_orthanc

KINDS = ("flow", "stage", "study")
SEED = 3


@pytest.fixture(scope="module")
def harmed(tmp_path_factory):
    """A site whose first adaptation was harmed several times before it was let finish, and what became of each run."""
    needs_orthanc()
    from benchmarks.faults import one_turn
    from benchmarks.faults_hospital import Hospital

    with Hospital(tmp_path_factory.mktemp("faults")) as hospital, hospital.clinic(0) as clinic:
        yield clinic, one_turn(clinic, list(enumerate(KINDS)), SEED)


@pytest.mark.slow
def test_whatever_was_done_to_it_the_next_run_makes_it_good(harmed):
    clinic, rounds = harmed
    assert {one.harm for one in rounds} == set(KINDS)
    assert [one.faults for one in rounds] == [[]] * len(KINDS), "\n".join(map(str, rounds))
    assert sum(one.first != "missed" for one in rounds) >= len(KINDS) - 1, "\n".join(map(str, rounds))
    assert rounds[-1].next in ("promote", "keep", "unchanged")
    assert clinic.hospital.zombies() == []


def lose_weights(workspace, clinic):
    path = workspace.champion / "fit" / "linear.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    return [path], "not those that were registered"


def lose_a_patient(workspace, clinic):
    workspace.roles.write_text("".join(workspace.roles.read_text().splitlines(keepends=True)[:-1]))
    return [workspace.roles], "roles for"


def count_a_case_twice(workspace, clinic):
    verdict = json.loads(workspace.verdict.read_text())
    workspace.verdict.write_text(json.dumps({**verdict, "cases": verdict["cases"] + verdict["cases"][:1]}))
    return [workspace.verdict], "has a case twice"


def leave_half_a_file(workspace, clinic):
    path = workspace.bids / "half.nii.gz"
    path.write_bytes(b"half")
    return [path], "bids has 1 volume(s)"


def leave_half_a_folder(workspace, clinic):
    path = workspace.folder / "data" / ".bids.partial"
    path.touch()
    return [path], "was left behind"


def cut_an_image(workspace, clinic):
    path = next(workspace.resampled.rglob("*FLAIR*.nii.gz"))
    path.write_bytes(path.read_bytes()[:-100])
    return [path], "resampled has 2 volume(s)"


def say_a_name(workspace, clinic):
    path = clinic.hospital.folder / "logs" / "talkative.log"
    path.write_text(f"cannot read {clinic.arrived[workspace.site][0].name}\n")
    return [path], "holds an identifier"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lose_weights, lose_a_patient, count_a_case_twice, leave_half_a_file, leave_half_a_folder,
                                    cut_an_image, say_a_name], ids=lambda damage: damage.__name__)
def test_the_checks_find(harmed, damage, tmp_path):
    from benchmarks.faults_checks import check_after

    clinic, rounds = harmed
    workspace = clinic.workspace(rounds[-1].site)
    shutil.copytree(workspace.folder, tmp_path / "before", symlinks=True, ignore=shutil.ignore_patterns("inbox", "embeddings"))
    changed, said = damage(workspace, clinic)
    try:
        assert any(said in fault for fault in check_after(clinic, workspace, []))
    finally:
        for path in changed:
            before = tmp_path / "before" / path.relative_to(workspace.folder) if path.is_relative_to(workspace.folder) else None
            if before is not None and before.is_file():
                shutil.copy2(before, path)
            else:
                path.unlink()


LOCK = "schema: '2.0'\nstages:\n  ingest:\n    cmd: x\n    deps:\n    - path: inbox.json\n      hash: md5\n      md5: f00d\n"


def test_half_of_dvcs_own_notes_does_not_stop_a_site(tmp_path):
    """DVC writes them in place, and refuses to work beside half of one."""
    import subprocess

    from tiny_hospitals import make_project

    from tasks.dvc_stage import dvc_command
    from tasks.site import lay_out_site

    workspace = lay_out_site("site-a", make_project(tmp_path / "project"))
    config, rwlock, lock = (workspace.folder / name for name in (".dvc/config", ".dvc/tmp/rwlock", "dvc.lock"))
    for left in ("", LOCK[:62], LOCK[:20], "\0" * 40):
        lock.write_text(left)
        lay_out_site("site-a", workspace.project)
        assert not lock.exists(), left
    lock.write_text(LOCK)
    rwlock.parent.mkdir(exist_ok=True)
    rwlock.write_text('{"a": {"wr')
    config.write_text("")
    lay_out_site("site-a", workspace.project)
    assert lock.read_text() == LOCK, "a whole one stays"
    command = [*dvc_command(), "repro", "--dry", "--single-item", "ingest"]
    done = subprocess.run(command, cwd=workspace.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
