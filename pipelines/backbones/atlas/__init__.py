"""Atlas: the embedded vision-language model, trained on synthetic heads only (no network, no foreign weights)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.backbones.atlas.model import Atlas

__all__ = ["Atlas"]


def __getattr__(name: str):
    if name == "Atlas":  # torch takes seconds to import: only when the model is wanted
        from pipelines.backbones.atlas.model import Atlas

        return Atlas
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
