"""Frozen vision-language models behind one small interface, chosen in params by one string: `<adapter>:<where>`."""

from __future__ import annotations

from pathlib import Path

from pipelines.backbones.protocol import Backbone
from pipelines.errors import UsageError

__all__ = ["Backbone", "find_folder", "load_backbone"]


def load_backbone(name: str, fingerprint: str | None = None) -> Backbone:
    """The backbone that params call `name`, for example `atlas:models/atlas` or `transformers:models/pubmed-clip`.

    Where one can compute in several precisions, it takes the one that gives `fingerprint`; whether it is the one wanted is the caller's to check.
    """
    backbone = _load(name)
    if fingerprint and backbone.fingerprint != fingerprint and hasattr(backbone, "computing_as"):
        return backbone.computing_as(fingerprint)
    return backbone


def find_folder(name: str) -> Path | None:
    """Where the files of the backbone that params call `name` lie: its folder, or the local Hugging Face cache for a hub id; else None."""
    adapter, _, where = name.partition(":")
    if where and Path(where).is_dir():
        return Path(where)
    if adapter not in ("transformers", "open_clip"):
        return None
    from pipelines.backbones.hub import checkpoint

    try:
        return checkpoint.find(where, adapter)
    except UsageError:
        return None


def _load(name: str) -> Backbone:
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
