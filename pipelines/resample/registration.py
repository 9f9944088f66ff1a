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

from pipelines.resample.refusal import Refused
from pipelines.resample.sampling import sample, to_itk
from pipelines.resample.volumes import Volume

if TYPE_CHECKING:
    import SimpleITK

#: Finest spacing of the levels in mm, coarse to fine.
LEVELS_MM = (6.0, 3.0)
REFINED = 2  # starts that the fine level gets
SAMPLES = 20_000  # per metric evaluation
HISTOGRAM_BINS = 32
SEED = 2026
ITERATIONS = 100
#: Beyond these, measured from the start, two scans of one head do not lie: the optimiser got lost.
MAX_SHIFT_MM = 40.0
MAX_ROTATION_DEG = 30.0
REMEDY = "look at both images; a scan of another person or body part cannot be registered"
#: The metric of the samples is that noisy: an image already in place may end this much worse than it started.
WORSE = 1e-3
#: Mutual information in nats that two unrelated images do not reach with this many samples and bins.
MIN_INFORMATION = 0.05


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
    """Coarse level from every start, fine level from the best of them."""
    reference, moving = pyramid[0]
    pivot = mass_center(reference)
    starts = {
        "the headers' placement": np.zeros(3),
        "aligned fields of view": moving.grid.center() - reference.grid.center(),
        "aligned centres of mass": mass_center(moving) - pivot,
    }
    coarse = {}
    for name, shift in starts.items():
        try:
            coarse[name] = optimise(*pyramid[0], euler(pivot, shift), step_mm=2.0)
        except RuntimeError:  # ITK: no overlap at this start, or on the way
            continue
    if not coarse:
        raise Refused("registration", "it overlaps the reference nowhere, whichever way they are aligned", REMEDY)
    fine = {}
    for name in sorted(coarse, key=lambda name: coarse[name][1])[:REFINED]:
        with contextlib.suppress(RuntimeError):
            fine[name] = optimise(*pyramid[1], coarse[name][0], step_mm=0.5)
    if not fine:
        raise Refused("registration", "the registration left the overlap of the two volumes", REMEDY)
    start = min(fine, key=lambda name: fine[name][1])
    found, metric = fine[start]
    before = evaluate(*pyramid[1], euler(pivot, starts[start]))
    if metric > before + WORSE or -metric < MIN_INFORMATION:
        raise Refused("registration", "its mutual information with the reference did not rise to a credible value "
                      f"({-before:.3f} nats at the start, {-metric:.3f} at the end)", REMEDY)
    shift = np.array(found.TransformPoint(pivot.tolist())) - pivot
    rotation = rotation_of(found)
    moved = float(np.linalg.norm(shift - starts[start]))
    if moved > MAX_SHIFT_MM or rotation > MAX_ROTATION_DEG:
        raise Refused("registration", f"the registration ended {moved:.0f} mm and {rotation:.0f} deg from {start}, "
                      f"beyond {MAX_SHIFT_MM:.0f} mm or {MAX_ROTATION_DEG:.0f} deg", REMEDY)
    return Registration(found, float(np.linalg.norm(shift)), rotation, start, -metric)


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


def optimise(fixed: Volume, moving: Volume, start: SimpleITK.Euler3DTransform, step_mm: float) -> tuple[SimpleITK.Euler3DTransform, float]:
    """The transform reached from `start` and its metric (negative mutual information)."""
    import SimpleITK as sitk

    registration = mutual_information(fixed)
    registration.SetOptimizerAsRegularStepGradientDescent(learningRate=step_mm, minStep=step_mm / 200, numberOfIterations=ITERATIONS,
                                                          gradientMagnitudeTolerance=1e-6)
    registration.SetOptimizerScalesFromPhysicalShift()
    registration.SetInitialTransform(sitk.Euler3DTransform(start), inPlace=True)
    found = registration.Execute(to_itk(fixed), to_itk(moving))
    return sitk.Euler3DTransform(found), registration.GetMetricValue()


def evaluate(fixed: Volume, moving: Volume, transform: SimpleITK.Transform) -> float:
    """The metric of a transform, infinite where the volumes do not overlap there."""
    registration = mutual_information(fixed)
    registration.SetInitialTransform(transform)
    try:
        return registration.MetricEvaluate(to_itk(fixed), to_itk(moving))
    except RuntimeError:  # ITK: no sample falls on the moving volume
        return float("inf")
