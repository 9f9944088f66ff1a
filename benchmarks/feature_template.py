"""The MNI152 tissue maps that nilearn ships, laid over one brain: a truth for tissues where nobody has drawn any.

"MNI space" in a data set's description can mean no more than the template's axes and centre, with every brain at its own size. So the
template's T1 is registered to the case's (affine), and the maps follow. Nothing that is judged takes part in it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pipelines.cohort import Case
from pipelines.resample.grid import Grid
from pipelines.resample.registration import at_level, mass_center, mutual_information, one_thread
from pipelines.resample.sampling import sample, to_itk
from pipelines.resample.volumes import Volume

if TYPE_CHECKING:
    import SimpleITK

TISSUES = ("csf", "grey", "white")
#: Finest spacing of the levels in mm, coarse to fine.
LEVELS_MM = (6.0, 3.0)
ITERATIONS = 60


def template_tissues(case: Case, modality: str = "T1w") -> np.ndarray:
    """The most probable tissue of every voxel of a brain-extracted case, `(S, H, W)`: an index into TISSUES (CSF is what is neither)."""
    fixed = volume_of(case, modality)
    template, grey, white = template_maps()
    with one_thread():
        transform = registered(fixed, template)
        grey, white = (sample(Volume(values, template.grid), fixed.grid, transform) for values in (grey, white))
    return np.moveaxis(np.stack([1 - grey - white, grey, white]).argmax(0), case.slice_axis, 0)


def volume_of(case: Case, modality: str) -> Volume:
    """An image as it is stored; outside the head lies the least value, as in the template, and not the median."""
    import nibabel

    image = nibabel.load(case.images[modality])
    array = np.asarray(image.dataobj, np.float32)
    inside = np.moveaxis(case.foreground(), 0, case.slice_axis)
    array = np.where(inside, array - array[inside].min(), 0)
    return Volume(array, Grid(array.shape, np.asarray(image.affine, float)))


@lru_cache(maxsize=1)
def template_maps() -> tuple[Volume, np.ndarray, np.ndarray]:
    """The template's brain-extracted T1, and its grey and white matter maps on the same grid, at 1 mm."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    image, grey, white = (load(resolution=1) for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template))
    array = image.get_fdata(dtype=np.float32)
    return Volume(array, Grid(array.shape, np.asarray(image.affine, float))), grey.get_fdata(dtype=np.float32), white.get_fdata(dtype=np.float32)


def registered(fixed: Volume, moving: Volume) -> SimpleITK.Transform:
    """The affine transform that takes world coordinates of `fixed` to those of `moving`, by mutual information, from aligned centres of mass."""
    import SimpleITK as sitk

    affine, pivot = sitk.AffineTransform(3), mass_center(fixed)
    affine.SetCenter(pivot.tolist())
    affine.SetTranslation((mass_center(moving) - pivot).tolist())
    for level_mm in LEVELS_MM:
        fixed_level, moving_level = at_level(fixed, level_mm), at_level(moving, level_mm)
        registration = mutual_information(fixed_level)
        registration.SetOptimizerAsConjugateGradientLineSearch(
            learningRate=1.0, numberOfIterations=ITERATIONS, convergenceMinimumValue=1e-5, convergenceWindowSize=5, lineSearchMaximumIterations=8,
            estimateLearningRate=registration.Once)
        registration.SetOptimizerScalesFromPhysicalShift()
        registration.SetInitialTransform(affine, inPlace=True)
        affine = sitk.AffineTransform(registration.Execute(to_itk(fixed_level), to_itk(moving_level)))
    return affine
