"""How well Atlas finds what a text names, with no label at all: on synthetic heads of other seeds and in words not trained on."""

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
#: Class -> the concept whose held-out words name it, and the labels that are it.
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


def zero_shot(atlas: Atlas, cache: Path, seed: int, say=print) -> dict[str, float]:
    """Dice of every class over `SLICES` slices of `HEADS` unseen heads; "abnormality" also by the sequence the grey levels imitate."""
    volumes = torch.from_numpy(label_volumes(HEADS, seed, cache, say))
    texts = {concept.name: concept.held_out for concept in c.CONCEPTS}
    classes = {name: texts[name] for name in CLASSES}
    random = Uniform(torch.Generator().manual_seed(seed), SLICES)
    slabs, pixel, _ = label_slabs(volumes, random, 128)
    slabs = paint_lesions(slabs, pixel, random)
    truth = slabs[:, SLAB // 2].numpy()
    named = name_pixels(atlas, render(slabs, grey_levels(random), random).numpy(), (1.5, 1.5, 1.5), classes)
    result = {name: dice(named == index, np.isin(truth, CLASSES[name])) for index, name in enumerate(CLASSES)}
    for name, levels in TYPICAL.items():
        image = render(slabs, torch.tensor(levels).repeat(len(slabs), 1), random).numpy()
        named = name_pixels(atlas, image, (1.5, 1.5, 1.5), classes)
        result[f"abnormality on {name}"] = dice(named == list(CLASSES).index("abnormality"), np.isin(truth, c.LESIONS))
    return {name: round(value, 4) for name, value in result.items()}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
