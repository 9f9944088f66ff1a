"""Rigid registration of a volume to a reference of another frame of reference, by mutual information.

Deterministic: fixed sampling seed, one thread. The pyramid is made of grids with a finest spacing, not of ITK's shrink factors, which
would shrink thick slices too. Several starts (as the header places it; field-of-view centres aligned; centres of mass aligned), because two
frames of reference need not share an origin at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import Refused
from pipelines.resample.sampling import sample, to_itk
from pipelines.resample.volumes import Volume

if TYPE_CHECKING:
    import SimpleITK

#: Finest spacing of the levels in mm, coarse to fine.
LEVELS_MM = (6.0, 3.0)
SAMPLES = 40_000  # per metric evaluation
HISTOGRAM_BINS = 32
SEED = 2026
ITERATIONS = 40
SAME_START_MM = 5.0  # starts closer than this end in the same place
#: Beyond these, measured from the start, two scans of one head do not lie: the optimiser got lost.
MAX_SHIFT_MM = 40.0
MAX_ROTATION_DEG = 30.0
REMEDY = "look at both images; a scan of another person or body part cannot be registered"
#: Mutual information in nats. Noise against a head has 0.06 with these samples and bins, two contrasts of one head have 0.4 and more.
MIN_INFORMATION = 0.1


@dataclass(frozen=True)
class Registration:
    """What was found. `transform` maps world coordinates of the reference to those of the moving volume."""

    transform: SimpleITK.Transform
    shift_mm: float  # of the reference's centre of mass, from where the header places it
    rotation_deg: float
    start: str
    information: float  # mutual information at the end, nats

    def __str__(self) -> str:
        return f"shift {self.shift_mm:.1f} mm, rotation {self.rotation_deg:.1f} deg, from {self.start}"


def register(reference: Volume, moving: Volume) -> Registration:
    """Rigid transform that brings `moving` onto `reference`. Raises Refused where none that can be believed is found."""
    with one_thread():
        return search([(at_level(reference, mm), at_level(moving, mm)) for mm in LEVELS_MM])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """ITK's metric adds up its threads' sums in the order they finish; a filter's own SetNumberOfThreads does not reach it."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def search(pyramid: list[tuple[Volume, Volume]]) -> Registration:
    """Coarse to fine from the best start; from the next one where that ends nowhere credible."""
    reference, moving = pyramid[0]
    pivot = mass_center(reference)
    starts = {
        "the headers' placement": np.zeros(3),
        "aligned fields of view": moving.grid.center() - reference.grid.center(),
        "aligned centres of mass": mass_center(moving) - pivot,
    }
    values = {name: information(reference, moving, euler(pivot, shift)) for name, shift in starts.items()}
    failures, tried = [], []
    for name in sorted(starts, key=lambda name: -values[name]):
        if any(np.linalg.norm(starts[name] - shift) < SAME_START_MM for shift in tried):
            continue
        tried.append(starts[name])
        found = euler(pivot, starts[name])
        for level in pyramid:
            found = optimise(*level, found)
        try:
            return credible(found, pyramid[-1], starts[name], name)
        except Refused as refused:
            failures.append(refused)
    raise failures[0]


def credible(found: SimpleITK.Euler3DTransform, level: tuple[Volume, Volume], start_shift: np.ndarray, start: str) -> Registration:
    """What was found, or Refused where two scans of one head do not lie so."""
    pivot = np.array(found.GetCenter())
    before, after = information(*level, euler(pivot, start_shift)), information(*level, found)
    if after < max(before, MIN_INFORMATION):
        raise Refused("registration", "its mutual information with the reference did not rise to a credible value "
                      f"({before:.3f} nats at the start, {after:.3f} at the end)", REMEDY)
    shift, rotation = np.array(found.TransformPoint(pivot.tolist())) - pivot, rotation_of(found)
    moved = float(np.linalg.norm(shift - start_shift))
    if moved > MAX_SHIFT_MM or rotation > MAX_ROTATION_DEG:
        raise Refused("registration", f"the registration ended {moved:.0f} mm and {rotation:.0f} deg from {start}, "
                      f"beyond {MAX_SHIFT_MM:.0f} mm or {MAX_ROTATION_DEG:.0f} deg", REMEDY)
    return Registration(found, float(np.linalg.norm(shift)), rotation, start, after)


