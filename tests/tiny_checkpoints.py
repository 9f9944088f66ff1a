"""Small random checkpoints of published models' real classes, as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from pipelines.backbones.hub.dense import STRIDE

SPACING = (5.0, 1.5, 1.5)
FAMILIES = ("clip", "siglip", "siglip2")
#: Width 32, heads of 16: every level of it fits the budget whole. The native grid is 4 x 4 patches.
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
GRID, LENGTH = 4, 12
TEXTS = ["oedema on FLAIR", "normal brain", "T1"]
WORDS = ["a", "brain", "flair", "image", "normal", "oedema", "on", "showing", "t1", "of", "core", "healthy", "outside"]


def build(folder: Path, family: str, patch: int = STRIDE, seed: int = 0) -> Path:
    """A checkpoint as the hub has them: weights, configuration, preprocessing, tokenizer."""
    from transformers import CLIPConfig, CLIPModel, Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

    torch.manual_seed(seed)
    text = SIZES | {"vocab_size": 40, "max_position_embeddings": LENGTH, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    vision = SIZES | {"patch_size": patch}
    size = {"num_patches": GRID**2} if family == "siglip2" else {"image_size": GRID * patch}
    if family == "clip":
        config, kind = CLIPConfig(text_config=text, vision_config=vision | size, projection_dim=24), CLIPModel
    else:
        config_class, kind = {"siglip": (SiglipConfig, SiglipModel), "siglip2": (Siglip2Config, Siglip2Model)}[family]
        config = config_class(text_config=text, vision_config=vision | size)
    model = kind(config)
    for parameter in model.parameters():  # biases, norms and probes too, so that leaving one out shows
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "resample": 3,
        "rescale_factor": 1 / 255, "size": {"height": GRID * patch, "width": GRID * patch}}))
    return folder


def tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<unk>", "</s>"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", eos_token="</s>")


def volume(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
