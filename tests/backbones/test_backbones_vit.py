"""The small vision transformer: what it is trained on, a killed run goes on to the same weights, and what other checkpoints and cases become."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cohort import tiny_case
from torch.nn import functional

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.pretrain import anatomy_of
from pipelines.backbones.vit import load_vit
from pipelines.backbones.vit.config import VitConfig
from pipelines.backbones.vit.frames import box_of, slices_of
from pipelines.backbones.vit.load import save_vit
from pipelines.backbones.vit.model import Vit
from pipelines.backbones.vit.pretrain import pretrain_on
from pipelines.backbones.vit.training import LEVELS, PARTS_ACROSS, Recipe, batch, coarser, levels_of, turned
from pipelines.errors import UsageError
from pipelines.outputs import sha256

ROOT = Path(__file__).parents[2]
TINY = VitConfig(stem="convolutions", size=32, patch=8, dim=24, depth=2, heads=3)
RECIPE = Recipe(seed=3, heads=1, slabs=2, pool=3, warm_up=2)


@pytest.fixture(scope="module")
def volumes() -> np.ndarray:
    """Nested balls, the second with a lesion."""
    grid = np.indices((96, 110, 90)) - np.array([48, 55, 45])[:, None, None, None]
    radius = np.sqrt((grid**2).sum(0))
    head = np.zeros(radius.shape, np.uint8)
    for reach, label in ((42, c.SCALP), (38, c.SKULL), (34, c.CSF), (32, c.GREY), (27, c.WHITE), (8, c.VENTRICLE)):
        head[radius < reach] = label
    lesion = head.copy()
    lesion[np.sqrt(((grid - np.array([12, 0, 5])[:, None, None, None]) ** 2).sum(0)) < 9] = c.OEDEMA
    return np.stack([head, lesion])


def test_a_batch_tells_the_labels_of_patches_and_parts_however_it_is_laid(volumes):
    made = batch(anatomy_of(coarser(volumes)), RECIPE, TINY, 0)
    assert made.slices.shape == (4, 32, 32)
    assert made.patches.shape == (4, 16, c.LABELS)
    assert made.parts.shape == (4, PARTS_ACROSS**2, c.LABELS)
    assert made.levels.shape == (4, PARTS_ACROSS**2, LEVELS)
    torch.testing.assert_close(made.patches.sum(-1), torch.ones(4, 16))
    noise = torch.randn(4, 32, 32)
    pooled = functional.avg_pool2d(noise[:, None], 8).flatten(2).transpose(1, 2)
    for way in range(8):
        laid = turned(replace(made, slices=noise, patches=pooled, parts=pooled, levels=levels_of(noise)), way)
        torch.testing.assert_close(functional.avg_pool2d(laid.slices[:, None], 8).flatten(2).transpose(1, 2), laid.patches)
        torch.testing.assert_close(levels_of(laid.slices), laid.levels)


def test_the_levels_of_a_part_are_its_mean_and_extremes():
    slices = torch.zeros(1, 32, 32)
    slices[:, :4, 28:] = 3.0  # all of one smoothed pixel in the last part of the first row
    assert levels_of(slices)[0, 3].tolist() == [0.75, 3.0, 0.0]
    assert levels_of(slices)[0, 0].tolist() == [0.0, 0.0, 0.0]


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(volumes, tmp_path, monkeypatch):
    pretrain_on(volumes, tmp_path / "whole", RECIPE, TINY, 6)
    curve = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert curve["steps"] == 6
    monkeypatch.setattr("pipelines.backbones.vit.pretrain.CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr("pipelines.backbones.vit.pretrain.EVERY", 4)
    monkeypatch.setattr("pipelines.backbones.vit.pretrain._say", killed_at("step 4"))
    with pytest.raises(KeyboardInterrupt):
        pretrain_on(volumes, tmp_path / "again", RECIPE, TINY, 6)
    assert not (tmp_path / "again").exists()
    said = []
    monkeypatch.setattr("pipelines.backbones.vit.pretrain._say", said.append)
    pretrain_on(volumes, tmp_path / "again", RECIPE, TINY, 6)
    assert said[0] == "step 3 of 6"
    assert sha256(tmp_path / "again" / "weights.safetensors") == sha256(tmp_path / "whole" / "weights.safetensors")
    assert load_vit(f"vit:{tmp_path / 'whole'}").embed(torch.zeros(1, 32, 32)).shape == (1, 17, 24)


def test_a_run_may_go_on_from_the_weights_of_a_finished_one(volumes, tmp_path):
    pretrain_on(volumes, tmp_path / "first", RECIPE, TINY, 2)
    pretrain_on(volumes, tmp_path / "second", replace(RECIPE, rate=0.0), TINY, 1, start=tmp_path / "first")
    assert sha256(tmp_path / "second" / "weights.safetensors") == sha256(tmp_path / "first" / "weights.safetensors")
    facts = json.loads((tmp_path / "second" / "metrics.json").read_text())
    assert facts["start"] == load_vit(f"vit:{tmp_path / 'first'}").fingerprint
    with pytest.raises(UsageError, match="another shape"):
        pretrain_on(volumes, tmp_path / "third", RECIPE, TINY.model_copy(update={"depth": 3}), 1, start=tmp_path / "first")


def killed_at(words: str):
    def say(line: str) -> None:
        if line.startswith(words):
            raise KeyboardInterrupt
    return say


def test_the_shipped_one_is_small_and_loads_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    vit = load_vit("vit:models/vit")
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(path.stat().st_size for path in (ROOT / "models" / "vit").iterdir()) < 2e6
    assert vit(vit.embed(torch.zeros(1, vit.size, vit.size))).shape == (1, 65, vit.dim)
    assert not any(part.requires_grad for part in vit.parameters())


def test_a_published_checkpoint_is_read_through_transformers(tmp_path):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8)
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    vit, slices = load_vit(f"transformers:{tmp_path}"), torch.randn(2, 32, 32)
    assert (vit.size, vit.dim) == (32, 24)
    torch.testing.assert_close(vit(vit.embed(slices)), model((slices / 2)[:, None].expand(-1, 3, -1, -1)).last_hidden_state)
    assert vit(vit.embed(slices), torch.zeros(2, 1, 24)).shape == (2, 18, 24)


def test_what_is_no_transformer_is_said(tmp_path):
    with pytest.raises(UsageError, match="is not known"):
        load_vit("resnet:models/vit")
    with pytest.raises(UsageError, match=r"has no config\.json"):
        load_vit(f"vit:{tmp_path}")


def test_weights_read_back(tmp_path):
    vit = Vit(TINY)
    save_vit(tmp_path, vit, TINY)
    again = load_vit(f"vit:{tmp_path}")
    torch.testing.assert_close(again.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight.half().float())


def test_slices_are_evenly_over_the_head_which_fills_the_frame():
    case = tiny_case(1)
    low = np.zeros(case.brain.shape, np.uint8)
    low[:4] = case.brain[:4]
    marked = replace(case, brain=low, images={"T1w": np.broadcast_to(np.arange(7.0, dtype=np.float32)[:, None, None], low.shape).copy()})
    seen = slices_of(marked, "T1w", 2, 24)
    assert seen.shape == (2, 24, 24)
    assert seen[:, 12, 12].tolist() == [1, 3]
    framed = slices_of(replace(case, images={"T1w": case.brain.astype(np.float32)}), "T1w", 1, 48)[0] > 0.5
    (centre,), (half,) = box_of(framed[None])
    assert 21 < half[0] <= 24  # the longer side reaches the margin
    assert half[1] < half[0]
    assert (centre - 23.5).abs().max() <= 1
