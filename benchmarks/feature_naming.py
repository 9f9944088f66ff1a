"""What Atlas names without any label: the lesion on FLAIR, and the tissues of a brain-extracted T1.

All texts were written down before any score was seen. None is chosen by case; the finding's own words are the cohort's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.feature_encoders import load_atlas
from benchmarks.feature_template import TISSUES, template_tissues
from benchmarks.features_data import Cohort
from pipelines.cohort import Case
from pipelines.errors import UsageError
from pipelines.evaluate.metrics import dice
from pipelines.threads import one_thread

if TYPE_CHECKING:
    from pipelines.backbones.atlas import Atlas
    from pipelines.params import Params

LESION_IMAGE, TISSUE_IMAGE = "FLAIR", "T1w"
FINDING = "finding"
#: {label} and {disease} are the cohort's own words.
FINDING_TEXTS = ("{label}", "{label} on FLAIR", "{disease} on FLAIR", "lesion brighter than white matter on FLAIR")
#: Everything else that a voxel of a head can be. A class is the mean of its texts.
OTHER_TEXTS = {
    "air": ("air around the head", "background outside the head"),
    "extracranial": ("tissue outside the brain",),
    "scalp": ("scalp",),
    "skull": ("skull",),
    "eye": ("eye",),
    "csf": ("cerebrospinal fluid", "ventricles"),
    "grey": ("grey matter", "grey matter on FLAIR"),
    "white": ("white matter", "white matter on FLAIR"),
}
#: In the order of TISSUES.
TISSUE_TEXTS = {"csf": ("cerebrospinal fluid", "cerebrospinal fluid on T1"), "grey": ("grey matter", "grey matter on T1"),
                "white": ("white matter", "white matter on T1")}
#: Cohorts of brain-extracted images, to which the template's maps can be laid as a (blurred) truth.
BRAIN_EXTRACTED = ("open-ms",)
MIXTURE_VOXELS = 50_000
SNAPSHOT = re.compile(r"step-(\d+)")


def zero_shot(cohort: Cohort, case: Case, folder: Path) -> float:
    """Dice of all labels together against what the text of the finding names on FLAIR, over the whole volume."""
    with one_thread():
        return dice(case.label() > 0, named_by(load_atlas(folder), cohort.params, case))


def named_by(atlas: Atlas, params: Params, case: Case) -> np.ndarray:
    """The voxels of the FLAIR that the text of the cohort's findings names, as a mask."""
    from pipelines.backbones.atlas.evaluation import find_pixels

    labels, disease = params.cohort.labels, params.cohort.disease
    finding = tuple(dict.fromkeys(text.format(label=label.text, disease=disease) for label in labels for text in FINDING_TEXTS))
    return find_pixels(atlas, case.image(LESION_IMAGE), case.spacing_mm, {FINDING: finding, **OTHER_TEXTS}, FINDING)


def tissues(case: Case, folder: Path) -> list[tuple[str, str, float]]:
    """(features, tissue, Dice) against the template's maps: Atlas by text, and a Gaussian mixture of the grey levels.

    The mixture is what a good segmentation of this very brain reaches: the rest is how an individual differs from an average.
    """
    brain, maps = case.foreground(), template_tissues(case, TISSUE_IMAGE)
    from pipelines.backbones.atlas.evaluation import name_pixels

    with one_thread():
        named = name_pixels(load_atlas(folder), case.image(TISSUE_IMAGE), case.spacing_mm, TISSUE_TEXTS)
    mixture = mixture_tissues(case.image(TISSUE_IMAGE), brain)
    return [(features, tissue, dice(brain & (maps == index), brain & (found == index)))
            for features, found in (("atlas", named), ("gaussian-mixture", mixture)) for index, tissue in enumerate(TISSUES)]


def mixture_tissues(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Three classes by grey level, darkest first, as T1 orders CSF, grey and white matter; 0 outside the brain too."""
    from sklearn.mixture import GaussianMixture

    values = image[brain][:, None]
    generator = np.random.default_rng(0)
    chosen = generator.choice(len(values), min(len(values), MIXTURE_VOXELS), replace=False)
    mixture = GaussianMixture(3, random_state=0, means_init=np.percentile(values, [10, 50, 85])[:, None]).fit(values[chosen])
    rank = np.argsort(np.argsort(mixture.means_[:, 0]))
    found = np.zeros(image.shape, np.int64)
    found[brain] = rank[mixture.predict(values)]
    return found


def snapshots(folder: Path) -> dict[int, Path]:
    """Step -> Atlas's folder at that step, in order. Raises `UsageError` where there is none."""
    found = {int(match[1]): path for path in folder.glob("step-*") if path.is_dir() and (match := SNAPSHOT.fullmatch(path.name))}
    if not found:
        raise UsageError(f"--snapshots {folder} has no folder named step-<number>; give the one that pretraining writes its snapshots to")
    return dict(sorted(found.items()))
