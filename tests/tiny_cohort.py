"""A cohort small enough to train on in a second: heads with a bright lesion in a noisy image, and a backbone of fixed random convolutions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pipelines.cohort import Case
from pipelines.prompts.bank import PromptBank
from pipelines.systems.protocol import Task

MODALITIES = ("FLAIR", "T1w")
LABELS = ("core", "oedema")
SHAPE = (7, 45, 38)
SPACING_MM = (5.0, 1.5, 1.5)


class TinyBackbone:
    """Two levels of random features of each slice; text vectors from a hash. It knows nothing, and implements the protocol."""

    dim = 16
    levels = {"fine": (6, 2), "coarse": (10, 8)}  # noqa: RUF012 - the protocol's plain attribute
    fingerprint = "0" * 64

    def encode_image(self, volume: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        import torch
        from torch.nn import functional

        generator = torch.Generator().manual_seed(0)
        tokens = {}
        for name, (channels, stride) in self.levels.items():
            kernel = torch.randn(channels, 1, 2 * stride, 2 * stride, generator=generator) / (2 * stride)
            _, height, width = volume.shape
            padded = functional.pad(torch.from_numpy(volume)[:, None], (stride // 2, stride + width, stride // 2, stride + height))
            features = functional.conv2d(padded, kernel, stride=stride).relu()
            tokens[name] = features[:, :, :-(-height // stride), :-(-width // stride)].numpy().astype(np.float16)
        return tokens

    def align(self, tokens: dict[str, np.ndarray]) -> np.ndarray:
        fine = np.moveaxis(tokens["fine"].astype(np.float32), 1, -1)
        vectors = fine @ np.random.default_rng(0).normal(size=(fine.shape[-1], self.dim)).astype(np.float32) + 1e-3
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def encode_text(self, texts: list[str]) -> np.ndarray:
        seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) for text in texts]
        vectors = np.array([np.random.default_rng(seed).normal(size=self.dim) for seed in seeds], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def tiny_case(number: int, site: str = "A", modalities: Sequence[str] = MODALITIES, session: str = "") -> Case:
    """An elliptic head with a core inside an oedema at a place of its own; both are bright on FLAIR, only the core is dark on T1w."""
    generator = np.random.default_rng(number)
    z, row, column = np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij")
    head = ((row - 22) / 19) ** 2 + ((column - 18) / 16) ** 2 < 1
    place = 22 + generator.uniform(-7, 7), 18 + generator.uniform(-5, 5)
    distance = np.hypot(np.hypot(row - place[0], column - place[1]), 3 * (z - 3))
    label = np.where(distance < 4, 1, np.where(distance < 8, 2, 0)) * head
    means = {"FLAIR": np.array([0.0, 2.0, 3.0]), "T1w": np.array([0.5, -2.0, 0.0])}
    images = {name: ((means[name][label] + 0.4 * generator.normal(size=SHAPE)) * head).astype(np.float32) for name in modalities}
    backbone = TinyBackbone()
    return Case(f"{site}{number:02d}", session, site, SPACING_MM, 2, images, head.astype(np.uint8), label.astype(np.uint8),
                {name: backbone.encode_image(image, SPACING_MM) for name, image in images.items()})


def tiny_task(sites: Sequence[str] = ("A",)) -> Task:
    backbone = TinyBackbone()
    classes = (*LABELS, "healthy", "outside")
    phrasings = {modality: {name: {site: [f"{name} on {modality}", f"{modality} showing {name}"] for site in sites} for name in classes}
                 for modality in MODALITIES}
    texts = PromptBank(phrasings, {}).texts()
    return Task(LABELS, MODALITIES, PromptBank(phrasings, dict(zip(texts, backbone.encode_text(texts), strict=True))), backbone)


def dice(probabilities: np.ndarray, case: Case, value: int) -> float:
    found, truth = probabilities.argmax(0) == value, case.label() == value
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def tensors(case, modalities) -> dict[str, np.ndarray]:
    """A case as the logged model takes it."""
    missing = np.full(case.foreground().shape, np.nan, np.float32)
    images = {name: case.image(name) if name in case.images else missing for name in modalities}
    return images | {"brain": case.foreground().astype(np.float32), "spacing_mm": np.array(case.spacing_mm, np.float32),
                     "slice_axis": np.array([case.slice_axis])}
