"""Words that may leave a free-text field of a header. Free text can hold anything, also a name, so nothing else of it is ever written."""

from __future__ import annotations

#: Words of series descriptions that say what an image is.
SERIES_WORDS = frozenset([
    "2d", "3d", "abdomen", "ac", "adc", "asl", "ax", "axial", "b0", "b1000", "blade", "brain", "bravo", "breast", "c", "cbf", "cbv", "ce", "ciss",
    "con", "contrast", "cor", "coronal", "ct", "cube", "dark", "dce", "diffusion", "dixon", "dsc", "dt1", "dti", "dwi", "dyn", "dynamic", "fa",
    "fat", "fdg", "fet", "fiesta", "flair", "fluid", "fs", "fse", "fspgr", "gad", "gado", "gadolinium", "gd", "ge", "gre", "haste", "head", "ir",
    "iso", "km", "ktrans", "lesion", "liver", "loc", "localiser", "localizer", "map", "mask", "mm", "mpr", "mprage", "mr", "mra", "mtt", "nac",
    "ncbf", "neck", "non", "nrcbv", "obl", "oblique", "pd", "pdw", "pelvis", "perf", "perfusion", "pet", "plus", "post", "pre", "propeller",
    "prostate", "rcbv", "recon", "reg", "registered", "research", "sag", "sagittal", "sat", "scan", "scout", "se", "seg", "segmentation",
    "series", "space", "spgr", "spine", "srcbv", "ssfp", "stir", "sub", "subtraction", "survey", "suv", "swan", "swi", "t1", "t1post", "t1pre",
    "t1w", "t1wi", "t2", "t2flair", "t2w", "t2wi", "thick", "thin", "tirm", "tof", "tra", "trace", "transverse", "tse", "ttp", "tumor", "tumour",
    "vista", "water", "with", "without",
])
#: Words that name segments of labels.
SEGMENT_WORDS = frozenset([
    "abnormality", "and", "background", "bone", "brain", "breast", "cavity", "ce", "core", "csf", "ctv", "cyst", "cystic", "edema", "enhancing",
    "flair", "foreground", "gray", "grey", "gtv", "heart", "infiltration", "kidney", "label", "left", "lesion", "lesions", "liver", "lung",
    "mask", "matter", "necrosis", "necrotic", "non", "oedema", "of", "prostate", "ptv", "region", "resection", "right", "rim", "ring", "roi",
    "segment", "skin", "skull", "spine", "spleen", "t1", "t2", "target", "the", "tumor", "tumour", "ventricle", "ventricles", "white", "whole",
])
