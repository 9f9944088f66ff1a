"""Clearing the cache: what goes, what stays, and a writer at the same time."""

from __future__ import annotations

import pytest
from embed_cohort import add_case, add_images, command, contents, model, write_params

from pipelines.backbones.atlas import Atlas
from pipelines.cli import run
from pipelines.cohort import write_manifest
from pipelines.embed.__main__ import app
from pipelines.embed.cache import read_index, token_files
from pipelines.embed.folder import lock
from pipelines.embed.garbage import clear
from pipelines.embed.stage import embed
from pipelines.errors import DataError, UsageError


def images(out) -> set[str]:
    return {f"images/{path.name}" for path in (out / "images").iterdir()}


def test_tokens_of_another_backbone_go_and_listed_ones_stay(cohort, atlas, tmp_path, capsys):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, Atlas.load(model(tmp_path / "model", seed=1)))
    embed(source, prompts, out, atlas)
    (out / "images" / "notes.txt").write_text("not ours")
    (out / "images" / ".123.begun.safetensors").write_bytes(b"half")
    before, index = contents(out), read_index(out)
    size = int(index.bytes.sum())
    megabytes = f"4 token files, {size / 1e6:.1f} MB; 4 stay, {size / 1e6:.1f} MB"
    for words, said in ((["--dry-run"], f"would remove {megabytes}"), ([], f"removed {megabytes}"), ([], "removed 0 token files, 0.0 MB")):
        with pytest.raises(SystemExit) as end:
            run(app, ["gc", "--embeddings", str(out), *words])
        assert end.value.code == 0 and capsys.readouterr().out.startswith(said)
        if words:
            assert contents(out) == before
    assert images(out) == set(index.file) | {"images/notes.txt"}
    assert embed(source, prompts, out, atlas).reused == 4


def test_what_a_manifest_names_stays(cohort, atlas, tmp_path):
    source, prompts, out, rows = cohort
    add_case(source, rows, "03")
    other = tmp_path / "other"
    write_manifest(other, rows)
    embed(source, prompts, out, atlas)
    write_manifest(source, [row for row in rows if row["subject"] != "03"])
    embed(source, prompts, out, atlas)
    assert clear(out, [other]).removed == 0
    assert clear(out).removed == 2
    assert len(token_files(out)) == 4


def test_listed_tokens_go_only_when_told(cohort, atlas):
    source, prompts, out, rows = cohort
    embed(source, prompts, out, atlas)
    write_manifest(source, [row for row in rows if row["subject"] != "02"])
    assert clear(out, [source]).removed == 0
    with pytest.raises(UsageError, match="--source FOLDER"):
        clear(out, listed_too=True)
    assert clear(out, [source], listed_too=True, dry_run=True).removed == 2 and len(read_index(out)) == 4
    assert clear(out, [source], listed_too=True).removed == 2
    assert read_index(out).subject.tolist() == ["01", "01"] and len(token_files(out)) == 2
    assert embed(source, prompts, out, atlas).reused == 2


def test_work_of_a_killed_first_run_is_no_garbage(cohort, atlas):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, atlas)
    (out / "index.parquet").unlink()
    with pytest.raises(DataError, match="run the embed stage first"):
        clear(out)
    (out / "index.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match="is damaged; run the embed stage again"):
        clear(out)
    assert len(images(out)) == 4 and embed(source, prompts, out, atlas).reused == 4


def test_a_writer_at_the_same_time_loses_nothing(cohort, atlas, tmp_path):
    source, prompts, out, rows = cohort
    for number in range(3, 30):
        add_images(source, rows, f"{number:02d}", shape=(60, 64, 12))
    write_manifest(source, rows)
    embed(source, prompts, out, atlas)
    old = images(out)
    params = write_params(tmp_path, f"atlas:{model(tmp_path / 'model', seed=1)}")
    writer = command("--source", source, "--prompts", prompts, "--out", out, "--params", params)
    while writer.poll() is None and images(out) == old:
        pass
    assert writer.poll() is None, "the writer was done before the clearing began"
    cleared = clear(out)
    assert writer.wait(timeout=100) == 0
    assert cleared.removed == len(old) and not images(out) & old
    assert images(out) == set(read_index(out).file) and len(token_files(out)) == len(old)
    writer.communicate()


def test_clearing_keeps_waiting_until_the_lock_is_free(cohort, atlas):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, atlas)
    with lock(out):
        process = command("gc", "--embeddings", out)
        assert process.stdout.readline().startswith("another process writes here, waiting for it")
        assert process.poll() is None
    assert process.communicate(timeout=60)[0].startswith("removed 0 token files") and process.returncode == 0


def test_a_wrong_folder_is_said_so(tmp_path, capsys):
    nowhere = str(tmp_path / "nowhere")
    for words, code, said in ((["--embeddings", nowhere], 2, "is no folder"), (["--embeddings", str(tmp_path)], 1, "does not exist"),
                              (["--embeddings", str(tmp_path), "--source", nowhere], 2, "is no folder")):
        with pytest.raises(SystemExit) as end:
            run(app, ["gc", *words])
        assert end.value.code == code and said in capsys.readouterr().err
