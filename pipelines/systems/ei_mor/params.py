"""Hyperparameters of EI + MoR, and which arm of its comparison a fit is."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from pipelines.section import Section


class Params(Section):
    model_config = ConfigDict(title="EI + MoR")

    fusion: Literal["early", "late", "mil"] = Field("early", description="early: intervention tokens; late: class tokens read together; "
                                                                         "mil: gated attention over the tokens of all images")
    adapter: Literal["mor", "lora"] = Field("mor", description="lora: as many trainable numbers as mor")
    modalities: list[str] | Literal["all"] = Field("all", description="one of them: the unimodal model")
    shuffled: bool = Field(False, description="a control: interventions come from another patient")
    vit: str = Field("vit:models/vit", description="the frozen transformer, 'vit:<folder>' or 'transformers:<folder of a ViT checkpoint>'")
    slices: int = Field(1, ge=1, description="of an image, evenly over the head")
    ranks: tuple[int, ...] = Field((2, 4, 8), min_length=1)
    alphas: tuple[float, ...] = Field((4.0, 8.0, 16.0), min_length=1)
    hidden: int = Field(384, ge=1, description="of the networks that make an intervention")
    auxiliary: float = Field(0.3, ge=0, description="weight of the auxiliary scores")
    routing: float = Field(0.1, ge=0, description="weight of what the router is taught")
    whiten: float | None = Field(0.1, gt=0, description="class tokens are whitened before they become interventions, with this share of the largest "
                                                        "standard deviation added to all; null: left as they are, as the paper has them")
    epochs: int = Field(8, ge=1, description="of the unimodal models")
    joint_epochs: int = Field(30, ge=1, description="of all together, after them")
    batch: int = Field(16, ge=2, description="cases a step")
    rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    views: int = Field(8, ge=1, description="ways in which an image is learned from: as it is, mirrored left for right, then also turned, scaled and "
                                           "moved; 1 where the answer depends on the side")
    held_out: float = Field(0.1, ge=0, lt=0.5, description="share of the cases kept from the unimodal models, to see how far they overfit")

    @model_validator(mode="after")
    def _fits(self):
        if len(self.ranks) != len(self.alphas):
            raise ValueError(f"there are {len(self.ranks)} ranks and {len(self.alphas)} alphas; give one alpha a rank")
        if self.shuffled and self.fusion != "early":
            raise ValueError("shuffled exchanges interventions, which only fusion: early has")
        return self
