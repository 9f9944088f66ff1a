"""Heads and tumours as label maps, so that a cohort with known truth needs no download.

The brain is the ICBM152 grey- and white-matter maps that nilearn ships (Fonov et al., NeuroImage 2011), bent by a random free-form
deformation (cubic B-splines, Rueckert et al., IEEE TMI 1999). CSF, skull and scalp are shells around it of varying thickness. A glioma
is grown by fast marching: quick along white matter, slow in grey matter, stopped by CSF. Everything is a function of a random generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

#: World box (mm, MNI space) that holds the head; its lower end is where the maps end.
BOX_MM = np.array([[-96.0, 96.0], [-130.0, 104.0], [-72.0, 106.0]])
#: Standard deviation of a cubic B-spline field whose coefficients are standard normal: (integral of the squared kernel)^(3/2).
SPLINE_SD = (151 / 315) ** 1.5


class Tissue(IntEnum):
    """The classes of a label map."""

    AIR = 0
    SCALP = 1  # fat under the skin
    SKULL = 2  # compact bone
    CSF = 3
    GREY = 4
    WHITE = 5
    VENTRICLE = 6  # CSF inside the brain
    EYE = 7
    MUSCLE = 8  # and skin
    MARROW = 9  # diploe, the fatty middle of the skull
    VESSEL = 10  # venous sinus, takes up contrast agent in everyone
    GLIOSIS = 11  # benign white-matter hyperintensity, never labelled
    NECROSIS = 12
    ENHANCING = 13
    OEDEMA = 14


TUMOUR = (Tissue.NECROSIS, Tissue.ENHANCING, Tissue.OEDEMA)


@dataclass(frozen=True)
class Head:
    """A label map (uint8, axes right-anterior-superior) on an isotropic grid; `affine` takes voxel indices to mm."""

    labels: np.ndarray
    affine: np.ndarray

    @property
    def spacing_mm(self) -> float:
        return float(self.affine[0, 0])


def head(rng: np.random.Generator, spacing_mm: float = 1.5) -> Head:
    """A random healthy head: anatomy of its own, the same label classes as every other."""
    fields, affine = _warped_template(rng, spacing_mm)
    _, _, outside, eye, face, airway, sinus = fields
    shape = outside.shape

    def noise(scale_mm: float) -> np.ndarray:
        return smooth_noise(rng, shape, spacing_mm, scale_mm)

    labels = np.zeros(shape, np.uint8)
    csf_mm = 2.2 + rng.uniform(-0.8, 1.5) + 0.8 * noise(30)
    skull_mm = rng.uniform(5.0, 8.0) + 1.2 * noise(30)
    scalp_mm = rng.uniform(4.0, 8.0) + 1.0 * noise(40)
    bone_from, bone_to = np.maximum(csf_mm, 0.8), np.maximum(csf_mm, 0.8) + np.maximum(skull_mm, 3.0)
    skin_mm = bone_to + np.maximum(scalp_mm, 2.0)
    soft = (outside < skin_mm) | (face < 0)
    labels[soft] = np.where(noise(6)[soft] + 0.4 * noise(12)[soft] + (face[soft] < -8) > 0.4, Tissue.MUSCLE, Tissue.SCALP)
    labels[soft & (outside > skin_mm - 2) & (face > -3)] = Tissue.MUSCLE  # skin
    labels[soft & (airway + 2 * noise(8) < 0)] = Tissue.AIR
    labels[eye < 1] = Tissue.EYE
    depth = (outside - bone_from) / (bone_to - bone_from)
    labels[(depth >= 0) & (depth < 1)] = Tissue.SKULL
    labels[(depth > 0.33) & (depth < 0.67 + 0.1 * noise(10)) & (skull_mm > 5)] = Tissue.MARROW
    labels[(outside < bone_from) & (outside > -30)] = Tissue.CSF
    labels[(sinus < 1) & (outside < bone_from + 2) & (outside > -1)] = Tissue.VESSEL
    labels[outside <= 0] = _brain(fields, rng.uniform(-0.04, 0.12), noise)[outside <= 0]
    return Head(_with_gliosis(labels, rng, spacing_mm), affine)


def lesion(healthy: Head, rng: np.random.Generator, volume_ml: tuple[float, float] = (5.0, 90.0)) -> np.ndarray:
    """The label map of `healthy` with a glioma in it: `Tissue.NECROSIS`, `ENHANCING` and `OEDEMA` replace what they grew over.

    The volume of all three together is log-uniform in `volume_ml`; how much of it is core, and how much of the core is dead, varies.
    """
    labels, spacing = healthy.labels, healthy.spacing_mm
    total_ml = np.exp(rng.uniform(*np.log(volume_ml)))
    core_ml = total_ml * rng.uniform(0.18, 0.6)
    voxel_ml = spacing**3 / 1000
    seed = _seed(labels, healthy.affine, rng)
    box = _box_around(seed, labels.shape, round(75 / spacing))
    local, seed = labels[box], tuple(s - b.start for s, b in zip(seed, box, strict=True))

    def roughness(scale_mm: float) -> np.ndarray:
        return smooth_noise(rng, local.shape, spacing, scale_mm)

    core_speed = _speed(local, {Tissue.WHITE: 1.0, Tissue.GLIOSIS: 1.0, Tissue.GREY: 0.7}) * np.exp(0.5 * roughness(14) + 0.25 * roughness(6))
    core = _earliest(_arrival(core_speed, [seed], spacing, until=80), core_ml / voxel_ml)
    core = ndimage.binary_opening(core, iterations=1) | (core & ndimage.binary_dilation(core, iterations=1) & (local == Tissue.WHITE))
    spread_speed = _speed(local, {Tissue.WHITE: 1.0, Tissue.GLIOSIS: 1.0, Tissue.GREY: 0.18}) * np.exp(0.6 * roughness(15) + 0.5 * roughness(6))
    border = core & ~ndimage.binary_erosion(core)
    arrival = _arrival(np.where(core, 1.0, spread_speed), np.argwhere(border), spacing, until=160) * (1 + 0.15 * roughness(5))
    whole = _earliest(np.where(core, 0.0, arrival), total_ml / voxel_ml)
    depth = ndimage.distance_transform_edt(core, sampling=spacing)
    rim_mm = rng.uniform(2.0, 6.0) * np.exp(0.4 * roughness(10))
    grown = local.copy()
    grown[whole] = Tissue.OEDEMA
    grown[core] = np.where(depth > np.maximum(rim_mm, spacing), Tissue.NECROSIS, Tissue.ENHANCING)[core]
    result = labels.copy()
    result[box] = grown
    return result


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float | tuple[float, ...], scale_mm: float) -> np.ndarray:
    """A smooth random field, mean 0 and standard deviation about 1, whose features are about `scale_mm` wide (float32)."""
    bases = [_spline_basis(n, round(float(mm), 4), scale_mm) for n, mm in zip(shape, np.broadcast_to(spacing_mm, len(shape)), strict=True)]
    field = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    for basis in bases:  # contracts the first axis and appends it as the last, so three rounds restore the order
        field = np.tensordot(field, basis, axes=(0, 1))
    return field / np.float32(SPLINE_SD)


@lru_cache(maxsize=64)
def _spline_basis(n: int, spacing_mm: float, scale_mm: float) -> np.ndarray:
    """Cubic B-splines with knots every `scale_mm`, evaluated at `n` voxel centres: (n, coefficients)."""
    position = np.arange(n) * spacing_mm / scale_mm
    knots = np.arange(-3, np.floor(position[-1]) + 5)
    return BSpline.design_matrix(position, knots, 3).toarray().astype(np.float32)


@lru_cache(maxsize=1)
def _template() -> tuple[np.ndarray, np.ndarray]:
    """Fields in MNI space at 2 mm, before deformation: (7, X, Y, Z) float32, and the affine.

    Grey, white (fractions); distance outside the brain, of the eyes (in radii), into the face, into the airways (mm, negative inside),
    and of the sagittal sinus (in radii).
    """
    from nilearn import datasets

    image = datasets.load_mni152_gm_template(resolution=2)
    grey = image.get_fdata(dtype=np.float32)
    white = datasets.load_mni152_wm_template(resolution=2).get_fdata(dtype=np.float32)
    pad = [(3, 3), (3, 3), (3, 3)]
    affine = image.affine.copy()
    affine[:3, 3] -= 3 * 2.0
    grey, white = np.pad(grey, pad), np.pad(white, pad)
    grey[..., :3], white[..., :3] = grey[..., 3:4], white[..., 3:4]  # the maps end inside the brain stem: let it go on
    tissue = grey + white  # an average brain: sharpening brings back sulci that averaging has filled
    grey += np.minimum(1.3 * (tissue - ndimage.gaussian_filter(tissue, 2.0)), 0) * (tissue > 0.3)
    hull = ndimage.binary_closing(np.pad(tissue > 0.3, 12), iterations=7)[12:-12, 12:-12, 12:-12]
    hull = ndimage.binary_opening(ndimage.binary_fill_holes(hull), iterations=1)
    outside = ndimage.distance_transform_edt(~hull, sampling=2.0) - ndimage.distance_transform_edt(hull, sampling=2.0)
    index = np.indices(grey.shape, dtype=np.float32)
    x, y, z = (index[i] * np.float32(2.0) + np.float32(affine[i, 3]) for i in range(3))
    eye = np.sqrt((np.abs(x) - 32) ** 2 + (y - 58) ** 2 + (z + 40) ** 2) / 12
    face = (np.sqrt((x / 66) ** 2 + ((y - 4) / 80) ** 2 + ((z + 70) / 52) ** 2) - 1) * 60
    forehead = (np.sqrt((x / 56) ** 2 + ((y - 30) / 50) ** 2 + ((z + 38) / 34) ** 2) - 1) * 45
    face = np.minimum(face, forehead)
    nose = (np.sqrt((x / 14) ** 2 + ((y - 62) / 26) ** 2 + ((z + 62) / 24) ** 2) - 1) * 15
    mastoid = (np.sqrt(((np.abs(x) - 52) / 10) ** 2 + ((y + 26) / 14) ** 2 + ((z + 50) / 14) ** 2) - 1) * 10
    frontal = (np.sqrt(((np.abs(x) - 8) / 9) ** 2 + ((y - 76) / 6) ** 2 + ((z + 16) / 9) ** 2) - 1) * 7
    sinus = np.abs(x) / 4 + 10 * ((y > 40) & (z < 10)) + 10 * (z < -12)
    fields = [grey, white, outside, eye, face, np.minimum(np.minimum(nose, mastoid), frontal), sinus]
    return np.stack([field.astype(np.float32) for field in fields]), affine


def _warped_template(rng: np.random.Generator, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """The template's fields seen through a random affine and free-form deformation, on a grid of `spacing_mm`, and its affine."""
    fields, template_affine = _template()
    shape = tuple(np.ceil((BOX_MM[:, 1] - BOX_MM[:, 0]) / spacing_mm).astype(int))
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = BOX_MM[:, 0]
    linear = Rotation.from_euler("xyz", rng.normal(0, 2.5, 3), degrees=True).as_matrix() @ np.diag(rng.normal(1.0, 0.035, 3))
    linear += rng.normal(0, 0.012, (3, 3))
    to_template = np.linalg.inv(template_affine)
    matrix = to_template[:3, :3] @ linear @ affine[:3, :3]
    offset = to_template[:3, :3] @ (linear @ affine[:3, 3]) + to_template[:3, 3]
    where = np.einsum("ij,jxyz->ixyz", matrix.astype(np.float32), np.indices(shape, dtype=np.float32))
    where += offset[:, None, None, None].astype(np.float32)
    for axis in range(3):
        bend_mm = 3.0 * smooth_noise(rng, shape, spacing_mm, 45) + 1.0 * smooth_noise(rng, shape, spacing_mm, 20)
        where[axis] += bend_mm * np.float32(to_template[axis, axis])
    return np.stack([ndimage.map_coordinates(field, where, order=1, mode="nearest") for field in fields]), affine


