"""What a pixel can be called: concepts, the labels each covers, and the words people use for them (`phrases` makes sentences of these)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Labels of the synthetic slices: `pipelines.phantoms.anatomy.Tissue`, and what is painted besides: four kinds of lesion,
#: and the lining of nose and sinuses (`face`).
(AIR, SCALP, SKULL, CSF, GREY, WHITE, VENTRICLE, EYE, MUSCLE, MARROW, VESSEL, GLIOSIS, NECROSIS, ENHANCING, OEDEMA,
 SOLID, FOCAL, CAVITY, INFARCT, MUCOSA) = range(20)
LABELS = 20
LESIONS = (NECROSIS, ENHANCING, OEDEMA, SOLID, FOCAL, INFARCT)
#: What lies inside the skull, vessels apart.
INTRACRANIAL = (CSF, GREY, WHITE, VENTRICLE, GLIOSIS, CAVITY, *LESIONS)
#: How much each label counts besides its frequency: the brain and its lesions are the point, vessels and the thin layers outside are not.
IMPORTANCE = (0.5, 0.4, 0.4, 1.0, 1.0, 1.0, 1.0, 0.3, 0.3, 0.2, 0.2, 0.0, 1.0, 1.2, 1.2, 1.2, 1.2, 0.8, 1.0, 0.6)
#: How a lesion compares with white matter in the image at hand; the row of a (label, relation) pair is `relation * LABELS + label`.
DARKER, SIMILAR, BRIGHTER = range(3)
RELATIONS = 3

#: In this order the verdict on several conditions at once is the smallest of theirs.
NEGATIVE, NEUTRAL, POSITIVE = range(3)

@dataclass(frozen=True)
class Concept:
    """One meaning. `neutral` labels are neither called so nor the opposite; `held_out` phrasings are for evaluation only.

    What is in `MORE_TEXTS` is learnt by the text tower alone (`training.widen_text`).

    `placed` concepts can be said to lie in a lobe or on a side.
    """

    name: str
    labels: tuple[int, ...]
    texts: tuple[str, ...]
    held_out: tuple[str, ...]
    neutral: tuple[int, ...] = ()
    lesion: bool = False
    placed: bool = False
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
            neutral=(MUSCLE, MARROW, MUCOSA)),
    Concept("skull", (SKULL,), ("skull", "skull bone", "cortical bone", "calvarium", "bone of the skull", "cranial bone"), ("the bony skull",),
            neutral=(MARROW,)),
    Concept("marrow", (MARROW,), ("bone marrow of the skull", "diploe", "skull marrow", "diploic space"), ("marrow in the skull bone",),
            neutral=(SKULL,)),
    Concept("muscle", (MUSCLE,), ("muscle", "muscle and skin", "temporalis muscle", "skin", "facial muscle"), ("muscle of the face",),
            neutral=(SCALP, MUCOSA)),
    Concept("eye", (EYE,), ("eye", "eyeball", "orbit", "globe of the eye", "vitreous body"), ("the eyes",)),
    Concept("extracranial", (SCALP, SKULL, MUSCLE, MARROW, EYE, MUCOSA),
            ("tissue outside the brain", "extracranial tissue", "head outside the brain", "skull and scalp", "non-brain tissue"),
            ("tissues around the brain",), neutral=(VESSEL,)),
    Concept("csf", (CSF, VENTRICLE), ("cerebrospinal fluid", "CSF", "CSF spaces", "cerebrospinal fluid in sulci and ventricles", "spinal fluid",
             "fluid spaces of the brain", "fluid in the sulci", "brain fluid", "subarachnoid space", "fluid in and outside the ventricles",
             "fluid surrounding brain tissue", "liquor spaces", "cisterns and sulci"),
            ("the fluid around the brain", "subarachnoid cerebrospinal fluid"), neutral=(CAVITY,)),
    Concept("ventricle", (VENTRICLE,), ("ventricles", "lateral ventricle", "ventricular CSF", "ventricular system", "fluid-filled ventricles",
             "ventricles of the brain"),
            ("brain ventricle",), neutral=(CSF, CAVITY)),
    Concept("grey", (GREY,), ("grey matter", "gray matter", "cortex", "cortical grey matter", "normal grey matter", "cerebral cortex",
                              "deep gray matter"),
            ("gray matter of the cortex",), placed=True),
    Concept("white", (WHITE,), ("white matter", "normal white matter", "normal-appearing white matter", "healthy white matter",
                                "cerebral white matter"),
            ("white brain matter",), neutral=(GLIOSIS,), placed=True),
    Concept("brain", (GREY, WHITE, VENTRICLE, GLIOSIS, *LESIONS, CAVITY),
            ("brain", "brain tissue", "part of the brain", "cerebrum", "the brain", "intracranial tissue"), ("tissue of the brain",),
            neutral=(CSF, VESSEL), placed=True),
    Concept("healthy", (GREY, WHITE, CSF, VENTRICLE),
            ("normal brain", "healthy brain tissue", "brain without {d}", "healthy brain", "normal brain tissue", "unaffected brain",
             "brain without lesion",
             "normal-appearing brain", "unremarkable brain parenchyma", "brain without abnormality", "no {d}", "normal parenchyma",
             "tissue without {d}",
             "brain free of {d}", "brain that is normal", "brain not involved by {d}", "tissue that is not diseased"),
            ("brain that is not affected", "unaffected healthy parenchyma"),
            neutral=(SCALP, SKULL, MUSCLE, MARROW, EYE, MUCOSA, VESSEL, GLIOSIS, AIR), placed=True),
    Concept("vessel", (VESSEL,), ("venous sinus", "blood vessel", "superior sagittal sinus", "vein"), ("large vein",)),
    Concept("oedema", (OEDEMA,),
            ("oedema", "edema", "peritumoural oedema", "vasogenic edema", "peritumoral edema", "swelling around the tumour", "perifocal oedema"),
            ("oedematous tissue", "edematous brain around a tumor"), neutral=(SOLID, FOCAL, INFARCT), lesion=True, placed=True),
    Concept("rim", (ENHANCING,),
            ("enhancing rim", "enhancing tumour", "ring enhancement", "enhancing lesion", "contrast-enhancing tumor", "rim of viable tumour",
             "gadolinium-enhancing tumour", "enhancing tumor rim"),
            ("tumour rim that enhances", "rim-enhancing tumor"), neutral=(SOLID,), lesion=True, placed=True),
    Concept("necrosis", (NECROSIS,), ("necrotic core", "necrosis", "tumour necrosis", "necrotic tumor centre", "dead tissue in the tumour",
                                      "central necrosis"),
            ("necrotic centre of the tumor",), neutral=(CAVITY,), lesion=True, placed=True),
    Concept("core", (NECROSIS, ENHANCING, SOLID),
            ("tumour core", "tumor core", "tumour core with enhancing rim and necrosis", "solid and necrotic tumour", "core of the tumor",
             "tumour without oedema", "tumour mass"),
            ("core of the tumour", "enhancing and necrotic tumor core"), lesion=True, placed=True),
    Concept("solid", (SOLID,), ("non-enhancing tumour", "infiltrating tumour", "solid tumour", "non-enhancing infiltrating glioma",
                                "diffuse tumor infiltration"),
            ("tumor that does not enhance",), neutral=(OEDEMA, ENHANCING), lesion=True, placed=True),
    Concept("tumour", (NECROSIS, ENHANCING, OEDEMA, SOLID),
            ("glioma", "brain tumour", "whole tumour", "tumor", "tumour", "glioblastoma", "lower-grade glioma",
             "tumour with surrounding oedema", "astrocytoma",
             "whole tumor including edema", "neoplasm", "intracranial mass"),
            ("the entire glioma", "low grade glioma"), neutral=(FOCAL, CAVITY, INFARCT), lesion=True, placed=True),
    Concept("abnormality", LESIONS,
            ("FLAIR abnormality", "lesion", "signal abnormality", "abnormal tissue", "FLAIR hyperintensity", "T2 hyperintense lesion", "pathology",
             "abnormal signal", "brain lesion", "T2/FLAIR abnormality", "area of abnormal signal", "FLAIR lesion", "diseased tissue",
             "abnormality", "abnormal region"),
            ("abnormal FLAIR signal", "FLAIR signal abnormality"), neutral=(CAVITY, GLIOSIS), lesion=True, placed=True),
    Concept("focal", (FOCAL,),
            ("multiple sclerosis lesion", "small focal lesion", "demyelinating plaque", "MS lesion", "small white matter lesion",
             "white matter lesion",
             "periventricular lesion", "focal lesion"),
            ("plaque of multiple sclerosis",), neutral=(GLIOSIS, OEDEMA, SOLID, INFARCT), lesion=True, placed=True),
    Concept("infarct", (INFARCT,),
            ("infarct", "ischaemic stroke", "stroke lesion", "territorial infarction", "ischemic lesion", "infarcted territory",
             "cerebral infarction"),
            ("infarcted brain tissue",), neutral=(SOLID, OEDEMA, FOCAL), lesion=True, placed=True),
    Concept("cavity", (CAVITY,), ("resection cavity", "surgical cavity", "cyst", "fluid-filled cavity", "cystic lesion", "post-operative cavity"),
            ("cavity after resection",), neutral=(CSF, VENTRICLE, NECROSIS), lesion=True, placed=True),
    Concept("brighter", LESIONS,
            ("lesion brighter than white matter", "hyperintense lesion", "bright lesion", "abnormality brighter than white matter",
             "hyperintense abnormality",
             "tissue brighter than normal white matter", "increased signal in a lesion", "high signal lesion"),
            ("bright abnormal area", "lesion with higher signal than white matter"), neutral=(CAVITY, GLIOSIS), lesion=True,
            placed=True, relation=BRIGHTER),
    Concept("darker", LESIONS,
            ("lesion darker than white matter", "hypointense lesion", "dark lesion", "abnormality darker than white matter",
             "hypointense abnormality",
             "tissue darker than normal white matter", "decreased signal in a lesion", "low signal lesion"),
            ("dark abnormal area", "lesion with lower signal than white matter"), neutral=(CAVITY, GLIOSIS), lesion=True,
            placed=True, relation=DARKER),
)


#: Further ways to say it, for a text tower that has to understand phrasings it was never shown.
MORE_TEXTS = {
    "outside": ("empty space around the head", "air outside the body", "nothing, outside the patient", "dark surroundings of the head",
               "image corner without tissue", "air next to the skin", "background noise outside the head"),
    "scalp": ("fatty layer under the skin", "fat outside the skull", "fatty tissue of the scalp", "bright fat around the skull",
             "soft tissue of the scalp"),
    "skull": ("bone around the brain", "compact bone", "skull vault", "bone of the head", "dark bone between scalp and brain"),
    "marrow": ("fatty marrow in the skull", "marrow between the tables of the skull", "spongy bone of the skull"),
    "muscle": ("chewing muscle", "muscles of the head", "facial soft tissue", "muscle outside the skull", "skin and muscle of the head"),
    "eye": ("eyeballs", "ocular globe", "orbital contents", "eye in the orbit"),
    "extracranial": ("structures outside the brain", "soft tissue surrounding the brain", "everything in the head but the brain",
                    "layers around the brain", "coverings of the brain and head", "tissue that is not brain", "face, skull and scalp",
                    "tissue around the cranial cavity", "structures of the head surrounding the brain", "skin, fat, muscle and bone"),
    "csf": ("water around the brain", "fluid outside and inside the brain", "cerebrospinal spaces", "fluid that surrounds the brain",
           "fluid of the subarachnoid space", "csf around the brain", "free fluid in the head", "cerebral fluid spaces", "sulcal fluid"),
    "ventricle": ("fluid chamber inside the brain", "third ventricle", "fourth ventricle", "ventricles inside the brain",
                 "lateral ventricles filled with fluid", "ventricle of the brain"),
    "grey": ("grey matter of the brain", "gray matter ribbon", "cortical ribbon", "grey substance", "cortical gray matter",
            "cerebral gray matter", "grey brain matter", "normal cortex"),
    "white": ("white substance", "deep white matter", "white matter of the brain", "subcortical white matter", "white matter tracts",
             "normal cerebral white matter", "matter that is white"),
    "brain": ("cerebral tissue", "inside of the skull", "brain parenchyma", "whole brain", "any brain tissue", "tissue inside the skull"),
    "healthy": ("brain as it should be", "brain unaffected by {d}", "no abnormality of the brain", "parenchyma without lesion",
               "intact brain tissue", "brain that looks normal", "brain with nothing wrong", "brain spared by {d}", "not affected by {d}",
               "healthy parenchyma of the brain", "uninvolved brain"),
    "vessel": ("large blood vessel", "dural sinus", "venous blood", "sinus of the dura", "draining vein"),
    "oedema": ("brain swelling", "swollen tissue around the tumor", "edematous tissue", "edema around a tumour", "oedematous white matter",
              "fluid accumulation around the tumour", "vasogenic swelling"),
    "rim": ("ring of contrast uptake", "part of the tumour that takes up contrast", "enhancing ring", "contrast uptake of the tumor",
           "rim enhancement", "enhancing part of the tumour"),
    "necrosis": ("dead centre of the tumour", "necrotic part of the tumor", "necrotic tissue", "centre of the tumour without perfusion",
                "liquefied tumour core"),
    "core": ("central part of the tumour", "tumour proper", "core of the lesion", "tumour centre and rim", "solid part with necrosis"),
    "solid": ("tumor without contrast enhancement", "part of the tumour that takes up no contrast", "diffusely infiltrating tumour tissue",
             "non enhancing tumor", "infiltration by tumour without enhancement"),
    "tumour": ("all of the tumour", "complete tumour", "mass lesion", "malignant brain tumour", "tumour of the brain", "low-grade tumour",
              "high-grade glioma", "extent of the glioma", "diffuse glioma"),
    "abnormality": ("anything abnormal", "signal alteration", "altered signal", "abnormal area", "abnormal brain tissue",
                   "hyperintense area on FLAIR", "changed tissue", "FLAIR change", "something that should not be there",
                   "abnormality of the FLAIR signal"),
    "focal": ("MS plaque", "plaques", "demyelination", "small lesions of multiple sclerosis", "punctate white matter lesion",
             "lesion of demyelination"),
    "infarct": ("stroke territory", "infarcted area", "ischaemia", "brain infarct", "dead brain after a stroke", "tissue lost to a stroke"),
    "cavity": ("hole after surgery", "cavity left by surgery", "fluid-filled hole", "cystic part", "cyst in the brain", "resected area"),
    "brighter": ("area with more signal than white matter", "lesion that is brighter than normal", "lesion of high intensity",
                "bright area in the brain that is abnormal", "lesion with increased signal compared with white matter",
                "abnormally bright tissue"),
    "darker": ("area with less signal than white matter", "lesion that is darker than normal", "lesion of low intensity",
              "dark area in the brain that is abnormal", "lesion with decreased signal compared with white matter", "abnormally dark tissue"),
}


def verdicts(concepts: tuple[Concept, ...] = CONCEPTS) -> np.ndarray:
    """`(RELATIONS * LABELS, len(concepts))` of POSITIVE, NEGATIVE and NEUTRAL."""
    return np.array([[concept.verdict(label, relation) for concept in concepts] for relation in range(RELATIONS) for label in range(LABELS)], np.int8)
