"""A run with nothing to do loads nothing, and notices whatever makes it have something to do."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from embed_cohort import ROOT, add_case, contents, model, write_params, write_prompts

from pipelines.backbones import load_backbone
from pipelines.embed.cache import read_index
from pipelines.embed.deferred import Deferred, backbone_key, deferred
from pipelines.embed.folder import notes
from pipelines.embed.remembered import Remembered
from pipelines.embed.update import update
from pipelines.errors import DataError
from pipelines.params import Embed

LABELS = ["tumour"]
#: Runs the stage's command line, then says which of these took part.
TELL = """
import runpy, sys
try:
    runpy.run_module("pipelines.embed", run_name="__main__")
finally:
    print([name for name in ("torch", "pandas", "nibabel", "SimpleITK") if name in sys.modules])
"""


@pytest.fixture
def ready(cohort, tmp_path):
    """A cohort whose cache is made, with the settings it was made with."""
    source, prompts, out, rows = cohort
    chosen = Embed(backbone=f"atlas:{model(tmp_path / 'model')}")
    assert update(source, prompts, out, chosen, LABELS)["new"] == 4
    return source, prompts, out, rows, chosen


@pytest.fixture
def no_loading(monkeypatch):
    def refuse(_name):
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr("pipelines.embed.deferred.load_backbone", refuse)


def counts(done: dict) -> tuple[int, int, int]:
    return done["new"], done["reused"], done["new_texts"]


def test_nothing_new_loads_nothing_and_says_the_same(ready, no_loading):
    source, prompts, out, _, chosen = ready
    before = contents(out)
    done = update(source, prompts, out, chosen, LABELS)
    assert counts(done) == (0, 4, 0) and done["volumes_per_minute"] is None
    assert done["levels"] == {"fine": {"channels": 8, "stride": 2}, "coarse": {"channels": 8, "stride": 8}}
    assert contents(out) == before


def test_the_warm_command_imports_neither_torch_nor_pandas(cohort, tmp_path):
    source, prompts, out, _ = cohort
    params = write_params(tmp_path, f"atlas:{model(tmp_path / 'model')}")
    words = [sys.executable, "-c", TELL, "--source", source, "--prompts", prompts, "--out", out, "--params", params, "--metrics", tmp_path / "m.json"]
    said = [subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines() for _ in range(2)]
    assert said[0] == ["embedded 4 new, 0 reused; 2 new texts", "['torch', 'pandas', 'nibabel']"]
    assert said[1] == ["embedded 0 new, 4 reused; 0 new texts", "[]"]
    assert json.loads((tmp_path / "m.json").read_text())["reused"] == 4


def test_a_change_of_anything_is_noticed(ready, no_loading):
    """Work that needs no encoder is done without loading one."""
    source, prompts, out, _, chosen = ready
    assert list(update(source, prompts, out, chosen, ["other", "names"])["patch_ceiling"]["fine"]) == ["other", "names"]
    write_prompts(prompts, ["normal brain"])
    assert counts(update(source, prompts, out, chosen, LABELS)) == (0, 4, 0)
    assert json.loads((out / "text.json").read_text()) == ["normal brain"]
    (out / "index.parquet").unlink()
    assert counts(update(source, prompts, out, chosen, LABELS)) == (0, 4, 0)
    assert len(read_index(out)) == 4


def test_one_new_case_is_all_that_is_encoded(ready):
    source, prompts, out, rows, chosen = ready
    add_case(source, rows, "03", ("FLAIR",))
    assert counts(update(source, prompts, out, chosen, LABELS)) == (1, 4, 0)
    assert counts(update(source, prompts, out, chosen, LABELS)) == (0, 5, 0)


def test_a_file_altered_with_its_times_set_back_is_embedded_again(ready, capsys):
    source, prompts, out, _, chosen = ready
    good = contents(out)
    path = next((out / "images").iterdir())
    times, content = path.stat(), bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert counts(update(source, prompts, out, chosen, LABELS)) == (1, 3, 0)
    assert f"warning: {path} is damaged" in capsys.readouterr().err
    assert contents(out) == good


def test_weights_swapped_under_the_same_name_are_noticed(ready, tmp_path):
    source, prompts, out, _, chosen = ready
    first = set(read_index(out).fingerprint)
    model(tmp_path / "model", seed=1)
    assert counts(update(source, prompts, out, chosen, LABELS)) == (4, 0, 2)
    assert set(read_index(out).fingerprint) == {load_backbone(chosen.backbone).fingerprint} != first


def test_what_beneath_the_file_system_changed_is_found_on_request(ready, capsys):
    """A disk's silent error: the file's times say that nobody wrote to it."""
    source, prompts, out, _, chosen = ready
    path = next((out / "images").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    stat, kept = path.stat(), json.loads(notes(out).read_text())
    kept["files"][str(path)]["stat"] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
    notes(out).write_text(json.dumps(kept))
    assert counts(update(source, prompts, out, chosen, LABELS)) == (0, 4, 0)
    assert counts(update(source, prompts, out, chosen, LABELS, check_all=True)) == (1, 3, 0)


@pytest.mark.parametrize("damage", ["{", "[]", '{"files": {"a": 1}, "facts": {}}', '{"files": {}, "facts": {"run": 3}}', None])
def test_lost_or_damaged_notes_only_cost_time(ready, damage):
    source, prompts, out, _, chosen = ready
    if damage is None:
        notes(out).unlink()
    else:
        notes(out).write_text(damage)
    assert counts(update(source, prompts, out, chosen, LABELS)) == (0, 4, 0)


def test_what_was_refused_is_tried_again(ready):
    source, prompts, out, rows, chosen = ready
    add_case(source, rows, "03", ("FLAIR",))
    path = source / rows[-2]["path"]
    whole = path.read_bytes()
    path.write_bytes(b"half")
    assert update(source, prompts, out, chosen, LABELS)["refused"] == 1
    path.write_bytes(whole)
    assert counts(update(source, prompts, out, chosen, LABELS)) == (1, 4, 0)


def test_precision_of_params_is_part_of_the_key(ready):
    source, prompts, out, _, chosen = ready
    assert counts(update(source, prompts, out, chosen.model_copy(update={"precision": "int8"}), LABELS)) == (4, 0, 0)
    assert set(read_index(out).precision) == {"int8"}
    assert counts(update(source, prompts, out, chosen, LABELS)) == (0, 4, 0)


def test_a_deferred_backbone_is_the_backbone(tmp_path):
    name = f"atlas:{model(tmp_path / 'model')}"
    remembered = Remembered(tmp_path / "notes.json")
    key = backbone_key(name, remembered)
    loaded = deferred(name, key, remembered)
    known = deferred(name, key, remembered)
    assert isinstance(known, Deferred) and known._loaded is None
    assert (known.fingerprint, known.dim, known.levels) == (loaded.fingerprint, loaded.dim, loaded.levels)
    assert (known.encode_text(["a tumour"]) == loaded.encode_text(["a tumour"])).all() and known._loaded is not None
    sent = pickle.loads(pickle.dumps(deferred(name, key, remembered)))  # to a worker, which may not have the folder
    assert type(sent) is type(loaded) and sent.fingerprint == loaded.fingerprint


def test_weights_that_change_during_a_run_stop_it(tmp_path):
    name = f"atlas:{model(tmp_path / 'model')}"
    remembered = Remembered(tmp_path / "notes.json")
    key = backbone_key(name, remembered)
    deferred(name, key, remembered)
    known = deferred(name, key, remembered)
    model(tmp_path / "model", seed=1)
    with pytest.raises(DataError, match="changed while this run read them"):
        known.encode_text(["a tumour"])
    assert backbone_key(name, remembered) != key


def test_a_hub_id_has_no_files_to_go_by(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert backbone_key("transformers:openai/clip-vit-base-patch32", Remembered(Path("notes.json"))) is None
    assert backbone_key("transformers:", Remembered(Path("notes.json"))) is None
