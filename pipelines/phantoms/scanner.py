"""How a site looks at a head: its planes, its coil, its noise.

A slice is an average over its thickness on a tilted plane, so tissue borders blur, the more the thicker the slices. Coordinates here
are right-anterior-superior (mm); dicom.py turns them into DICOM's left-posterior-superior.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pipelines.phantoms.anatomy import BOX_MM, smooth_noise

#: How far apart (mm) samples across a slice are at most; the slice profile weighs them.
ACROSS_MM = 1.5


@dataclass(frozen=True)
class Plane:
    """A stack of parallel slices. Axes of its arrays: slice, row, column.

    `affine` takes (slice, row, column) to mm; `thickness_mm` may be less than the step between slices (a gap).
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    thickness_mm: float

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        return tuple(float(n) for n in np.linalg.norm(self.affine[:3, :3], axis=0))

    def moved(self, rigid: np.ndarray) -> Plane:
        """The same stack after a rigid change of coordinates (4 x 4)."""
        return Plane(rigid @ self.affine, self.shape, self.thickness_mm)

    def part(self, box: tuple[slice, ...]) -> Plane:
        """The part of the stack that `box` cuts out of its arrays."""
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ [s.start for s in box]
        return Plane(affine, tuple(s.stop - s.start for s in box), self.thickness_mm)


def axial_stack(*, pixel_mm: float, matrix: int, step_mm: float, slices: int, thickness_mm: float, tilt_deg: np.ndarray) -> Plane:
    """Axial slices, feet to head, rotated by `tilt_deg` about the right, anterior and superior axes, centred on the brain."""
    turn = Rotation.from_euler("xyz", tilt_deg, degrees=True).as_matrix()
    axes = turn @ np.array([[0, 0, -pixel_mm], [0, -pixel_mm, 0], [step_mm, 0, 0]], float)  # slice up, row to the back, column to the left
    affine = np.eye(4)
    affine[:3, :3] = axes
    centre = BOX_MM.mean(axis=1) - [0, 4, 0]
    affine[:3, 3] = centre - axes @ ((np.array([slices, matrix, matrix]) - 1) / 2)
    return Plane(affine, (slices, matrix, matrix), thickness_mm)


def acquire(volume: np.ndarray, volume_affine: np.ndarray, plane: Plane) -> np.ndarray:
    """`volume` (mm by `volume_affine`) averaged over every slice of `plane`; zero outside (float32, shape of the plane)."""
    result = np.zeros(plane.shape, np.float32)
    found = ndimage.find_objects((volume != 0).astype(np.uint8))
    if not found:
        return result
    box = box_in(plane, volume_affine, found[0])
    part, profile = plane.part(box), slice_profile(plane.thickness_mm, plane.voxel_mm[0])
    across, (slices, rows, columns) = len(profile), part.shape
    fine = part.affine.copy()
    fine[:3, 0] /= across
    fine[:3, 3] -= part.affine[:3, 0] * (across - 1) / (2 * across)
    sampled = _sample(volume, volume_affine, fine, (slices * across, rows, columns))
    result[box] = np.tensordot(profile, sampled.reshape(slices, across, rows, columns), axes=(0, 1))
    return result


def _sample(volume: np.ndarray, volume_affine: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Linear interpolation at the points of another grid, by SimpleITK: several times quicker than scipy, and this is most of the work."""
    import SimpleITK as sitk

    source = sitk.GetImageFromArray(np.ascontiguousarray(volume.T, np.float32))
    resample = sitk.ResampleImageFilter()
    spacing, origin, direction = _itk_geometry(volume_affine)
    source.SetSpacing(spacing)
    source.SetOrigin(origin)
    source.SetDirection(direction)
    spacing, origin, direction = _itk_geometry(affine[:, [2, 1, 0, 3]])
    resample.SetOutputSpacing(spacing)
    resample.SetOutputOrigin(origin)
    resample.SetOutputDirection(direction)
    resample.SetSize(shape[::-1])
    resample.SetNumberOfThreads(1)  # subjects run side by side already
    return sitk.GetArrayFromImage(resample.Execute(source))


def _itk_geometry(affine: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """Spacing, origin and direction of an affine, as ITK takes them."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return spacing.tolist(), affine[:3, 3].tolist(), (affine[:3, :3] / spacing).ravel().tolist()


def slice_profile(thickness_mm: float, step_mm: float) -> np.ndarray:
    """Weights of the samples of one step: flat inside the slice, falling at its edges, little in the gap. They sum to 1."""
    across = int(np.ceil(step_mm / ACROSS_MM))
    offset = (np.arange(across) - (across - 1) / 2) * step_mm / across
    weights = np.exp(-((2 * offset / (1.1 * thickness_mm)) ** 8))
    return (weights / weights.sum()).astype(np.float32)


def box_in(plane: Plane, volume_affine: np.ndarray, box: tuple[slice, ...]) -> tuple[slice, ...]:
    """The part of the plane's arrays that holds a box of a volume's arrays."""
    corners = np.array([[*corner, 1.0] for corner in product(*((s.start - 1, s.stop) for s in box))])  # values reach one voxel further
    indices = (np.linalg.inv(plane.affine) @ volume_affine @ corners.T)[:3]
    low, high = np.floor(indices.min(axis=1)).astype(int) - 1, np.ceil(indices.max(axis=1)).astype(int) + 2
    return tuple(slice(int(np.clip(a, 0, n - 1)), int(np.clip(b, 1, n))) for a, b, n in zip(low, high, plane.shape, strict=True))


def coil(plane: Plane, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth receive field around 1 over the stack; `strength` is its relative standard deviation."""
    return np.exp(strength * smooth_noise(rng, plane.shape, plane.voxel_mm, 90.0))


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with independent Gaussian noise in both channels (Gudbjartsson and Patz, MRM 34:910, 1995)."""
    real = signal + sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.hypot(real, sigma * rng.standard_normal(signal.shape, dtype=np.float32))


def mr_image(
    signal: np.ndarray, signal_affine: np.ndarray, plane: Plane, *, coil_strength: float, snr: float, rng: np.random.Generator
) -> np.ndarray:
    """One MR series of a signal map: slices averaged, coil, Rician noise. `snr` is relative to the map's 90th percentile inside the head.

    `coil_strength` is the strength of the coil's shading. The scale is that of `signal`.
    """
    seen = ndimage.gaussian_filter(acquire(signal, signal_affine, plane), (0, 0.5, 0.5))
    inside = seen > 0.02 * seen.max()
    return rician(seen * coil(plane, coil_strength, rng), float(np.percentile(seen[inside], 90)) / snr, rng)
