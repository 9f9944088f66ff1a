"""The embedding cache: what is kept, what is computed again, and what a killed or careless writer leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from embed_cohort import ROOT, add_case, contents, model, write_params, write_prompts
from safetensors.numpy import load_file

from pipelines.backbones.atlas import Atlas
from pipelines.cli import run
from pipelines.cohort import cases_of, read_manifest, read_quarantine, write_manifest
from pipelines.embed.__main__ import app
from pipelines.embed.cache import read_index, token_files
from pipelines.embed.folder import INDEX
from pipelines.embed.stage import embed
from pipelines.errors import DataError
from pipelines.outputs import sha256
from pipelines.prompts.bank import PromptBank


def test_one_new_case_costs_one_case(cohort, atlas):
    source, prompts, out, rows = cohort
    first = embed(source, prompts, out, atlas)
    assert (first.new, first.reused, first.new_texts) == (4, 0, 2)
    before = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert (embed(source, prompts, out, atlas).new, len(before)) == (0, 4)
    add_case(source, rows, "03", ("FLAIR",))
    again = embed(source, prompts, out, atlas)
    assert (again.new, again.reused, again.new_texts) == (1, 4, 0)
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    index = read_index(out)
    assert len(index) == 5 and set(index.fingerprint) == {atlas.fingerprint}
    assert (index.bytes == [(out / file).stat().st_size for file in index.file]).all()


def test_cases_find_their_tokens_and_prompts_their_vectors(cohort, atlas):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, atlas, jobs=2)
    cases = cases_of(source, token_files(out))
    assert [case.id for case in cases] == ["sub-01", "sub-02"]
    for case in cases:
        for modality in ("FLAIR", "T1w"):
            for name, tokens in atlas.encode_image(case.image(modality), case.spacing_mm).items():
                np.testing.assert_array_equal(case.token_levels(modality)[name], tokens)
    bank = PromptBank.load(prompts, out)
    assert set(bank.vectors) == set(bank.texts())
    np.testing.assert_allclose(bank.vectors["normal brain"], atlas.encode_text(["normal brain"])[0], atol=1e-6)


def test_equal_inputs_make_equal_bytes_whatever_the_jobs(cohort, atlas, tmp_path):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, atlas, jobs=1)
    embed(source, prompts, tmp_path / "other", atlas, jobs=2)
    assert contents(out) == contents(tmp_path / "other")


@pytest.mark.parametrize("damage", ["truncate", "flip", "swap", "empty"])
def test_a_damaged_file_is_embedded_again(cohort, atlas, capsys, damage):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, atlas)
    good = contents(out)
    path, other = sorted((out / "images").iterdir())[:2]
    content = path.read_bytes()
    path.write_bytes({"truncate": content[:-9], "flip": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], "swap": other.read_bytes(),
                      "empty": b""}[damage])
    outcome = embed(source, prompts, out, atlas)
    assert (outcome.new, outcome.reused) == (1, 3)
    assert f"warning: {path} is damaged" in capsys.readouterr().err
    assert contents(out) == good


def test_another_backbone_never_meets_old_tokens(cohort, atlas, tmp_path):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, atlas)
    other = Atlas.load(model(tmp_path / "model", seed=1))
    outcome = embed(source, prompts, out, other)
    assert (outcome.new, outcome.reused, outcome.new_texts) == (4, 0, 2)
    assert set(read_index(out).fingerprint) == {other.fingerprint}
    assert len(list((out / "images").iterdir())) == 8
    assert embed(source, prompts, out, atlas).reused == 4  # and back, at no cost


def test_text_of_the_prompts_is_kept_in_step(cohort, atlas):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, atlas)
    write_prompts(prompts, ["normal brain", "a new text"])
    assert embed(source, prompts, out, atlas).new_texts == 1
    assert json.loads((out / "text.json").read_text()) == ["a new text", "normal brain"]
    (out / "text.safetensors").write_bytes(b"broken")
    assert embed(source, prompts, out, atlas).new_texts == 2
    assert load_file(out / "text.safetensors")["embeddings"].shape == (2, atlas.dim)


def test_an_unreadable_image_goes_to_quarantine(cohort, atlas):
    source, prompts, out, rows = cohort
    row = next(row for row in rows if row["modality"] == "T1w")
    (source / row["path"]).write_bytes(b"no image")
    outcome = embed(source, prompts, out, atlas)
    assert (outcome.new, outcome.refused) == (3, 1)
    assert read_quarantine(out).code.tolist() == ["changed"]
    row["sha256"] = sha256(source / row["path"])
    write_manifest(source, rows)
    embed(source, prompts, out, atlas)
    assert read_quarantine(out).code.tolist() == ["unreadable"]
    assert row["sha256"] not in token_files(out)


def test_nothing_usable_is_an_error(cohort, atlas):
    source, prompts, out, rows = cohort
    for row in rows:
        (source / row["path"]).unlink()
    with pytest.raises(DataError, match="none of the 4 images"):
        embed(source, prompts, out, atlas)
    write_manifest(source, [row for row in rows if row["kind"] == "mask"])
    with pytest.raises(DataError, match="lists no image"):
        embed(source, prompts, out, atlas)


def test_missing_pieces_are_named(cohort, atlas, tmp_path):
    source, prompts, out, _ = cohort
    with pytest.raises(DataError, match=r"prompts\.json does not exist; run the prompts stage"):
        embed(source, tmp_path, out, atlas)
    (prompts / "prompts.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="no prompt bank"):
        embed(source, prompts, out, atlas)
    with pytest.raises(DataError, match=r"index\.parquet does not exist; run the embed stage"):
        token_files(out)
    write_prompts(prompts, ["oedema"])
    embed(source, prompts, out, atlas)
    next((out / "images").iterdir()).unlink()
    with pytest.raises(DataError, match="1 of 4 token files"):
        token_files(out)


def test_the_command_and_its_errors(cohort, tmp_path, capsys):
    source, prompts, out, _ = cohort
    good = {"--source": source, "--prompts": prompts, "--out": out, "--params": write_params(tmp_path, f"atlas:{model(tmp_path / 'model')}")}
    (tmp_path / "clip").mkdir()

    def status_of(**changed: object) -> tuple[int, str]:
        arguments = good | {f"--{name}": value for name, value in changed.items()}
        with pytest.raises(SystemExit) as end:
            run(app, [str(word) for pair in arguments.items() for word in pair])
        said = capsys.readouterr()
        return end.value.code, said.out + said.err

    assert status_of() == (0, "embedded 4 new, 0 reused; 2 new texts\n")
    for changed, code, words in (
        ({"source": tmp_path / "nowhere"}, 2, "nowhere is no folder; give the one that the resample stage wrote"),
        ({"params": write_params(tmp_path / "clip", "clip:x")}, 2, "embed.backbone is 'clip:x'"),
        ({"params": write_params(tmp_path / "model", f"atlas:{tmp_path}")}, 1, "weights.safetensors does not exist"),
        ({"source": prompts}, 1, "manifest.tsv does not exist"),
        ({"sauce": prompts}, 2, "--sauce"),
    ):
        status, said = status_of(**changed)
        assert status == code and words in said and "Traceback" not in said, said


def test_a_killed_run_resumes_and_ends_the_same(cohort, atlas, tmp_path):
    source, prompts, out, rows = cohort
    for number in range(3, 40):
        add_case(source, rows, f"{number:02d}")
    params = write_params(tmp_path, f"atlas:{model(tmp_path / 'model')}")
    arguments = [str(word) for word in ("--source", source, "--prompts", prompts, "--out", out, "--params", params)]
    process = subprocess.Popen([sys.executable, "-m", "pipelines.embed", *arguments], cwd=ROOT)
    while process.poll() is None and not list((out / "images").glob("[0-9a-f]*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (out / "images" / ".12345.begun.safetensors").write_bytes(b"half")
    assert not (out / INDEX).exists(), "killed too late to show anything"
    outcome = embed(source, prompts, out, atlas)
    assert outcome.reused >= 1 and outcome.new + outcome.reused == 2 * 39
    embed(source, prompts, tmp_path / "whole", atlas)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_full_disk_is_said_so(cohort, atlas, monkeypatch):
    source, prompts, out, _ = cohort

    def full(*_args, **_kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pipelines.embed.cache.save_file", full)
    with pytest.raises(DataError, match=r"No space left on device.*what is finished is kept"):
        embed(source, prompts, out, atlas)
    monkeypatch.undo()
    assert embed(source, prompts, out, atlas).new == len(read_manifest(source).query("kind == 'image'"))
    shutil.rmtree(out)
