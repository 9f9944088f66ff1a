"""What tokens depend on, how they are stored and read, and what a run says about itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from embed_cohort import ROOT, SHAPE, add_case, add_images, contents, model, write_params, write_prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file

from pipelines.backbones.atlas import Atlas
from pipelines.cli import run
from pipelines.cohort import cases_of, read_quarantine, write_manifest
from pipelines.embed.__main__ import app
from pipelines.embed.cache import read_index, token_files
from pipelines.embed.precision import SCALE, pack, unpack
from pipelines.embed.stage import embed
from pipelines.errors import DataError, UsageError


class Counting:
    """A backbone that counts the images it encodes."""

    def __init__(self, backbone: Atlas) -> None:
        self.backbone, self.images = backbone, 0

    def __getattr__(self, name: str):
        return getattr(self.backbone, name)

    def encode_image(self, volume, spacing_mm):
        self.images += 1
        return self.backbone.encode_image(volume, spacing_mm)


def test_one_new_case_in_a_hundred_costs_one_case(cohort, atlas):
    source, prompts, out, rows = cohort
    for number in range(3, 101):
        add_images(source, rows, f"{number:03d}", ("FLAIR",))
    write_manifest(source, rows)
    assert embed(source, prompts, out, atlas).new == 102
    add_case(source, rows, "101", ("FLAIR",))
    counting = Counting(atlas)
    outcome = embed(source, prompts, out, counting)
    assert (counting.images, outcome.new, outcome.reused) == (1, 1, 102)


def test_another_slice_axis_is_another_image(cohort, atlas):
    source, prompts, out, rows = cohort
    embed(source, prompts, out, atlas)
    write_manifest(source, [row | {"slice_axis": 0} for row in rows])
    assert embed(source, prompts, out, atlas).new == 4
    assert {tokens["fine"].shape[0] for tokens in token_files(out).values()} == {SHAPE[0]}
    twice = next(row for row in rows if row["kind"] == "image") | {"path": "again.nii.gz", "slice_axis": 0}
    write_manifest(source, [*rows, twice])
    with pytest.raises(DataError, match="one image with two slice axes"):
        embed(source, prompts, out, atlas)


def test_eight_bits_take_half_the_space_and_lose_half_a_step(cohort, atlas, tmp_path):
    source, prompts, out, _ = cohort
    full = embed(source, prompts, out, atlas)
    half = embed(source, prompts, out, atlas, precision="int8")
    assert half.new == 4 and half.bytes < 0.6 * full.bytes
    assert set(read_index(out).precision) == {"int8"}
    for case in cases_of(source, token_files(out)):
        for name, tokens in atlas.encode_image(case.image("FLAIR"), case.spacing_mm).items():
            got, step = case.token_levels("FLAIR")[name], np.abs(tokens).max(axis=(0, 2, 3), keepdims=True).astype(np.float32) / 127
            assert got.dtype == np.float16 and (np.abs(got.astype(np.float32) - tokens) <= 0.5 * step + np.abs(tokens) * 2**-10).all()
            assert not np.array_equal(got, tokens)
    assert embed(source, prompts, out, atlas).reused == 4  # and never one for the other
    with pytest.raises(UsageError, match="precision of tokens is 'int4'"):
        embed(source, prompts, tmp_path / "other", atlas, precision="int4")


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float16, arrays.array_shapes(min_dims=4, max_dims=4, max_side=4), elements=st.floats(-6e4, 6e4, width=16)))
def test_packing_is_within_half_a_step_and_keeps_zeros(values):
    packed = pack({"level": values}, "int8")
    got = unpack(packed["level"], packed["level" + SCALE]).astype(np.float32)
    step = np.abs(values).max(axis=(0, 2, 3), keepdims=True).astype(np.float32) / 127
    assert (np.abs(got - values) <= 0.5 * step + np.abs(got) * 2**-10 + 2**-24).all()
    assert (got[values == 0] == 0).all()
    np.testing.assert_array_equal(pack({"level": values}, "float16")["level"], values)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_slices_are_read_alone(cohort, atlas, precision):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, atlas, precision=precision)
    tokens = next(iter(token_files(out).values()))
    some = tokens.slices([2, 0, -1])
    assert set(some) == set(tokens) == {"fine", "coarse"} and len(tokens) == 2
    for name in tokens:
        np.testing.assert_array_equal(some[name], tokens[name][[2, 0, -1]])
    with pytest.raises(KeyError):
        tokens["no level"]
    with pytest.raises(IndexError):
        tokens.slices([SHAPE[2]])
    tokens.path.write_bytes(b"half")
    with pytest.raises(DataError, match="gone or damaged; run the embed stage again"):
        tokens["fine"]


def test_texts_and_vectors_of_two_runs_are_never_mixed(cohort, atlas):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, atlas)
    names = (out / "text.json").read_bytes()
    write_prompts(prompts, ["another text", "oedema on FLAIR"])
    embed(source, prompts, out, atlas)
    (out / "text.json").write_bytes(names)  # as if killed between the two files
    write_prompts(prompts, ["normal brain", "oedema on FLAIR"])
    assert embed(source, prompts, out, atlas).new_texts == 2
    np.testing.assert_array_equal(load_file(out / "text.safetensors")["embeddings"], atlas.encode_text(["normal brain", "oedema on FLAIR"]))


def test_tokens_that_are_no_numbers_go_to_quarantine(cohort, atlas):
    source, prompts, out, rows = cohort
    add_case(source, rows, "03", ("FLAIR",), scale=float("nan"))
    outcome = embed(source, prompts, out, atlas)
    assert (outcome.new, outcome.refused) == (4, 1)
    assert read_quarantine(out)[["subject", "code"]].values.tolist() == [["03", "not-finite"]]


def test_more_tokens_than_the_budget_are_warned_of(cohort, tmp_path, capsys):
    source, prompts, out, _ = cohort
    wide = Atlas.load(model(tmp_path / "model", fine=32, coarse=32))
    embed(source, prompts, out, wide)
    assert "warning: tokens take 8.7 times the float16 voxels of the images, the budget is 8; precision int8 halves that" in capsys.readouterr().err
    embed(source, prompts, out, wide, precision="int8")
    assert "warning" not in capsys.readouterr().err


def test_the_shipped_backbone_keeps_the_budget():
    shipped = Atlas.load(ROOT / "models" / "atlas")
    assert sum(channels / stride**2 for channels, stride in shipped.levels.values()) == 7


def test_metrics_lie_outside_the_cache_and_have_its_size(cohort, tmp_path):
    source, prompts, out, _ = cohort
    params = write_params(tmp_path, f"atlas:{model(tmp_path / 'model')}")
    words = {"--source": source, "--prompts": prompts, "--out": out, "--params": params, "--metrics": tmp_path / "metrics.json"}
    found, stored = [], []
    for _ in range(2):
        with pytest.raises(SystemExit, match="0"):
            run(app, [str(word) for pair in words.items() for word in pair])
        found.append(json.loads((tmp_path / "metrics.json").read_text()))
        stored.append(contents(out))
    assert stored[0] == stored[1]
    for name in ("volumes_per_minute", "tokens_per_second"):
        assert found[0].pop(name) > 0 and found[1].pop(name) is None
    backbone = {name: [metrics.pop(name) for metrics in found] for name in ("backbone", "fingerprint", "precision", "levels", "patch_ceiling")}
    assert all(first == second for first, second in backbone.values())
    assert backbone["levels"][0] == {"fine": {"channels": 8, "stride": 2}, "coarse": {"channels": 8, "stride": 8}}
    assert backbone["fingerprint"][0] == read_index(out).fingerprint[0] and set(backbone["patch_ceiling"][0]) == {"fine", "coarse"}
    size, voxels = read_index(out).bytes.sum(), 4 * np.prod(SHAPE)
    same = {"refused": 0, "megabytes": round(size / 1e6, 3), "bytes_per_voxel": round(size / voxels, 3),
            "times_float16_voxels": round(size / voxels / 2, 3)}
    assert found == [same | {"new": 4, "reused": 0, "new_texts": 2}, same | {"new": 0, "reused": 4, "new_texts": 0}]
