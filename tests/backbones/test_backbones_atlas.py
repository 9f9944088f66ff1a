"""The embedded backbone: shapes, determinism, alignment with pixels, text that was never seen, and clear errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipelines.backbones import load_backbone
from pipelines.backbones.atlas import Atlas
from pipelines.backbones.atlas.config import AtlasConfig
from pipelines.backbones.atlas.evaluation import FOUND, find_pixels, name_pixels, probabilities
from pipelines.backbones.atlas.model import Towers, save_towers
from pipelines.errors import DataError, UsageError

SPACING = (5.0, 1.5, 1.5)
SMALL = AtlasConfig(widths=(16, 16, 24, 24), text_buckets=256, text_layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("atlas")
    save_towers(path, Towers(SMALL), SMALL)
    return path


@pytest.fixture(scope="module")
def atlas(folder) -> Atlas:
    return load_backbone(f"atlas:{folder}")


@settings(max_examples=8, deadline=None)
@given(slices=st.integers(1, 10), height=st.integers(1, 50), width=st.integers(1, 50))
def test_tokens_cover_any_image(atlas, slices, height, width):
    tokens = atlas.encode_image(np.zeros((slices, height, width), np.float32), SPACING)
    assert set(tokens) == set(atlas.levels)
    for name, (channels, stride) in atlas.levels.items():
        assert tokens[name].shape == (slices, channels, -(-height // stride), -(-width // stride))
        assert tokens[name].dtype == np.float16
        assert np.isfinite(tokens[name]).all()
    aligned = atlas.align(tokens)
    assert aligned.shape == (slices, -(-height // 2), -(-width // 2), atlas.dim)
    assert aligned.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(aligned, axis=-1), 1, atol=1e-5)


def test_tokens_fit_the_size_budget(atlas):
    assert sum(channels / stride**2 for channels, stride in atlas.levels.values()) <= 8


def test_the_same_image_and_text_give_the_same_numbers(folder, atlas):
    volume = np.random.default_rng(0).standard_normal((9, 40, 56)).astype(np.float32)
    again = Atlas.load(folder)
    for name, tokens in atlas.encode_image(volume, SPACING).items():
        np.testing.assert_array_equal(tokens, again.encode_image(volume, SPACING)[name])
    np.testing.assert_array_equal(atlas.encode_text(["oedema"]), again.encode_text(["oedema"]))


def test_a_slice_depends_on_its_two_neighbours_only(atlas):
    volume = np.random.default_rng(1).standard_normal((7, 32, 32)).astype(np.float32)
    whole, middle = atlas.encode_image(volume, SPACING)["fine"], atlas.encode_image(volume[2:5], SPACING)["fine"]
    np.testing.assert_allclose(whole[3], middle[1], atol=2e-3)
    assert np.abs(whole[2] - middle[0]).max() > 0.01  # here the slice stands in for the one before it
    alone = atlas.encode_image(volume[2:3], SPACING)["fine"]
    np.testing.assert_allclose(atlas.encode_image(volume[[2, 2, 2]], SPACING)["fine"][1], alone[0], atol=2e-3)


def test_a_token_sits_on_its_pixels(atlas):
    """An image moved by whole deepest strides moves its tokens by as much: what a token says belongs to the pixels it covers."""
    rng = np.random.default_rng(2)
    blob = np.zeros((1, 128, 128), np.float32)
    blob[:, 40:60, 40:64] = rng.standard_normal((20, 24))
    moved = np.roll(blob, (16, 32), axis=(1, 2))
    for name, (_, stride) in atlas.levels.items():
        a, b = (atlas.encode_image(image, SPACING)[name].astype(np.float32) for image in (blob, moved))
        expected = np.roll(a, (16 // stride, 32 // stride), axis=(2, 3))
        inner = (slice(None), slice(None), slice(48 // stride, 88 // stride), slice(64 // stride, 104 // stride))
        error = np.abs(b[inner] - expected[inner]).mean() / np.abs(a - a.mean(axis=(2, 3), keepdims=True)).mean()
        assert error < 0.2, name
    change = np.abs(atlas.encode_image(blob, SPACING)["fine"].astype(np.float32) - atlas.encode_image(0 * blob, SPACING)["fine"].astype(np.float32))
    row, column = np.unravel_index(change.sum(1)[0].argmax(), change.shape[-2:])
    assert 18 <= row <= 31 and 18 <= column <= 33


def test_text_vectors(atlas):
    texts = ["oedema on FLAIR", "", "Ödem ☃", "a " * 100]
    vectors = atlas.encode_text(texts)
    assert vectors.shape == (4, atlas.dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(atlas.encode_text(texts[:1])[0], vectors[0], atol=1e-5)  # whatever stands beside it
    assert atlas.encode_text([]).shape == (0, atlas.dim)


def test_a_model_taught_without_text_has_class_vectors_and_no_words(tmp_path):
    config = SMALL.model_copy(update={"classes": 5})
    save_towers(tmp_path, Towers(config), config)
    control = Atlas.load(tmp_path)
    assert control.class_vectors().shape == (5, control.dim)
    with pytest.raises(DataError, match="without text"):
        control.encode_text(["oedema"])


def test_naming_and_finding_agree_with_the_probabilities(atlas):
    volume = np.random.default_rng(3).standard_normal((2, 33, 40)).astype(np.float32)
    classes = {"a": ["white matter", "white matter on T1"], "b": ["glioma"], "c": ["air"]}
    chance = probabilities(atlas, volume, SPACING, classes)
    assert chance.shape == (2, 3, 33, 40)
    np.testing.assert_allclose(chance.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(name_pixels(atlas, volume, SPACING, classes), chance.argmax(1))
    np.testing.assert_array_equal(find_pixels(atlas, volume, SPACING, classes, "b"), chance[:, 1] > FOUND)


def test_fingerprint_follows_weights_config_and_code(folder, tmp_path, atlas, monkeypatch):
    assert Atlas.load(folder).fingerprint == atlas.fingerprint
    tensors = load_file(folder / "weights.safetensors")
    tensors["log_scale"] = tensors["log_scale"] + 0.5
    save_file(tensors, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert Atlas.load(tmp_path).fingerprint != atlas.fingerprint
    monkeypatch.setattr("pipelines.backbones.atlas.model.CODE_VERSION", "other")
    assert Atlas.load(folder).fingerprint != atlas.fingerprint


def test_missing_weights_say_how_to_get_them(tmp_path):
    with pytest.raises(DataError, match=r"weights\.safetensors does not exist; .*pretrain --out"):
        load_backbone(f"atlas:{tmp_path}")


def test_damaged_weights_and_config_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged or does not fit"):
        Atlas.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(SMALL.model_dump() | {"fine": 23}))
    with pytest.raises(DataError, match="does not fit"):
        Atlas.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="is no Atlas config"):
        Atlas.load(tmp_path)


def test_an_unknown_adapter_is_refused():
    with pytest.raises(UsageError, match=r"nonsense:x.*knows 'atlas:"):
        load_backbone("nonsense:x")


def test_precision_is_part_of_the_fingerprint_and_changes_little(folder, atlas):
    full, half = (Atlas(atlas.towers, atlas.config, "same", precision) for precision in (torch.float32, torch.bfloat16))
    assert full.fingerprint != half.fingerprint
    assert half.computing_as(full.fingerprint).precision == torch.float32
    assert half.computing_as("none of them") is half
    volume = np.random.default_rng(0).normal(size=(3, 48, 40)).astype(np.float32)
    for name, tokens in full.encode_image(volume, SPACING).items():
        change = np.abs(tokens.astype(np.float32) - half.encode_image(volume, SPACING)[name])
        assert 0 < change.mean() < 0.03 * np.abs(tokens.astype(np.float32)).mean()


def test_another_tower_gives_other_tokens_and_another_fingerprint(atlas):
    tower = atlas.image_tower()
    with torch.no_grad():
        tower.fine[-1].bias += 1
    other, volume = atlas.with_image_tower(tower), np.ones((2, 32, 32), np.float32)
    assert other.fingerprint != atlas.fingerprint
    change = other.encode_image(volume, SPACING)["fine"].astype(np.float32) - atlas.encode_image(volume, SPACING)["fine"]
    np.testing.assert_allclose(change, 1, atol=0.02)
