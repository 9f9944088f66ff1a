"""Is this stack of slices a volume? Asked before any pixel is read, because readers differ in what they do with a damaged one.

Common readers fill, squeeze or reorder damaged stacks without a word. Here each kind of damage has a code and its numbers. Coordinates are
DICOM's (PS3.3 C.7.6.2.1.1): millimetres, LPS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.frames import Frame

ORIENTATION_TOL = 1e-3  # of a direction cosine, 0.06 degrees: rounding in headers is below, a localiser's planes are far above
UNIT_TOL = 1e-2  # of a direction's length and of two directions' cosine; highdicom's own limit
PIXEL_SPACING_TOL_MM = 1e-3
DUPLICATE_MM = 1e-2  # slices nearer than this are at the same place
SPACING_TOL = 1e-2  # of the mean step; highdicom's own limit
ROUNDING_MM = 2e-2  # two positions written with two decimals are this far off at most
AFFINE_TOL_MM = 0.1  # how far a slice may lie from where the affine puts it
MULTIPLE_TOL = 0.1  # how far a gap may be from a whole number of steps to count as missing slices
MOST_MISSING = 4  # times as many slices as there are: beyond it gaps are uneven, not holes
EXPORT_AGAIN = "export the series again"
NAMED_PLACES = 4  # places that a message lists


@dataclass(frozen=True)
class Stack:
    """A regular stack: its frames' order along the normal, and the step from one to the next (mm, LPS)."""

    order: tuple[int, ...]
    step: tuple[float, float, float]


def check_uniform(values: Sequence[object], code: str, what: str, remedy: str) -> None:
    """Refuse a series whose slices differ in `values` (sizes, frames of reference, ...). The values themselves may identify."""
    if len(kinds := Counter(values)) > 1:
        raise Refused(code, f"its {len(values)} slices have {len(kinds)} different {what} ({_shares(kinds)} slices)", remedy)


def places(frames: Sequence[Frame]) -> np.ndarray:
    """For each frame the number of its place along the stack's normal `(n,)`, from 0. Raises `Refused` where frames have no common normal."""
    names = ("orientation", "position", "spacing")
    orientations, positions, spacings = (np.array([getattr(frame, name) for frame in frames], float) for name in names)
    check_numbers(orientations, positions, spacings)
    depth = positions @ _normal(orientations)
    order = np.argsort(depth, kind="stable")
    number = np.empty(len(depth), int)
    number[order] = np.concatenate([[0], np.cumsum(np.diff(depth[order]) > DUPLICATE_MM)])
    return number


def check_numbers(orientations: np.ndarray, positions: np.ndarray, spacings: np.ndarray) -> None:
    """Refuse impossible or differing orientations `(n, 6)`, positions `(n, 3)` in mm and pixel spacings `(n, 2)` in mm."""
    for array, what in ((orientations, "ImageOrientationPatient"), (positions, "ImagePositionPatient"), (spacings, "PixelSpacing")):
        if bad := int((~np.isfinite(array)).any(axis=1).sum()):
            raise Refused("no-geometry", f"{what} has values that are no numbers in {bad} of {len(array)} slices", EXPORT_AGAIN)
    if (spacings <= 0).any():
        raise Refused("no-geometry", f"PixelSpacing is {spacings.min():g} mm", EXPORT_AGAIN)
    if (spread := np.ptp(spacings, axis=0).max()) > PIXEL_SPACING_TOL_MM:
        raise Refused("mixed-spacing", f"PixelSpacing differs by {spread:.3g} mm between slices", "split it into one series per acquisition")
    rows, columns = orientations[:, :3], orientations[:, 3:]
    skew = np.abs(np.einsum("ni,ni->n", rows, columns)).max()
    if max(skew, *(np.abs(np.linalg.norm(axis, axis=1) - 1).max() for axis in (rows, columns))) > UNIT_TOL:
        raise Refused("no-geometry", "ImageOrientationPatient is not a pair of perpendicular unit vectors", EXPORT_AGAIN)
    if (spread := np.ptp(orientations, axis=0).max()) > ORIENTATION_TOL:
        planes = Counter(map(tuple, np.round(orientations, 2)))
        raise Refused("mixed-orientation", f"its slices lie in {max(len(planes), 2)} different orientations ({_shares(planes)} slices, direction "
                      f"cosines differ by {spread:.3g})",
                      "split it into one series per orientation; a localiser can be skipped with a rule in params ingest.rules")


