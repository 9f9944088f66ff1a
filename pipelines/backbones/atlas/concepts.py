"""What a pixel can be called: concepts, the labels each covers, and the many ways people write them.

A phrasing is built by a small grammar (synonym x template x modality x decoration), so training hardly sees the same sentence twice.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np

#: Labels of the synthetic slices: `pipelines.phantoms.anatomy.Tissue`, and three kinds of lesion that are painted in the slice.
(AIR, SCALP, SKULL, CSF, GREY, WHITE, VENTRICLE, EYE, MUSCLE, MARROW, VESSEL, GLIOSIS, NECROSIS, ENHANCING, OEDEMA,
 SOLID, FOCAL, CAVITY) = range(18)
LABELS = 18
LESIONS = (NECROSIS, ENHANCING, OEDEMA, SOLID, FOCAL)
#: How much each label counts besides its frequency: the brain and its lesions are the point, vessels and the thin layers outside are not.
IMPORTANCE = (0.5, 0.4, 0.4, 1.0, 1.0, 1.0, 1.0, 0.3, 0.3, 0.2, 0.2, 0.0, 1.0, 1.2, 1.2, 1.2, 1.0, 0.8)
#: How a lesion compares with white matter in the image at hand; the row of a (label, relation) pair is `relation * LABELS + label`.
DARKER, SIMILAR, BRIGHTER = range(3)
RELATIONS = 3

POSITIVE, NEGATIVE, NEUTRAL = 1, 0, -1

MODALITIES = {
    "T1": ["T1-weighted", "T1", "T1w", "native T1", "pre-contrast T1", "T1 weighted"],
    "ceT1": ["contrast-enhanced T1-weighted", "post-gadolinium T1", "post-contrast T1", "T1 with gadolinium", "ceT1w", "gadolinium-enhanced T1"],
    "T2": ["T2-weighted", "T2", "T2w", "T2 weighted", "turbo spin echo T2"],
    "FLAIR": ["FLAIR", "fluid-attenuated T2", "T2 FLAIR", "fluid-attenuated inversion recovery", "T2-FLAIR", "dark-fluid"],
    "PD": ["proton density", "PD-weighted"],
    "ADC": ["ADC", "apparent diffusion coefficient", "ADC map", "diffusion"],
    "CBV": ["relative cerebral blood volume", "rCBV perfusion", "rCBV map", "cerebral blood flow", "CBF perfusion",
            "standardised relative cerebral blood volume"],
    "difference": ["T1 subtraction", "contrast enhancement difference", "delta T1"],
    "PET": ["amino-acid PET", "FET PET", "PET", "FDG PET"],
}

DISEASES = ["glioma", "glioblastoma", "lower-grade glioma", "brain tumour", "brain tumor", "tumour", "multiple sclerosis", "stroke", "astrocytoma",
            "metastasis", "oligodendroglioma", "lesion"]
VENDORS = ["Siemens", "GE", "Philips", "Toshiba", "Canon", "Hitachi", "United Imaging"]
TEMPLATES = ["{c}", "{c} on {m} MRI", "{c} on {m}", "a {m} image showing {c}", "{c}, {m}", "{m}: {c}", "{m} {c}", "{c} seen on {m} imaging",
             "MRI of {c}", "a brain scan with {c}", "{c} in the brain", "an area of {c}", "{c} on a {m} scan", "a {m} slice through {c}",
             "{c}, {m}, {s}", "{c} on {m} MRI, {s}", "a photo of {c}", "region of {c}", "{c} in {m}"]
LESION_TEMPLATES = [*TEMPLATES, "{c} of a {d}, {m}, {s}", "{c} of a {d}", "{c} of a {d} on {m}", "{side} {c}", "{c} in the {place}, {m}",
                    "{d} with {c}, {m}", "{side} {place} {c} on {m} MRI", "patient with {d}, {c}"]
SIDES = ["left", "right", "left-sided", "right-sided", "bilateral"]
PLACES = ["frontal lobe", "temporal lobe", "parietal lobe", "occipital lobe", "insula", "deep white matter",
          "periventricular white matter", "hemisphere"]


@dataclass(frozen=True)
class Concept:
    """One meaning. `neutral` labels are neither called so nor the opposite; `held_out` phrasings are for evaluation only."""

    name: str
    labels: tuple[int, ...]
    texts: tuple[str, ...]
    held_out: tuple[str, ...]
    neutral: tuple[int, ...] = ()
    lesion: bool = False
    relation: int | None = None

    def verdict(self, label: int, relation: int) -> int:
        """Whether a pixel of `label`, which compares with white matter as `relation`, is this concept."""
        if label in self.labels:
            if self.relation is None or relation == self.relation:
                return POSITIVE
            return NEUTRAL if relation == SIMILAR else NEGATIVE
        return NEUTRAL if label in self.neutral else NEGATIVE


CONCEPTS = (
    Concept("outside", (AIR,),
            ("background outside the head", "air around the head", "air", "image background", "empty background", "outside the patient",
             "outside the head", "surrounding air", "no signal outside the head", "black background"),
            ("air surrounding the skull", "nothing but background")),
    Concept("scalp", (SCALP,), ("scalp", "scalp fat", "subcutaneous fat", "fat under the skin", "fatty scalp tissue"), ("fat of the scalp",),
            neutral=(MUSCLE, MARROW)),
    Concept("skull", (SKULL,), ("skull", "skull bone", "cortical bone", "calvarium", "bone of the skull", "cranial bone"), ("the bony skull",),
            neutral=(MARROW,)),
    Concept("marrow", (MARROW,), ("bone marrow of the skull", "diploe", "skull marrow", "diploic space"), ("marrow in the skull bone",),
            neutral=(SKULL,)),
    Concept("muscle", (MUSCLE,), ("muscle", "muscle and skin", "temporalis muscle", "skin", "facial muscle"), ("muscle of the face",),
            neutral=(SCALP,)),
    Concept("eye", (EYE,), ("eye", "eyeball", "orbit", "globe of the eye", "vitreous body"), ("the eyes",)),
    Concept("extracranial", (SCALP, SKULL, MUSCLE, MARROW, EYE),
            ("tissue outside the brain", "extracranial tissue", "head outside the brain", "skull and scalp", "non-brain tissue"),
            ("tissues around the brain",), neutral=(VESSEL,)),
    Concept("csf", (CSF, VENTRICLE), ("cerebrospinal fluid", "CSF", "CSF spaces", "cerebrospinal fluid in sulci and ventricles", "spinal fluid",
             "fluid spaces of the brain", "fluid in the sulci", "brain fluid"),
            ("the fluid around the brain",), neutral=(CAVITY,)),
    Concept("ventricle", (VENTRICLE,), ("ventricles", "lateral ventricle", "ventricular CSF", "ventricular system", "fluid-filled ventricles",
             "ventricles of the brain"),
            ("brain ventricle",), neutral=(CSF, CAVITY)),
    Concept("grey", (GREY,), ("grey matter", "gray matter", "cortex", "cortical grey matter", "normal grey matter", "cerebral cortex",
                              "deep gray matter"),
            ("gray matter of the cortex",)),
    Concept("white", (WHITE,), ("white matter", "normal white matter", "normal-appearing white matter", "healthy white matter",
                                "cerebral white matter"),
            ("white brain matter",), neutral=(GLIOSIS,)),
    Concept("healthy", (GREY, WHITE, CSF, VENTRICLE),
            ("normal brain", "healthy brain tissue", "brain without {d}", "healthy brain", "normal brain tissue", "unaffected brain",
             "brain without lesion",
             "normal-appearing brain", "unremarkable brain parenchyma", "brain without abnormality", "no {d}", "normal parenchyma",
             "tissue without {d}",
             "brain free of {d}", "brain that is normal", "brain not involved by {d}", "tissue that is not diseased"),
            ("brain that is not affected", "unaffected healthy parenchyma"), neutral=(SCALP, SKULL, MUSCLE, MARROW, EYE, VESSEL, GLIOSIS, AIR)),
    Concept("vessel", (VESSEL,), ("venous sinus", "blood vessel", "superior sagittal sinus", "vein"), ("large vein",)),
    Concept("oedema", (OEDEMA,),
            ("oedema", "edema", "peritumoural oedema", "vasogenic edema", "peritumoral edema", "swelling around the tumour", "perifocal oedema"),
            ("oedematous tissue", "edematous brain around a tumor"), neutral=(SOLID, FOCAL), lesion=True),
    Concept("rim", (ENHANCING,),
            ("enhancing rim", "enhancing tumour", "ring enhancement", "enhancing lesion", "contrast-enhancing tumor", "rim of viable tumour",
             "gadolinium-enhancing tumour", "enhancing tumor rim"),
            ("tumour rim that enhances", "rim-enhancing tumor"), neutral=(SOLID,), lesion=True),
    Concept("necrosis", (NECROSIS,), ("necrotic core", "necrosis", "tumour necrosis", "necrotic tumor centre", "dead tissue in the tumour",
                                      "central necrosis"),
            ("necrotic centre of the tumor",), neutral=(CAVITY,), lesion=True),
    Concept("core", (NECROSIS, ENHANCING, SOLID),
            ("tumour core", "tumor core", "tumour core with enhancing rim and necrosis", "solid and necrotic tumour", "core of the tumor",
             "tumour without oedema", "tumour mass"),
            ("core of the tumour", "enhancing and necrotic tumor core"), lesion=True),
    Concept("solid", (SOLID,), ("non-enhancing tumour", "infiltrating tumour", "solid tumour", "non-enhancing infiltrating glioma",
                                "diffuse tumor infiltration"),
            ("tumor that does not enhance",), neutral=(OEDEMA, ENHANCING), lesion=True),
    Concept("tumour", (NECROSIS, ENHANCING, OEDEMA, SOLID),
            ("glioma", "brain tumour", "whole tumour", "tumor", "tumour", "glioblastoma", "lower-grade glioma",
             "tumour with surrounding oedema", "astrocytoma",
             "whole tumor including edema", "neoplasm", "intracranial mass"),
            ("the entire glioma", "low grade glioma"), neutral=(FOCAL, CAVITY), lesion=True),
    Concept("abnormality", LESIONS,
            ("FLAIR abnormality", "lesion", "signal abnormality", "abnormal tissue", "FLAIR hyperintensity", "T2 hyperintense lesion", "pathology",
             "abnormal signal", "brain lesion", "T2/FLAIR abnormality", "area of abnormal signal", "FLAIR lesion", "diseased tissue"),
            ("abnormal FLAIR signal", "FLAIR signal abnormality"), neutral=(CAVITY, GLIOSIS), lesion=True),
    Concept("focal", (FOCAL,),
            ("multiple sclerosis lesion", "small focal lesion", "demyelinating plaque", "MS lesion", "small white matter lesion",
             "white matter lesion",
             "periventricular lesion", "focal lesion"),
            ("plaque of multiple sclerosis",), neutral=(GLIOSIS, OEDEMA, SOLID), lesion=True),
    Concept("cavity", (CAVITY,), ("resection cavity", "surgical cavity", "cyst", "fluid-filled cavity", "cystic lesion", "post-operative cavity"),
            ("cavity after resection",), neutral=(CSF, VENTRICLE, NECROSIS), lesion=True),
    Concept("brighter", LESIONS,
            ("lesion brighter than white matter", "hyperintense lesion", "bright lesion", "abnormality brighter than white matter",
             "hyperintense abnormality",
             "tissue brighter than normal white matter", "increased signal in a lesion", "high signal lesion"),
            ("bright abnormal area", "lesion with higher signal than white matter"), neutral=(CAVITY, GLIOSIS), lesion=True, relation=BRIGHTER),
    Concept("darker", LESIONS,
            ("lesion darker than white matter", "hypointense lesion", "dark lesion", "abnormality darker than white matter",
             "hypointense abnormality",
             "tissue darker than normal white matter", "decreased signal in a lesion", "low signal lesion"),
            ("dark abnormal area", "lesion with lower signal than white matter"), neutral=(CAVITY, GLIOSIS), lesion=True, relation=DARKER),
)


def verdicts(concepts: tuple[Concept, ...] = CONCEPTS) -> np.ndarray:
    """`(RELATIONS * LABELS, len(concepts))` of POSITIVE, NEGATIVE and NEUTRAL."""
    return np.array([[concept.verdict(label, relation) for concept in concepts] for relation in range(RELATIONS) for label in range(LABELS)], np.int8)


def phrase(concept: Concept, rng: np.random.Generator) -> str:
    """One random way to write `concept`, sometimes with words that say nothing (a scanner, noise), which the encoder learns to pass over."""
    pick = lambda options: options[rng.integers(len(options))]  # noqa: E731 - one word for one idea, used eight times below
    text = pick(concept.texts)
    if rng.random() > 0.2:
        text = pick(LESION_TEMPLATES if concept.lesion else TEMPLATES).replace("{c}", text)
    text = text.replace("{m}", pick(MODALITIES[pick(list(MODALITIES))])).replace("{d}", pick(DISEASES)).replace("{side}", pick(SIDES))
    text = text.replace("{place}", pick(PLACES)).replace("{s}", _scanner(rng))
    if rng.random() < 0.1:
        text = f"{text} {_noise_word(rng)}"
    return text.lower() if rng.random() < 0.3 else text


def _scanner(rng: np.random.Generator) -> str:
    vendor = VENDORS[rng.integers(len(VENDORS))]
    field = ["1.5 T", "3 T", "3T", "1.5T", "7 T", ""][rng.integers(6)]
    return f"{vendor} {_noise_word(rng).title()} {field}".strip() if rng.random() < 0.6 else f"{vendor} {field}".strip()


def _noise_word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list(string.ascii_lowercase), size=rng.integers(3, 9)))
