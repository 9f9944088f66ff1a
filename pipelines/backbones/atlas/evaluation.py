"""How well Atlas finds what a text names, with no label at all: on synthetic heads of other seeds in known words and in new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.contrast import TYPICAL, grey_levels, render
from pipelines.backbones.atlas.model import Atlas
from pipelines.backbones.atlas.slices import SLAB, Uniform, label_slabs, paint_lesions
from pipelines.backbones.atlas.volumes import label_volumes

HEADS, SLICES = 6, 96
#: Concept that names a class -> the labels that are it.
CLASSES = {"outside": (c.AIR,), "extracranial": (c.SCALP, c.SKULL, c.EYE, c.MUSCLE, c.MARROW), "csf": (c.CSF, c.VENTRICLE), "grey": (c.GREY,),
           "white": (c.WHITE,), "abnormality": c.LESIONS}


def name_pixels(atlas: Atlas, volume: np.ndarray, spacing_mm: tuple[float, float, float], classes: Mapping[str, Sequence[str]]) -> np.ndarray:
    """For every voxel of `(S, H, W)` the index of the class whose texts (several are averaged) are most like it."""
    vectors = np.stack([atlas.encode_text(list(texts)).mean(0) for texts in classes.values()])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = torch.from_numpy(atlas.align(atlas.encode_image(volume, spacing_mm)) @ vectors.T).permute(0, 3, 1, 2)
    stride = atlas.levels["fine"][1]
    grown = functional.interpolate(similar, scale_factor=float(stride), mode="bilinear", align_corners=False)
    return grown[..., : volume.shape[1], : volume.shape[2]].argmax(1).numpy()


def zero_shot(atlas: Atlas, cache: Path, seed: int, say=print) -> dict[str, dict[str, float]]:
    """Dice of every class over `SLICES` slices of `HEADS` unseen heads; "abnormality" also by the sequence the grey levels imitate.

    Once with texts as in training ("known words") and once with phrasings kept out of it ("new words").
    """
    volumes = torch.from_numpy(label_volumes(HEADS, seed, cache, say))
    random = Uniform(torch.Generator().manual_seed(seed), SLICES)
    slabs, pixel, _ = label_slabs(volumes, random, 128)
    slabs = paint_lesions(slabs, pixel, random)
    images = {"": render(slabs, grey_levels(random), random)}
    images |= {f" on {name}": render(slabs, torch.tensor(levels).repeat(len(slabs), 1), random) for name, levels in TYPICAL.items()}
    truth, concepts = slabs[:, SLAB // 2].numpy(), {concept.name: concept for concept in c.CONCEPTS}
    result: dict[str, dict[str, float]] = {}
    for words in ("known words", "new words"):
        classes = {name: concepts[name].held_out if words == "new words" else concepts[name].texts[:3] for name in CLASSES}
        scores = result.setdefault(words, {})
        for sequence, image in images.items():
            named = name_pixels(atlas, image.numpy(), (1.5, 1.5, 1.5), classes)
            for index, name in enumerate(CLASSES):
                if not sequence or name == "abnormality":
                    scores[name + sequence] = round(dice(named == index, np.isin(truth, CLASSES[name])), 4)
    return result


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
