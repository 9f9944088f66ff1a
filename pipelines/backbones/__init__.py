"""Frozen vision-language models behind one small interface, chosen in params by one string: `<adapter>:<where>`."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.backbones.protocol import Backbone
from pipelines.errors import UsageError

__all__ = ["Backbone", "find_backbone", "find_folder", "load_backbone"]

#: Where this machine keeps the backbone, if not where params said.
BACKBONE_VARIABLE = "SEMIFLOW_BACKBONE"


def load_backbone(name: str, fingerprint: str | None = None) -> Backbone:
    """The backbone that params call `name`, for example `atlas:models/atlas` or `transformers:models/pubmed-clip`.

    Where one can compute in several precisions, it takes the one that gives `fingerprint`; whether it is the one wanted is the caller's to check.
    """
    backbone = _load(name)
    if fingerprint and backbone.fingerprint != fingerprint and hasattr(backbone, "computing_as"):
        return backbone.computing_as(fingerprint)
    return backbone


def find_backbone(name: str, fingerprint: str) -> Backbone:
    """The frozen backbone that params called `name`: in $SEMIFLOW_BACKBONE, here, or beside the installed code. Checked by fingerprint.

    Each may be a folder or, where the adapter knows them, a hub id that lies in the local Hugging Face cache.
    """
    adapter, _, where = name.partition(":")
    own = os.environ.get(BACKBONE_VARIABLE)
    places = [own] if own else [where, str(Path(__file__).parents[2] / where)]
    folder = next((found for place in places if (found := find_folder(f"{adapter}:{place}"))), None)
    if folder is None:
        raise UsageError(f"the frozen backbone {name} (fingerprint {fingerprint[:12]}) is not at {places[0]}; "
                         f"set {BACKBONE_VARIABLE} to the folder with its weights")
    backbone = load_backbone(f"{adapter}:{folder}", fingerprint)
    if backbone.fingerprint != fingerprint:
        raise UsageError(f"the backbone at {folder} has fingerprint {backbone.fingerprint[:12]}, this model was trained on {fingerprint[:12]}; "
                         f"set {BACKBONE_VARIABLE} to the folder with that one")
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
