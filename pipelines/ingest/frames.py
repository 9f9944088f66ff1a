"""One two-dimensional image of a series, wherever it is stored: a file of its own, a frame of a multi-frame object, or a tile of a mosaic.

Classic, enhanced and mosaic objects all become frames, so that one set of checks and one reader serve them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: What tells images at one place apart, in the order in which volumes are named by it. Values must be hashable and equal for all slices of a volume.
MARKS = ("stack", "component", "kind", "echo", "inversion", "b_value", "direction", "energy", "trigger", "time")


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a two-dimensional image lies and how its stored values become measured ones. Coordinates are DICOM's: mm, LPS.

    `marks` holds only what the header tells (keys of `MARKS`):
    stack (StackID), component (magnitude | phase | real | imaginary), kind (what else ImageType says: 'water', 'adc', ...), echo (ms),
    inversion (ms), b_value (s/mm^2), direction (unit vector, rounded to 3 digits, or another tuple that tells directions apart; absent for b 0
    and for traces), energy (kV), trigger (ms after the R wave), time (temporal position, seconds, or a tuple of dimension indices).
    """

    file: int  # which file of the series
    number: int  # frame inside the file
    size: tuple[int, int]  # rows, columns
    orientation: tuple[float, ...]  # direction cosines of a row, then of a column (ImageOrientationPatient)
    position: tuple[float, ...]  # of the centre of the first voxel (ImagePositionPatient)
    spacing: tuple[float, ...]  # between rows, between columns
    slope: float = 1.0  # measured = slope * stored + intercept
    intercept: float = 0.0
    rescaled: bool = False  # whether the header gave a slope
    tile: tuple[int, int] | None = None  # first row and column inside a mosaic
    order: tuple[float, ...] = ()  # of acquisition: instance number, then frame number
    marks: dict[str, object] = field(default_factory=dict)
