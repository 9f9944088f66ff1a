"""The many ways people write a concept, alone or with a modality, a lobe and a side: a small grammar (synonym x template x decoration).

Training hardly sees the same sentence twice. Whether a sentence is true of a pixel is decided for each of its conditions and then together:
"left frontal glioma on FLAIR" needs a glioma, in the frontal lobe, on the left, in an image that looks like FLAIR.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.backbones.atlas import concepts as c

#: Sequences and maps that images can look like, and their names in texts. Index 0 of the facet is an image that looks like none of them.
MODALITIES = {
    "T1": ["T1-weighted", "T1", "T1w", "native T1", "pre-contrast T1", "T1 weighted"],
    "ceT1": ["contrast-enhanced T1-weighted", "post-gadolinium T1", "post-contrast T1", "T1 with gadolinium", "ceT1w", "gadolinium-enhanced T1"],
    "T2": ["T2-weighted", "T2", "T2w", "T2 weighted", "turbo spin echo T2"],
    "FLAIR": ["FLAIR", "fluid-attenuated T2", "T2 FLAIR", "fluid-attenuated inversion recovery", "T2-FLAIR", "dark-fluid"],
    "PD": ["proton density", "PD-weighted"],
    "ADC": ["ADC", "apparent diffusion coefficient", "ADC map", "diffusion"],
    "PET": ["amino-acid PET", "FET PET", "PET", "FDG PET"],
    "CBV": ["relative cerebral blood volume", "rCBV perfusion", "rCBV map", "cerebral blood flow", "CBF perfusion",
            "standardised relative cerebral blood volume"],
    "difference": ["T1 subtraction", "contrast enhancement difference", "delta T1"],
}
#: Without an enhancing lesion in the slice both look the same.
KIN = (("T1", "ceT1"),)
#: Parts of the brain, and centres in MNI space (mm; the first coordinate is the distance from the midline): a voxel belongs to the nearest.
PLACES = {
    "frontal": ((20, 48, 5), (28, 35, 25), (25, 5, 48), (40, 22, 12)),
    "temporal": ((48, -8, -18), (52, -35, -5), (34, 8, -30)),
    "parietal": ((22, -50, 52), (45, -40, 38), (22, -62, 38)),
    "occipital": ((14, -88, 5), (30, -80, 12), (20, -72, -6)),
    "insula": ((38, 2, 4),),
    "deep": ((12, 4, 8), (22, -8, 6), (10, -20, 8), (8, -32, 18)),
    "cerebellum": ((22, -62, -38), (5, -58, -28), (40, -58, -38)),
    "brain stem": ((0, -28, -28), (0, -34, -48), (0, -20, -12)),
}
PLACE_WORDS = {
    "frontal": ["frontal lobe", "frontal", "prefrontal", "frontal region"],
    "temporal": ["temporal lobe", "temporal", "temporal region"],
    "parietal": ["parietal lobe", "parietal", "parietal region"],
    "occipital": ["occipital lobe", "occipital", "occipital region"],
    "insula": ["insula", "insular", "insular cortex region"],
    "deep": ["basal ganglia", "thalamus", "deep grey nuclei", "central brain"],
    "cerebellum": ["cerebellum", "cerebellar", "posterior fossa"],
    "brain stem": ["brain stem", "brainstem", "pons and midbrain"],
}
SIDES = {"left": ["left", "left-sided", "left hemisphere"], "right": ["right", "right-sided", "right hemisphere"]}
DISEASES = ["glioma", "glioblastoma", "lower-grade glioma", "brain tumour", "brain tumor", "tumour", "multiple sclerosis", "stroke", "astrocytoma",
            "metastasis", "oligodendroglioma", "lesion"]
VENDORS = ["Siemens", "GE", "Philips", "Toshiba", "Canon", "Hitachi", "United Imaging"]
PLAIN = ["{c}", "{c}", "MRI of {c}", "a brain scan with {c}", "an area of {c}", "a photo of {c}", "region of {c}", "{c}, {s}", "an image showing {c}"]
WITH_MODALITY = ["{c} on {m} MRI", "{c} on {m}", "a {m} image showing {c}", "{c}, {m}", "{m}: {c}", "{m} {c}", "{c} seen on {m} imaging",
                 "{c} on a {m} scan", "a {m} slice through {c}", "{c}, {m}, {s}", "{c} on {m} MRI, {s}", "{c} in {m}"]
OF_DISEASE = ["{c} of a {d}", "{d} with {c}", "patient with {d}, {c}", "{c} in {d}"]

_M, _P, _S = list(MODALITIES), list(PLACES), list(SIDES)
#: Facets count from 1; 0 is "not said" of a prompt and "not known" of a pixel.
MODALITY_COUNT, PLACE_COUNT, SIDE_COUNT = (1 + len(names) for names in (_M, _P, _S))


@dataclass(frozen=True)
class Prompt:
    """A sentence and what has to be true of a pixel that it describes."""

    concept: int
    text: str
    modality: int = 0
    place: int = 0
    side: int = 0


@dataclass(frozen=True)
class Facets:
    """What is known of pixels, tensors of one shape: the row of `concepts.verdicts()`, and modality, place and side (0 = unknown)."""

    row: torch.Tensor
    modality: torch.Tensor
    place: torch.Tensor
    side: torch.Tensor

    def __getitem__(self, index) -> Facets:
        return Facets(self.row[index], self.modality[index], self.place[index], self.side[index])


def modality_index(name: str) -> int:
    return 1 + _M.index(name)


def prompts(rng: np.random.Generator, phrasings: int, modalities: list[int]) -> list[Prompt]:
    """For every concept one plain sentence and `phrasings - 1` that may name a modality (mostly one of `modalities`), a lobe or a side."""
    return [write(index, rng, modalities if extra else None) for index in range(len(c.CONCEPTS)) for extra in range(phrasings)]


def write(index: int, rng: np.random.Generator, modalities: list[int] | None = None) -> Prompt:
    """A sentence of concept `index`; without `modalities` it says nothing of modality, lobe or side."""
    concept, modality, place, side = c.CONCEPTS[index], 0, 0, 0
    if modalities is not None:
        if rng.random() < 0.45:
            modality = int(rng.choice(modalities)) if modalities and rng.random() < 0.7 else int(rng.integers(1, MODALITY_COUNT))
        if concept.placed and rng.random() < 0.35:
            place = int(rng.integers(1, PLACE_COUNT))
        if concept.placed and rng.random() < 0.35:
            side = int(rng.integers(1, SIDE_COUNT))
    return Prompt(index, phrase(concept, rng, modality, place, side), modality, place, side)


def phrase(concept: c.Concept, rng: np.random.Generator, modality: int = 0, place: int = 0, side: int = 0, *, more: bool = False) -> str:
    """One random way to write it (`more`: in words of `MORE_TEXTS` too), sometimes with words that say nothing (a scanner, noise)."""
    pick = lambda options: options[rng.integers(len(options))]  # noqa: E731 - one word for one idea
    text = _located(pick(concept.texts + (c.MORE_TEXTS[concept.name] if more else ())), place, side, pick)
    if concept.lesion and rng.random() < 0.25:
        text = pick(OF_DISEASE).replace("{c}", text)
    if modality:
        text = pick(WITH_MODALITY).replace("{c}", text).replace("{m}", pick(MODALITIES[_M[modality - 1]]))
    else:
        text = pick(PLAIN).replace("{c}", text)
    text = text.replace("{d}", pick(DISEASES)).replace("{s}", _scanner(rng))
    if rng.random() < 0.1:
        text = f"{text} {_noise_word(rng)}"
    return text.lower() if rng.random() < 0.3 else text


def _located(text: str, place: int, side: int, pick) -> str:
    where = " ".join([*([pick(SIDES[_S[side - 1]])] if side else []), *([pick(PLACE_WORDS[_P[place - 1]])] if place else [])])
    return pick([f"{where} {text}", f"{text} in the {where}", f"{text}, {where}"]) if where else text


def verdict_on(said: list[Prompt], pixels: Facets) -> torch.Tensor:
    """`(pixels, prompts)`: POSITIVE where every condition of a prompt holds, NEGATIVE where one does not, else NEUTRAL."""
    concept = torch.from_numpy(c.verdicts())[:, [prompt.concept for prompt in said]]
    verdict = concept[pixels.row]
    everywhere = torch.tensor([c.CONCEPTS[prompt.concept].name == "outside" for prompt in said])  # air is air in every modality
    facets = ((pixels.modality, [prompt.modality for prompt in said], MODALITY_COUNT, _kin()),
              (pixels.place, [prompt.place for prompt in said], PLACE_COUNT, ()), (pixels.side, [prompt.side for prompt in said], SIDE_COUNT, ()))
    for known, asked, count, kin in facets:
        table = _facet_verdicts(torch.tensor(asked), count, kin)
        table[:, everywhere] = c.POSITIVE
        verdict = torch.minimum(verdict, table[known])
    return verdict


def _facet_verdicts(asked: torch.Tensor, count: int, kin) -> torch.Tensor:
    """`(count, prompts)`: the verdict on a pixel of each value of a facet."""
    value = torch.arange(count)[:, None]
    table = torch.full((count, len(asked)), c.NEGATIVE, dtype=torch.int8)
    table[(value == 0).expand_as(table)] = c.NEUTRAL
    for a, b in kin:
        table[((value == a) & (asked == b)) | ((value == b) & (asked == a))] = c.NEUTRAL
    table[(value == asked) | (asked == 0)] = c.POSITIVE
    return table


def _kin() -> list[tuple[int, int]]:
    return [(modality_index(a), modality_index(b)) for a, b in KIN]


def _scanner(rng: np.random.Generator) -> str:
    vendor = VENDORS[rng.integers(len(VENDORS))]
    field = ["1.5 T", "3 T", "3T", "1.5T", "7 T", ""][rng.integers(6)]
    return f"{vendor} {_noise_word(rng).title()} {field}".strip() if rng.random() < 0.6 else f"{vendor} {field}".strip()


def _noise_word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list(string.ascii_lowercase), size=rng.integers(3, 9)))
