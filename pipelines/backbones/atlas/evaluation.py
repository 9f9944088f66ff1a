"""How well Atlas finds what a text names, with no label at all: on synthetic heads of other seeds in known words and in new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas import phrases
from pipelines.backbones.atlas.contrast import TYPICAL, grey_levels, render, typical_levels
from pipelines.backbones.atlas.image import FINE_STRIDE
from pipelines.backbones.atlas.lesions import Painted, paint_lesions
from pipelines.backbones.atlas.model import Atlas
from pipelines.backbones.atlas.slices import NEIGHBOURS, PARTS, Slabs, Uniform, label_slabs
from pipelines.backbones.atlas.volumes import label_volumes

HEADS, SLICES, SIZE = 6, 96, 128
MIDDLE = NEIGHBOURS // 2
#: Within 0.001 of the tenth with the largest Dice of abnormalities on synthetic heads of another seed; no real image decided it.
FOUND = 0.5
#: Concept that names a class -> the labels that are it.
CLASSES = {"outside": (c.AIR,), "extracranial": (c.SCALP, c.SKULL, c.EYE, c.MUSCLE, c.MARROW, c.MUCOSA), "csf": (c.CSF, c.VENTRICLE),
           "grey": (c.GREY,), "white": (c.WHITE,), "abnormality": c.LESIONS}


def name_pixels(atlas: Atlas, volume: np.ndarray, spacing_mm: tuple[float, float, float], classes: Mapping[str, Sequence[str]]) -> np.ndarray:
    """For every voxel of `(S, H, W)` the index of the class whose texts (several are averaged) are most like it."""
    return probabilities(atlas, volume, spacing_mm, classes).argmax(1)


def find_pixels(atlas: Atlas, volume: np.ndarray, spacing_mm: tuple[float, float, float], classes: Mapping[str, Sequence[str]],
                wanted: str) -> np.ndarray:
    """The voxels of `(S, H, W)` that are more likely than `FOUND` of the class `wanted`, as a mask."""
    return probabilities(atlas, volume, spacing_mm, classes)[:, list(classes).index(wanted)] > FOUND


def probabilities(atlas: Atlas, volume: np.ndarray, spacing_mm: tuple[float, float, float], classes: Mapping[str, Sequence[str]]) -> np.ndarray:
    """How likely each voxel of `(S, H, W)` is of each class by the temperature of the training, `(S, classes, H, W)` float32."""
    similar = similarities(atlas, atlas.align(atlas.encode_image(volume, spacing_mm)), classes)
    stride = atlas.levels["fine"][1]
    grown = functional.interpolate(torch.from_numpy(similar).permute(0, 3, 1, 2), scale_factor=float(stride), mode="bilinear", align_corners=False)
    return (atlas.scale * grown[..., : volume.shape[1], : volume.shape[2]]).softmax(1).numpy()


def similarities(atlas: Atlas, aligned: np.ndarray, classes: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Cosine of aligned tokens `(..., dim)` with the mean text of every class, `(..., classes)`."""
    vectors = np.stack([atlas.encode_text(list(texts)).mean(0) for texts in classes.values()])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return aligned @ vectors.T


def zero_shot(atlas: Atlas, cache: Path, seed: int, say=print) -> dict[str, dict[str, float]]:
    """Dice of every class over `SLICES` slices of `HEADS` unseen heads; "abnormality" also by the sequence the grey levels imitate.

    Once with texts as in training ("known words") and once with phrasings kept out of it ("new words").
    """
    _, painted, random = _unseen(cache, seed, say)
    images = {"": render(painted, grey_levels(random), random)}
    images |= {f" on {name}": render(painted, typical_levels(name, SLICES), random) for name in TYPICAL}
    truth, concepts = painted.labels[:, PARTS * MIDDLE].numpy(), {concept.name: concept for concept in c.CONCEPTS}
    result: dict[str, dict[str, float]] = {}
    for words in ("known words", "new words"):
        classes = {name: concepts[name].held_out if words == "new words" else concepts[name].texts[:3] for name in CLASSES}
        scores = result.setdefault(words, {})
        for sequence, image in images.items():
            named = np.concatenate([name_pixels(atlas, slab.numpy(), (1.5, 1.5, 1.5), classes)[[MIDDLE]] for slab in image])
            for index, name in enumerate(CLASSES):
                if not sequence or name == "abnormality":
                    scores[name + sequence] = round(dice(named == index, np.isin(truth, CLASSES[name])), 4)
    return result


def facet_accuracy(atlas: Atlas, cache: Path, seed: int, say=print) -> dict[str, float]:
    """How often the nearest of "brain, left", "brain, right" (and so on for lobes and modalities) is the true one, over brain tokens."""
    slabs, painted, random = _unseen(cache, seed, say)
    levels = grey_levels(random)
    images = render(painted, levels, random)
    aligned = np.concatenate([atlas.align(atlas.encode_image(slab.numpy(), (1.5, 1.5, 1.5)))[[MIDDLE]] for slab in images])
    at_token = lambda known: known[:, ::FINE_STRIDE, ::FINE_STRIDE].numpy()  # noqa: E731
    label = at_token(painted.labels[:, PARTS * MIDDLE])
    brain = np.isin(label, (c.GREY, c.WHITE, *c.LESIONS))
    modality = np.broadcast_to(levels.modality[:, None, None].numpy(), label.shape)
    known = {"modality": modality, "place": at_token(slabs.place), "side": at_token(slabs.side)}
    said = {"modality": [f"brain on {names[0]} MRI" for names in phrases.MODALITIES.values()],
            "place": [f"brain in the {words[0]}" for words in phrases.PLACE_WORDS.values()],
            "side": [f"{words[0]} brain" for words in phrases.SIDES.values()]}
    result = {}
    for facet, texts in said.items():
        counted = brain & (known[facet] > 0)
        nearest = 1 + (aligned[counted] @ atlas.encode_text(texts).T).argmax(1)
        result[facet] = round(float((nearest == known[facet][counted]).mean()), 4)
    return result


def _unseen(cache: Path, seed: int, say) -> tuple[Slabs, Painted, Uniform]:
    from pipelines.backbones.atlas.pretrain import anatomy_of

    random = Uniform(torch.Generator().manual_seed(seed), SLICES)
    slabs = label_slabs(anatomy_of(label_volumes(HEADS, seed, cache, say)), random, SIZE)
    return slabs, paint_lesions(slabs, random), random


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