def _brain(fields: np.ndarray, atrophy: float, noise: Callable[[float], np.ndarray]) -> np.ndarray:
    """Grey, white, CSF or ventricle for every voxel; sulci and the width of the ventricles vary by subject."""
    grey, white, outside, *_, sinus = fields
    ragged = 0.08 * noise(5) + 0.06 * noise(9)
    csf = 1 - grey - white + atrophy + ragged
    result = np.where(white + 0.04 * noise(6) > grey, Tissue.WHITE, Tissue.GREY).astype(np.uint8)
    inner = outside < -16
    result[csf > np.where(white > grey, 0.62, 0.45)] = Tissue.CSF
    result[(sinus < 0.3) & (white < 0.4) & (outside > -40)] = Tissue.CSF  # between the hemispheres
    result[(result == Tissue.CSF) & inner] = Tissue.VENTRICLE
    return result


def _with_gliosis(labels: np.ndarray, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """A few small benign hyperintensities in the white matter, as most adults have."""
    candidates = np.argwhere(ndimage.binary_erosion(labels == Tissue.WHITE, iterations=1))
    for centre in candidates[rng.integers(len(candidates), size=rng.poisson(6))]:
        radius = rng.uniform(1.2, 4.0, 3) / spacing_mm
        box = _box_around(centre, labels.shape, 4)
        offsets = np.indices(labels[box].shape).reshape(3, *labels[box].shape)
        inside = sum(((offsets[i] + box[i].start - centre[i]) / radius[i]) ** 2 for i in range(3)) < 1
        labels[box][inside & (labels[box] == Tissue.WHITE)] = Tissue.GLIOSIS
    return labels


def _seed(labels: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> tuple[int, ...]:
    """Where the tumour starts: white matter of a cerebral hemisphere, side drawn first."""
    candidates = np.argwhere(ndimage.binary_erosion(labels == Tissue.WHITE, iterations=1))
    world = candidates * affine[0, 0] + affine[:3, 3]
    side = rng.choice([-1, 1])
    fits = (world[:, 0] * side > 14) & (world[:, 2] > -18 + 0.3 * np.maximum(-world[:, 1] - 20, 0))
    return tuple(int(i) for i in candidates[fits][rng.integers(fits.sum())])


def _box_around(centre, shape: tuple[int, ...], radius: int) -> tuple[slice, ...]:
    return tuple(slice(max(int(c) - radius, 0), min(int(c) + radius + 1, n)) for c, n in zip(centre, shape, strict=True))


def _speed(labels: np.ndarray, speeds: dict[Tissue, float]) -> np.ndarray:
    table = np.full(len(Tissue), 1e-4, np.float32)
    for tissue, speed in speeds.items():
        table[tissue] = speed
    return table[labels]


def _arrival(speed: np.ndarray, seeds: Iterable, spacing_mm: float, until: float) -> np.ndarray:
    """When a front that starts at `seeds` (array indices) reaches each voxel (fast marching, Sethian 1996); huge where later than `until`."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(speed.astype(np.float32))
    image.SetSpacing([spacing_mm] * 3)
    march = sitk.FastMarchingImageFilter()
    march.SetTrialPoints([[int(i) for i in reversed(tuple(seed))] for seed in seeds])
    march.SetStoppingValue(until)
    return np.minimum(sitk.GetArrayFromImage(march.Execute(image)), 1e6)


def _earliest(arrival: np.ndarray, voxels: float) -> np.ndarray:
    """The `voxels` voxels that the front reaches first."""
    count = int(np.clip(round(voxels), 8, arrival.size - 1))
    return arrival < np.partition(arrival.ravel(), count)[count]