def check_stack(frames: Sequence[Frame]) -> Stack:
    """The order and the step of frames with one orientation, one at each place. Raises `Refused` for those that make no regular volume."""
    if len(frames) < 2:
        raise Refused("single-slice", "it has one slice, which has no slice spacing", "give a series with at least two slices")
    positions = np.array([frame.position for frame in frames], float)
    normal = _normal(np.array([frame.orientation for frame in frames], float))
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    depth, positions = depth[order], positions[order]
    gaps = np.diff(depth)
    lateral = positions - np.outer(depth, normal)
    _check_lateral(depth, lateral, gaps)
    _check_gaps(depth, gaps)
    ideal = np.linspace(positions[0], positions[-1], len(positions))
    if (off := np.linalg.norm(positions - ideal, axis=1).max()) > AFFINE_TOL_MM:
        raise Refused("uneven-spacing", f"a slice lies {off:.2f} mm from where an even step would put it", "resample it onto an even grid first "
                      "(params ingest.repair: true does, with dcm2niix) and give the NIfTI")
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    return Stack(tuple(order.tolist()), tuple(step.tolist()))


def _check_lateral(depth: np.ndarray, lateral: np.ndarray, gaps: np.ndarray) -> None:
    """Refuse slices that do not lie straight above each other."""
    slide = np.linalg.norm(lateral - lateral[0], axis=1)
    if slide.max() <= AFFINE_TOL_MM:
        return
    jumps = np.flatnonzero(np.linalg.norm(np.diff(lateral, axis=0), axis=1) > AFFINE_TOL_MM)
    runs = np.diff([-1, *jumps, len(gaps)])  # slices in a row at one lateral place
    if len(runs) > 1 and runs.min() > 1 and slide.max() > 2 * AFFINE_TOL_MM:
        raise Refused("several-stacks", f"it holds {len(runs)} stacks of slices ({' + '.join(map(str, runs[:5]))}), up to {slide.max():.1f} mm "
                      "beside each other", "split it into one series per stack")
    angle = np.degrees(np.arctan2(slide.max(), np.ptp(depth)))
    raise Refused("tilted-stack", f"its slices slide {slide.max():.2f} mm sideways over the stack ({angle:.1f} degrees, gantry tilt or shifted "
                  "slices)", "resample it onto an upright grid first (params ingest.repair: true does, with dcm2niix) and give the NIfTI")


def _check_gaps(depth: np.ndarray, gaps: np.ndarray) -> None:
    step = float(np.median(gaps)) if len(gaps) > 2 else float(gaps.min())
    if np.abs(gaps - gaps.mean()).max() <= max(SPACING_TOL * gaps.mean(), ROUNDING_MM):
        return
    for unit in dict.fromkeys([step, float(gaps.min())]):
        multiples = np.round(gaps / unit)
        if multiples.min() >= 1 and multiples.max() > 1 and np.abs(gaps / unit - multiples).max() < MULTIPLE_TOL:
            if multiples.sum() > MOST_MISSING * len(depth):
                continue  # any gaps are whole numbers of a step that is small enough
            holes = [(depth[index] - depth[0], int(multiples[index])) for index in np.flatnonzero(multiples > 1)]
            missing = [before + unit * number for before, size in holes for number in range(1, size)]
            raise Refused("missing-slices", f"{len(missing)} of {len(depth) + len(missing)} slices missing at {_listed(missing)} from the first "
                          f"slice (step {unit:.4g} mm)", f"{EXPORT_AGAIN}, whole")
    odd = np.flatnonzero(np.abs(gaps - step) > max(SPACING_TOL * step, ROUNDING_MM))
    if len(odd) == 1 and gaps[odd[0]] > step and 0 < odd[0] < len(gaps) - 1:
        raise Refused("several-stacks", f"it holds two stacks of slices ({odd[0] + 1} + {len(depth) - odd[0] - 1}), {gaps[odd[0]]:.4g} mm apart at "
                      f"a step of {step:.4g} mm", "split it into one series per stack")
    uneven = np.abs(gaps / gaps.mean() - 1).max()
    raise Refused("uneven-spacing", f"the step between slices runs from {gaps.min():.4g} to {gaps.max():.4g} mm, {100 * uneven:.1f} % off the mean",
                  "resample it onto an even grid first (params ingest.repair: true does, with dcm2niix) and give the NIfTI")


def _normal(orientations: np.ndarray) -> np.ndarray:
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    return normal / np.linalg.norm(normal)


def _listed(places_mm: Sequence[float]) -> str:
    words = [f"{place:.1f}" for place in places_mm[:NAMED_PLACES]]
    more = f" and {len(places_mm) - NAMED_PLACES} more places" if len(places_mm) > NAMED_PLACES else ""
    return (" and ".join(words) if len(words) < 3 and not more else ", ".join(words)) + " mm" + more


def _shares(kinds: Counter) -> str:
    return " + ".join(str(count) for count in sorted(kinds.values(), reverse=True)[:5])
