"""The sizes of the small vision transformer, as they stand in its config.json."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.section import Section


class VitConfig(Section):
    """`size` and `patch` in pixels."""

    stem: Literal["atlas", "convolutions"] = Field("atlas", description="what patches are embedded by: the frozen Atlas, or convolutions of its own")
    size: int = Field(128, ge=8)
    patch: int = Field(16, ge=4, multiple_of=4)
    dim: int = Field(96, ge=8)
    depth: int = Field(6, ge=1)
    heads: int = Field(3, ge=1)
    mlp: int = Field(4, ge=1, description="width of the hidden layer over dim")
