"""A vision transformer of slices, for systems that answer a whole case: small and made here (`models/vit`), or a published one of the user's."""

from __future__ import annotations

from pipelines.backbones.vit.load import load_vit

__all__ = ["load_vit"]
