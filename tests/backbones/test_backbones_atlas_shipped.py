"""The weights in the repository: what the texts of the default cohort mean to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.backbones import load_backbone
from pipelines.backbones.atlas import concepts as c

SHIPPED = Path(__file__).parents[2] / "models" / "atlas"


@pytest.fixture(scope="module")
def shipped():
    return load_backbone(f"atlas:{SHIPPED}")


def test_the_weights_are_small_enough_for_the_repository():
    assert (SHIPPED / "weights.safetensors").stat().st_size < 6e6


def test_words_never_trained_on_land_beside_the_concept_they_name(shipped):
    """Held-out phrasings against every concept's trained ones: the right concept, or one that shares labels with it, is nearest."""
    centres = np.stack([shipped.encode_text(list(concept.texts)).mean(0) for concept in c.CONCEPTS])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    right, total = 0, 0
    for concept in c.CONCEPTS:
        for text, vector in zip(concept.held_out, shipped.encode_text(list(concept.held_out)), strict=True):
            nearest = c.CONCEPTS[int((centres @ vector).argmax())]
            right, total = right + bool(set(nearest.labels) & set(concept.labels)), total + 1
            assert "{" not in text
    assert right / total >= 0.75


@pytest.mark.parametrize(("lesion", "other"), [
    ("peritumoural oedema on FLAIR MRI", "normal brain on FLAIR MRI"),
    ("FLAIR abnormality on FLAIR MRI", "brain without lower-grade glioma, FLAIR"),
    ("tumour core with enhancing rim and necrosis on T1 MRI", "background outside the head on T1"),
])
def test_a_lesion_is_told_from_what_it_is_not(shipped, lesion, other):
    reference, near, far = shipped.encode_text(["brain tumour", lesion, other])
    assert reference @ near > reference @ far + 0.2


def test_healthy_and_outside_differ(shipped):
    healthy, spelled, outside = shipped.encode_text(["normal brain on T1 MRI", "brain without glioma, T1, GE Signa", "air around the head, T1"])
    assert healthy @ spelled > healthy @ outside + 0.2
