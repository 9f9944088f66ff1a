"""`open_clip:<folder>`: BiomedCLIP and other checkpoints of open_clip, an optional extra that the locked environment does not hold.

open_clip imports torchvision, of which no build fits the locked torch, so it is only imported here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional

from pipelines.backbones.hub import checkpoint
from pipelines.backbones.hub.dense import DenseBackbone, device
from pipelines.backbones.hub.pixels import Preprocessing
from pipelines.backbones.hub.vision import BlockTower, values_of
from pipelines.errors import DataError, UsageError

ADAPTER = "open_clip"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
#: open_clip names resampling, a preprocessor file numbers it.
RESAMPLING = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def load(where: str, precision: torch.dtype | None = None) -> DenseBackbone:
    """The model in the folder `where`: open_clip_config.json, open_clip_model.safetensors and the tokenizer's files.

    Raises UsageError where open_clip, the folder or a part of it that can be fetched is missing, or the tower is no plain vision transformer;
    DataError where files are damaged or do not fit together.
    """
    open_clip = _library()
    folder = checkpoint.find(where, ADAPTER)
    config = checkpoint.read_json(folder / CONFIG).get("model_cfg")
    if not isinstance(config, dict) or not isinstance(config.get("text_cfg"), dict):
        raise DataError(f"{folder / CONFIG} has no model_cfg with a text_cfg; fetch the model again")
    weights = checkpoint.weight_files(folder, WEIGHTS)
    try:
        model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True, **_local_text(config, folder)).eval().requires_grad_(False)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise DataError(f"{folder} cannot be loaded, its files are damaged or do not fit {CONFIG} ({' '.join(str(error).split())[:200]}); "
                        "fetch the model again") from None
    wanted = model.visual.preprocess_cfg
    content = {"image_mean": wanted["mean"], "image_std": wanted["std"], "resample": RESAMPLING.get(wanted["interpolation"])}
    preprocessing = Preprocessing.read(content, folder / CONFIG)
    tower = _tower(model.visual, folder)
    model.to(device())
    return DenseBackbone(tower, Words(model, tokenizer), preprocessing, checkpoint.fingerprint(folder, weights, ADAPTER), precision)


def _library():
    try:
        import open_clip
    except (ImportError, RuntimeError, AttributeError) as error:  # a torchvision of another torch fails in several ways
        raise UsageError(f"'{ADAPTER}:' backbones need the extra package open_clip_torch and a torchvision built for torch {torch.__version__}, "
                         f"which are no part of the locked environment ({' '.join(str(error).split())[:100]}); pip install open_clip_torch in an "
                         "environment whose torch has a matching torchvision, or take a CLIP or SigLIP by 'transformers:'") from None
    return open_clip


def _local_text(config: dict, folder: Path) -> dict:
    """The text tower's configuration taken from the folder, where open_clip would ask the hub for it by name."""
    text = config["text_cfg"]
    if "hf_model_name" not in text:
        return {}
    if not (folder / checkpoint.CONFIG).is_file():
        raise UsageError(f"the text tower of {folder} is a {text['hf_model_name']}, whose configuration is not in the folder, and a run downloads "
                         f"nothing; where there is a network: hf download {text['hf_model_name']} {checkpoint.CONFIG} --local-dir {folder}")
    return {"text_cfg": text | {"hf_model_name": str(folder), "hf_model_pretrained": False}}


