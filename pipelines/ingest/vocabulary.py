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
#: Words of scanner models, of which many are also names: they stay only in ManufacturerModelName.
MODEL_WORDS = frozenset([
    "01", "02", "1.5", "1.5t", "128", "16", "256", "3.0", "3.0t", "32", "320", "3t", "40", "510", "550", "560", "570", "580", "590", "600", "610",
    "620", "64", "660", "690", "7.0", "710", "750", "770", "780", "790", "7t", "870", "880", "890", "970", "achieva", "advance", "aera", "allegra",
    "altea", "ambition", "amira", "anyscan", "aquilion", "area", "avanto", "avantofit", "biograph", "biograph128", "biograph16", "biograph40",
    "biograph6", "biograph64", "biographvision", "brightspeed", "brilliance", "canon", "centauri", "cima", "composer", "concerto", "connectome",
    "ct", "definition", "discovery", "dual", "ecat", "echelon", "eclipse", "edge", "elan", "elition", "emotion", "espree", "essenza", "evolution",
    "exact", "excel", "excite", "expert", "explorer", "galan", "ge", "gemini", "genesis", "gyroscan", "harmony", "hd", "hde", "hdx", "hdxt",
    "hispeed", "horizon", "hr", "hr+", "hrrt", "impact", "ingenia", "ingenuity", "intera", "iq", "iris", "lightspeed", "lumina", "lx", "magna",
    "magnetom", "mct", "medical", "mmr", "mr", "mr355", "mr360", "mr450", "mr450w", "mr750", "mr750w", "mrt", "msk", "nx", "oasis", "omni", "one",
    "optima", "orian", "orion", "panorama", "pet", "petct", "petmr", "philips", "pioneer", "plus", "premier", "prime", "prisma", "prismafit",
    "pro", "prodiva", "q", "quadra", "r", "recon", "revolution", "scenaria", "scope", "sensation", "siemens", "sigma", "signa", "skyfit", "skyra",
    "skyrafit", "sola", "somatom", "sonata", "spectra", "spirit", "st", "ste", "stx", "symphony", "symphonytim", "systems", "t", "terra", "tf",
    "tim", "time", "titan", "toshiba", "trio", "triotim", "truepoint", "truflight", "uct", "uex", "umi", "umr", "upmr", "vantage", "vereos",
    "verio", "vida", "vision", "vista", "voyager", "x", "xr", "xt", "xvr", "zenit", "zenition",
])