def rotation_of(transform: SimpleITK.Euler3DTransform) -> float:
    """The angle of a rigid transform's rotation in degrees."""
    trace = np.trace(np.reshape(transform.GetMatrix(), (3, 3)))
    return float(np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))))


def at_level(volume: Volume, finest_mm: float) -> Volume:
    """The volume with no spacing finer than a level's, intensities clipped so that a few bright voxels do not take most bins."""
    grid = volume.grid.with_spacing(np.maximum(volume.grid.spacing, finest_mm))
    array = sample(volume, grid)
    return Volume(np.clip(array, *np.percentile(array, [0.1, 99.9])), grid)


def mass_center(volume: Volume) -> np.ndarray:
    """World coordinates of the intensity-weighted centre, the darkest value weighing nothing."""
    from scipy import ndimage

    weight = volume.array - volume.array.min()
    return volume.grid.world(np.array(ndimage.center_of_mass(weight))) if weight.any() else volume.grid.center()


def euler(pivot: np.ndarray, shift: np.ndarray) -> SimpleITK.Euler3DTransform:
    """A rigid transform that turns about `pivot` and only shifts so far."""
    import SimpleITK as sitk

    transform = sitk.Euler3DTransform()
    transform.SetCenter(pivot.tolist())
    transform.SetTranslation(np.asarray(shift).tolist())
    return transform


def mutual_information(fixed: Volume) -> SimpleITK.ImageRegistrationMethod:
    """Mattes mutual information over seeded random samples of `fixed`."""
    import SimpleITK as sitk

    registration = sitk.ImageRegistrationMethod()
    registration.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    registration.SetInterpolator(sitk.sitkLinear)
    registration.SetMetricSamplingStrategy(registration.RANDOM)
    registration.SetMetricSamplingPercentage(min(1.0, SAMPLES / fixed.array.size), SEED)
    return registration


def optimise(fixed: Volume, moving: Volume, start: SimpleITK.Euler3DTransform) -> SimpleITK.Euler3DTransform:
    """The transform reached from `start`, or `start` itself where nothing better is reached.

    Conjugate gradients with a line search: on ellipsoidal heads, where the information hardly depends on rotation, plain gradient descent
    stops some degrees short.
    """
    import SimpleITK as sitk

    registration = mutual_information(fixed)
    registration.SetOptimizerAsConjugateGradientLineSearch(
        learningRate=1.0, numberOfIterations=ITERATIONS, convergenceMinimumValue=1e-5, convergenceWindowSize=5,
        lineSearchMaximumIterations=8, estimateLearningRate=registration.Once)
    registration.SetOptimizerScalesFromPhysicalShift()
    registration.SetInitialTransform(sitk.Euler3DTransform(start), inPlace=True)
    try:
        found = sitk.Euler3DTransform(registration.Execute(to_itk(fixed), to_itk(moving)))
    except RuntimeError:  # ITK: the volumes do not overlap here, or no longer
        return start
    return max(start, found, key=lambda transform: information(fixed, moving, transform))


def information(fixed: Volume, moving: Volume, transform: SimpleITK.Transform) -> float:
    """Mutual information in nats, 0 where the volumes do not overlap."""
    registration = mutual_information(fixed)
    registration.SetInitialTransform(transform)
    try:
        return -registration.MetricEvaluate(to_itk(fixed), to_itk(moving))
    except RuntimeError:  # ITK: no sample falls on the moving volume
        return 0.0
