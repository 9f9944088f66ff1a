"""The shape of an Atlas model, as its config.json holds it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class AtlasConfig(BaseModel):
    """Sizes of both towers. Weights fit one config only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: tuple[int, int, int, int] = (24, 48, 96, 160)  # channels at strides 2, 4, 8, 16
    depths: tuple[int, int, int, int] = (1, 1, 2, 2)  # residual blocks on the way down
    fine: int = 24  # token channels at stride 2
    coarse: int = 64  # token channels at stride 8; 24 / 4 + 64 / 64 = 7 stored numbers a voxel
    dim: int = 96  # of the text space
    text_buckets: int = 4096
    text_layers: int = 2
    text_heads: int = 4
    classes: int = 0  # > 0: taught with that many class vectors instead of texts, the control of what text is worth
