"""open_clip checkpoints: the refusals always, the numbers where the optional extra is installed (no build of torchvision fits the locked torch)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from pipelines.backbones import load_backbone
from pipelines.backbones.hub import openclip
from pipelines.backbones.hub.dense import STRIDE
from pipelines.errors import DataError, UsageError

SPACING = (5.0, 1.5, 1.5)
NATIVE = {"embed_dim": 24, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 32},
          "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}}
TIMM = NATIVE | {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
                                "image_size": 224}}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Where the library's own numbers are computed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def open_clip():
    try:
        import open_clip
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"open_clip cannot be imported ({str(error)[:60]})")
    return open_clip


def build(open_clip, folder: Path, config: dict):
    """A random checkpoint as open_clip writes it, and the library's own model of it."""
    (folder / openclip.CONFIG).write_text(json.dumps({
        "model_cfg": config, "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    save_file({name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}, folder / openclip.WEIGHTS)
    return model


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UsageError, match=r"extra package open_clip_torch and a torchvision built for torch .*; pip install open_clip_torch"):
        load_backbone(f"open_clip:{tmp_path}")


def test_nothing_of_a_text_tower_is_fetched(tmp_path):
    config = {"text_cfg": {"hf_model_name": "acme/bert", "context_length": 256}}
    with pytest.raises(UsageError, match=rf"hf download acme/bert config\.json --local-dir {tmp_path}"):
        openclip._local_text(config, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    text = openclip._local_text(config, tmp_path)["text_cfg"]
    assert text == {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "context_length": 256}
    assert openclip._local_text({"text_cfg": {"width": 32}}, tmp_path) == {}


def test_incomplete_folders_are_refused(open_clip, tmp_path):
    with pytest.raises(DataError, match=r"open_clip_config\.json does not exist"):
        load_backbone(f"open_clip:{tmp_path}")
    (tmp_path / openclip.CONFIG).write_text("{}")
    with pytest.raises(DataError, match="has no model_cfg"):
        load_backbone(f"open_clip:{tmp_path}")
    (tmp_path / openclip.CONFIG).write_text(json.dumps({"model_cfg": NATIVE}))
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"open_clip_pytorch_model\.bin is a pickle.*open_clip_model\.safetensors"):
        load_backbone(f"open_clip:{tmp_path}")
    (tmp_path / openclip.WEIGHTS).write_bytes(b"")
    with pytest.raises(DataError, match="damaged or do not fit"):
        load_backbone(f"open_clip:{tmp_path}")
    build(open_clip, tmp_path, NATIVE | {"vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear", "image_size": 64}})
    with pytest.raises(UsageError, match=r"ResNet.* is no plain vision transformer"):
        load_backbone(f"open_clip:{tmp_path}")


@pytest.mark.parametrize("config", [NATIVE, TIMM], ids=["native", "timm"])
def test_tokens_and_text_are_the_librarys(open_clip, tmp_path, capsys, config):
    model = build(open_clip, tmp_path, config)
    backbone = openclip.load(str(tmp_path), torch.float32)
    tokens = backbone.encode_image(np.random.default_rng(0).standard_normal((2, 21, 30)).astype(np.float32), SPACING)
    for name, (channels, stride) in backbone.levels.items():
        assert tokens[name].shape == (2, channels, -(-21 // stride), -(-30 // stride))
    assert backbone.align(tokens).shape == (2, -(-21 // STRIDE), -(-30 // STRIDE), 24)
    size, tower = model.visual.image_size[0], backbone.tower
    image = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        theirs = model.visual.forward_intermediates(image, indices=[number - 1 for number in backbone.blocks])["image_intermediates"]
        for number, ours, states in zip(backbone.blocks, tower.dense(image, backbone.blocks)[0], theirs, strict=True):
            torch.testing.assert_close(ours, tower.norm_after(number)(states.movedim(1, -1)).movedim(-1, 1))
        before, last = torch.randn(1, 9, tower.width), tower.layers[-1]
        alone = torch.where(torch.eye(9).bool(), 0, -torch.inf)
        if config is NATIVE:
            expected = model.visual.ln_post(last.attention(last.ln_1(before), attn_mask=alone)) @ model.visual.proj
        else:
            expected = model.visual.head(model.visual.trunk.norm(last.attn(last.norm1(before), attn_mask=alone[None, None])))
        torch.testing.assert_close(tower.in_text_space(before, None), expected)
        features = model.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["oedema", "normal brain"]))
        np.testing.assert_allclose(backbone.encode_text(["oedema", "normal brain"]), functional.normalize(features, dim=-1), atol=1e-5)
    assert capsys.readouterr().err == ""
    backbone.encode_text(["brain " * 40, "brain"])
    assert "1 of 2 texts are longer than the 12 tokens" in capsys.readouterr().err
