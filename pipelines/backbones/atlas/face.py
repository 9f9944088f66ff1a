"""What lies under and in front of the brain: orbits, sinuses, mucosa, petrous bone, muscles of the jaw.

On real heads these are as bright as lesions and as ragged. Taught on heads without them, the model called orbits, sinuses and half a cerebellum
between dark bones abnormal. Places are rough (MNI space, mm), shapes are ellipsoids with a ragged border, and much of it is left to chance; ours.
"""

from __future__ import annotations

import numpy as np

from pipelines.backbones.atlas import concepts as c
from pipelines.phantoms.anatomy import BOX_MM, smooth_noise

#: Only these are painted over; brain tissue never is.
SOFT = (c.SCALP, c.SKULL, c.MUSCLE, c.MARROW, c.EYE)
#: Bone also takes the place of the fluid that fills a hull drawn round the brain.
FLUID = (c.CSF, c.VENTRICLE)
#: The lowest part of the head, in which something may lie anywhere.
FACE_BELOW_MM = -12.0


class _Painter:
    """Ellipsoids in a label volume, given in mm."""

    def __init__(self, labels: np.ndarray, rng: np.random.Generator, spacing_mm: float):
        self.labels, self.rng, self.spacing = labels, rng, spacing_mm
        self.soft = np.isin(labels, SOFT)
        self.fluid = np.isin(labels, FLUID)
        self.ragged = smooth_noise(rng, labels.shape, spacing_mm, 7)
        self.cells = smooth_noise(rng, labels.shape, spacing_mm, 4)
        self.shift = rng.normal(0, 2.0, 3)  # of the whole face

    def both(self, *args, **options) -> None:
        """On both sides, each a little its own."""
        for side in (-1, 1):
            self.paint(*args, side=side, **options)

    def paint(self, centre, radii, label: int, *, side: int = 1, bone: bool = False, ragged: float = 0.15, lining: tuple[int, float] | None = None,
              mixed: tuple[int, float] | None = None) -> None:
        """An ellipsoid of `label`. `lining`: (label, mm) on its inside; `mixed`: (label, share) in small cells."""
        rng, spacing = self.rng, self.spacing
        centre = np.array(centre) * (side, 1, 1) + self.shift + rng.normal(0, 1.5, 3)
        radii = np.array(radii) * np.exp(rng.normal(0, 0.15, 3))
        low = np.clip(np.floor((centre - 1.4 * radii - BOX_MM[:, 0]) / spacing), 0, self.labels.shape).astype(int)
        high = np.clip(np.ceil((centre + 1.4 * radii - BOX_MM[:, 0]) / spacing) + 1, 0, self.labels.shape).astype(int)
        if (high <= low).any():
            return
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        where = np.meshgrid(*(np.arange(a, b) * spacing + start for a, b, start in zip(low, high, BOX_MM[:, 0], strict=True)), indexing="ij")
        reach = np.sqrt(sum(((axis - middle) / radius) ** 2 for axis, middle, radius in zip(where, centre, radii, strict=True)))
        reach = reach + ragged * self.ragged[box]
        inside = (reach < 1) & (self.soft[box] | (self.fluid[box] if bone else False))
        drawn = np.full(reach.shape, label, np.uint8)
        if mixed:
            drawn[self.cells[box] < np.quantile(self.cells[box], mixed[1])] = mixed[0]
        if lining:
            drawn[(1 - reach) * radii.min() < lining[1] * (1 + 0.5 * self.ragged[box])] = lining[0]
        self.labels[box][inside] = drawn[inside]


def with_face(labels: np.ndarray, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """A label volume `(X, Y, Z)` uint8 on the grid of `anatomy.head` with a random skull base and face painted into what is not brain."""
    painter = _Painter(labels.copy(), rng, spacing_mm)
    _blotches(painter)
    painter.both((48, 20, -58), (12, 20, 26), c.MUSCLE)  # masseter and pterygoids
    painter.both((26, -24, -46), (20, 9, 9), c.SKULL, bone=True, mixed=(c.MARROW, rng.uniform(0, 0.3)))  # petrous bone
    painter.both((50, -28, -50), (9, 13, 14), c.SKULL, mixed=(c.AIR, rng.uniform(0.2, 0.8)))  # mastoid cells
    painter.both((24, 4, -46), (13, 11, 8), c.SKULL, bone=True, mixed=(c.MARROW, rng.uniform(0, 0.4)))  # sphenoid wing
    painter.paint((0, -6, -52), (11, 8, 18), c.MARROW, bone=True, ragged=0.1)  # clivus
    _orbits(painter)
    _sinuses(painter)
    return painter.labels


def _blotches(painter: _Painter) -> None:
    """Fat, muscle, mucosa and air in patches all over the lower part of the head, whatever they stand for."""
    rng, labels = painter.rng, painter.labels
    height = np.arange(labels.shape[2]) * painter.spacing + BOX_MM[2, 0]
    for label in rng.permutation([c.MUCOSA, c.SCALP, c.AIR, c.MUSCLE]):
        field = smooth_noise(rng, labels.shape, painter.spacing, rng.uniform(6, 16))
        if rng.random() < 0.7:  # faces are about symmetric
            field = field + field[::-1]
        deep = painter.soft & (painter.labels != c.EYE) & (height < FACE_BELOW_MM)
        share = rng.uniform(0, 0.15)
        labels[deep & (field > np.quantile(field, 1 - share))] = label


def _orbits(painter: _Painter) -> None:
    rng = painter.rng
    painter.both((32, 46, -40), (16, 24, 16), c.SCALP)  # fat
    for x, z in ((32, -28), (32, -52), (19, -40), (44, -40), (27, -40)):  # four muscles and the nerve
        painter.both((x, 38, z), (2.5, 20, 3.5), c.MUSCLE)
    painter.both((32, 60, -40), (11.5, 11.5, 11.5), c.EYE, ragged=0.02)
    if rng.random() < 0.3:
        painter.both((40, 58, -30), (6, 6, 5), c.MUCOSA)  # lacrimal gland


def _sinuses(painter: _Painter) -> None:
    rng = painter.rng

    def cavity(centre, radii, both: bool) -> None:
        filled = rng.random()
        label = c.MUCOSA if filled < 0.2 else c.AIR
        paint = painter.both if both else painter.paint
        mixed = (c.MUCOSA, rng.uniform(0.1, 0.8)) if 0.2 <= filled < 0.45 else None
        paint(centre, radii, label, lining=(c.MUCOSA, rng.uniform(0, 4.0)), mixed=mixed)

    cavity((27, 46, -64), (13, 17, 15), both=True)  # maxillary
    cavity((0, 16, -42), (11, 11, 9), both=False)  # sphenoid
    cavity((9, 70, -18), (9, 7, 10), both=True)  # frontal
    painter.paint((0, 46, -62), (13, 28, 18), c.MUCOSA, mixed=(c.AIR, rng.uniform(0.2, 0.7)))  # nasal cavity with its conchae
    painter.paint((0, 46, -42), (10, 20, 10), c.MUCOSA, mixed=(c.AIR, rng.uniform(0.2, 0.8)))  # ethmoid cells
    painter.paint((0, 8, -68), (12, 8, 12), c.AIR, lining=(c.MUCOSA, rng.uniform(1, 5)))  # nasopharynx
