"""Hyperparameters of the linear probe of whole cases."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from pipelines.section import Section


class Params(Section):
    model_config = ConfigDict(title="linear probe of cases")

    features: Literal["tokens", "vit"] = Field("tokens", description="tokens: the cached backbone's, pooled over the head; vit: class tokens")
    vit: str = Field("vit:models/vit", description="the frozen transformer of features: vit")
    slices: int = Field(5, ge=1, description="of an image, evenly over the head, for features: vit")
    strengths: tuple[float, ...] = Field((0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), min_length=1,
                                         description="inverse strengths C of the penalty to choose from")
    folds: int = Field(5, ge=2, description="of the cases, to choose by")
