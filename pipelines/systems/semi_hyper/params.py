"""Hyperparameters of SEMI 1b: SEMI's own, and those of the hypernetwork and of the arms that it is compared with."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from pipelines.systems.semi.params import Params as SemiParams


class Params(SemiParams):
    model_config = ConfigDict(title="SEMI 1b (hypernetwork)")

    encoder: Literal["frozen"] = Field("frozen", description="new modalities are learned beside a frozen encoder alone")
    # what is new, and what is done about it
    new_modality: str | None = Field(None, description="kept out of the meta-training; null: every one that the support has and the source has not")
    arm: Literal["generated", "generated-finetuned", "lora", "scratch", "shared", "aligned"] = Field(
        "generated-finetuned", description="projector of a new modality; shared: the known ones', as it is; aligned: starts as SEMI 1a's do")
    pairs: int = Field(16, ge=1, description="(region, text) pairs per class and support case that a new modality is learned from")
    # shared projector
    source_cases: int = Field(8, ge=1, description="source cases that the meta-training looks at; more take longer")
    regions: int = Field(200, ge=1, description="regions per class and image that the known modalities give to the meta-training")
    projector_steps: int = Field(300, ge=1)
    meta_batch: int = Field(64, ge=1, description="regions per modality and step, classes in equal numbers")
    # hypernetwork (the paper: width 768, rank = alpha = 32)
    hyper_width: int = Field(128, ge=1)
    hyper_steps: int = Field(250, ge=1)
    hyper_learning_rate: float = Field(1e-3, gt=0)
    episodes: int = Field(4, ge=1, description="made-up modalities a step")
    rotation: Literal["haar", "graded"] = Field("graded", description="of the made-up modalities: uniform (the paper), or of random size")
    rotated: float = Field(1.0, ge=0, le=1, description="share of episodes whose vectors are rotated; the paper: all")
    chunk: int = Field(32, ge=1, description="pairs that one adapter is generated from; adapters of several chunks are averaged")
    tokens: Literal["joined", "interleaved"] = Field("joined", description="a pair as one token of the hypernetwork, or as two (the paper)")
    rank: int = Field(32, ge=1)
    alpha: float = Field(32.0, gt=0)
    # fine-tuning on the handful of pairs, the same for every arm that is fine-tuned
    finetune_steps: int = Field(100, ge=1)
    finetune_learning_rate: float = Field(3e-3, gt=0)
    # decoder
    new_alone: float = Field(0.25, ge=0, le=1, description="share of patches that show a new modality alone, as it may come at test")
    text_only: bool = Field(False, description="control: the decoder sees text space alone, no token and no intensity skip")
