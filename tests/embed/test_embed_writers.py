"""Several writers of one cache at once, killed ones, and a full disk."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time

import pytest
from embed_cohort import add_case, add_images, command, contents, model, write_params, write_prompts

from pipelines.backbones.atlas import Atlas
from pipelines.cohort import write_manifest
from pipelines.embed.folder import INDEX
from pipelines.embed.stage import embed
from pipelines.errors import DataError

MANY = 40


@pytest.fixture
def many(cohort, tmp_path):
    """A longer cohort, and the words of the command that embeds it with a model of its own."""
    source, prompts, out, rows = cohort
    for number in range(3, MANY + 1):
        add_images(source, rows, f"{number:02d}", shape=(40, 48, 8))
    write_manifest(source, rows)
    folder = model(tmp_path / "model")
    return Atlas.load(folder), ["--source", source, "--prompts", prompts, "--out", out, "--params", write_params(tmp_path, f"atlas:{folder}")]


def first_file(out, process: subprocess.Popen) -> None:
    """Wait until one image is embedded."""
    while process.poll() is None and not list((out / "images").glob("[0-9a-f]*")):
        time.sleep(0.002)


def test_two_processes_in_one_folder_compute_each_image_once(cohort, many, tmp_path):
    source, prompts, out, _ = cohort
    atlas, words = many
    both = [command(*words) for _ in range(2)]
    said = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    lines = sorted(out.splitlines()[-1] for out, _ in said)
    assert lines == [f"embedded 0 new, {2 * MANY} reused; 0 new texts", f"embedded {2 * MANY} new, 0 reused; 2 new texts"]
    embed(source, prompts, tmp_path / "alone", atlas)
    assert contents(out) == contents(tmp_path / "alone")


def test_a_waiting_process_takes_over_from_a_killed_one(cohort, many, tmp_path):
    source, prompts, out, _ = cohort
    atlas, words = many
    killed = command(*words)
    first_file(out, killed)
    killed.send_signal(signal.SIGSTOP)  # in the middle of its work, until it dies
    assert not (out / INDEX).exists(), "stopped too late to show anything"
    waiting = command(*words)
    assert waiting.stdout.readline().startswith("another process writes here, waiting for it")
    killed.kill()
    said, wrong = waiting.communicate(timeout=100)
    assert waiting.returncode == 0 and not wrong, wrong
    assert int(said.split(" reused")[0].split()[-1]) >= 1
    embed(source, prompts, tmp_path / "alone", atlas)
    assert contents(out) == contents(tmp_path / "alone")
    killed.communicate()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a function that resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> bool:
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False).returncode == 0

    if not shutil.which("mount") or os.geteuid() or not mount("size=64k"):
        pytest.skip("only root may mount a small disk; test_a_file_too_large_is_said_so asks the same of a limit")
    try:
        yield folder, lambda size: mount(f"remount,size={size}")
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_what_is_finished(cohort, atlas, small_disk, capsys):
    source, prompts, _, rows = cohort
    for number in range(3, 20):
        add_images(source, rows, f"{number:02d}")
    write_manifest(source, rows)
    disk, resize = small_disk
    out = disk / "embeddings"
    with pytest.raises(DataError, match=r"No space left on device.*free some space or give another --out, what is finished is kept"):
        embed(source, prompts, out, atlas)
    assert "warning: 38 images need 0.2 MB" in capsys.readouterr().err
    finished = list((out / "images").iterdir())
    assert 0 < len(finished) < 38 and all(path.stem.isalnum() for path in finished), finished
    resize("2m")
    outcome = embed(source, prompts, out, atlas)
    assert (outcome.reused, outcome.new) == (len(finished), 38 - len(finished))
    assert "warning" not in capsys.readouterr().err


def test_a_disk_too_full_for_the_index_keeps_the_last_one(cohort, atlas, small_disk):
    source, prompts, _, _ = cohort
    disk, resize = small_disk
    resize("1m")
    out = disk / "embeddings"
    embed(source, prompts, out, atlas)
    before = contents(out)
    with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    write_prompts(prompts, ["another text"])
    with pytest.raises(DataError, match=r"embeddings cannot be written.*No space left"):
        embed(source, prompts, out, atlas)
    assert contents(out) == before
    (disk / "filler").unlink()
    assert embed(source, prompts, out, atlas).new_texts == 1


def test_a_file_too_large_is_said_so(cohort, many):
    source, prompts, out, rows = cohort
    add_case(source, rows, "99", ("FLAIR",), shape=(256, 256, 12))
    process = command(*many[1], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)))
    _, wrong = process.communicate(timeout=100)
    assert process.returncode == 1 and "cannot be written (" in wrong and "File too large" in wrong and "Traceback" not in wrong, wrong
    assert len(list((out / "images").glob("[0-9a-f]*"))) >= 1
    finished = len(list((out / "images").iterdir()))
    outcome = embed(source, prompts, out, many[0])
    assert (outcome.reused, outcome.new) == (finished, 2 * MANY + 1 - finished)