class Words:
    """The text side. Every text is padded to the full length by open_clip's tokenizers."""

    def __init__(self, model: nn.Module, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.padding = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", 0)  # open_clip's own tokenizer fills up with 0
        self._noted = False

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """`(N, dim)`, of any length."""
        tokens = self.tokenizer(texts)
        with_room = self.tokenizer(texts, context_length=tokens.shape[1] + 1)
        long = int((with_room[:, -1] != self.padding).sum())  # texts that would use a position more
        if long and not self._noted:
            self._noted = True
            print(f"warning: {long} of {len(texts)} texts are longer than the {tokens.shape[1]} tokens that the backbone reads; what follows is "
                  "ignored, shorten prompts.templates", file=sys.stderr)
        return self.model.encode_text(tokens.to(next(self.model.parameters()).device))


def _tower(visual: nn.Module, folder: Path) -> BlockTower:
    if _is_timm(visual):
        return TimmTower(visual)
    if hasattr(visual, "conv1") and hasattr(visual, "transformer") and visual.attn_pool is None and visual.pool_type == "tok":
        return OpenClipTower(visual)
    raise UsageError(f"the image tower of {folder} ({type(getattr(visual, 'trunk', visual)).__name__}) is no plain vision transformer, "
                     "so it has no patch tokens to read; take another checkpoint")


def _is_timm(visual: nn.Module) -> bool:
    if not hasattr(visual, "trunk"):
        return False
    from timm.models.vision_transformer import Attention, VisionTransformer

    return type(visual.trunk) is VisionTransformer and all(isinstance(block.attn, Attention) for block in visual.trunk.blocks)


class TimmTower(BlockTower):
    """A vision transformer of timm, as in BiomedCLIP. Its own code interpolates positions once told that sizes vary (bicubic, antialiased)."""

    def __init__(self, visual: nn.Module):
        from timm.layers import Format

        self.head, self.trunk = visual.head, visual.trunk
        self.trunk.dynamic_img_size = True
        self.trunk.patch_embed.strict_img_size, self.trunk.patch_embed.flatten, self.trunk.patch_embed.output_fmt = False, False, Format.NHWC
        self.special = self.trunk.num_prefix_tokens
        projection = getattr(self.head, "proj", None)
        dim = self.trunk.embed_dim if projection is None else projection.out_features
        super().__init__(self.trunk.blocks, self.trunk.patch_embed.patch_size[0], self.trunk.embed_dim, dim)

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.trunk.norm_pre(self.trunk._pos_embed(self.trunk.patch_embed(pixels)))

    def norm_after(self, number: int) -> nn.Module:
        return self.trunk.norm if number == self.depth else self.layers[number].norm1

    def in_text_space(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        if self.trunk.attn_pool is not None:  # SigLIP: the pooling head for each token alone
            read = self.trunk.norm(after)
            pooled = self.trunk.attn_pool(read.flatten(0, 1)[:, None]).unflatten(0, read.shape[:2])
        else:
            last = self.layers[-1]
            weight, bias = last.attn.qkv.weight.chunk(3)[2], None if last.attn.qkv.bias is None else last.attn.qkv.bias.chunk(3)[2]
            pooled = self.trunk.norm(last.ls1(last.attn.proj(last.attn.norm(functional.linear(last.norm1(before), weight, bias)))))
        return self.head(self.trunk.head(self.trunk.fc_norm(pooled)))


class OpenClipTower(BlockTower):
    """open_clip's own vision transformer."""

    special = 1

    def __init__(self, visual: nn.Module):
        self.visual = visual
        super().__init__(visual.transformer.resblocks, visual.patch_size[0], visual.conv1.out_channels, visual.output_dim)

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.visual.conv1(pixels)
        grid = self.visual.positional_embedding[1:].T.unflatten(1, self.visual.grid_size)[None]
        if patches.shape[-2:] != self.visual.grid_size:
            grid = functional.interpolate(grid, patches.shape[-2:], mode="bicubic", align_corners=False)
        first = (self.visual.class_embedding + self.visual.positional_embedding[0]).expand(len(patches), 1, -1)
        return self.visual.ln_pre(torch.cat([first, (patches + grid).flatten(2).transpose(1, 2)], dim=1))

    def norm_after(self, number: int) -> nn.Module:
        return self.visual.ln_post if number == self.depth else self.layers[number].ln_1

    def in_text_space(self, before: torch.Tensor, _after: torch.Tensor) -> torch.Tensor:
        last = self.layers[-1]
        return self.visual.ln_post(last.ls_1(values_of(last.attn, last.ln_1(before)))) @ self.visual.proj
