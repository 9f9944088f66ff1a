"""Frozen vision-language models behind one small interface, chosen in params by one string: `<adapter>:<where>`."""

from __future__ import annotations

from pipelines.backbones.protocol import Backbone
from pipelines.errors import UsageError

__all__ = ["Backbone", "load_backbone"]


def load_backbone(name: str) -> Backbone:
    """The backbone that params call `name`, for example `atlas:models/atlas` or `transformers:models/pubmed-clip`."""
    adapter, _, where = name.partition(":")
    if adapter == "atlas":
        from pipelines.backbones.atlas import Atlas

        return Atlas.load(where)
    if adapter == "transformers":
        from pipelines.backbones.hub import huggingface

        return huggingface.load(where)
    if adapter == "open_clip":
        from pipelines.backbones.hub import openclip

        return openclip.load(where)
    raise UsageError(f"embed.backbone is {name!r}; this version knows 'atlas:<folder with weights.safetensors and config.json>', "
                     "'transformers:<folder or hub id of a CLIP or SigLIP>' and 'open_clip:<folder>'")
