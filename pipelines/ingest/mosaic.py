"""One file that holds all slices of a volume as tiles of one large image: Siemens' mosaic and United Imaging's grid.

ImagePositionPatient of a Siemens mosaic is where the corner of the large image would lie if it had the centre of the first slice; the position of
the first tile follows from the sizes (nibabel's documentation, "Siemens mosaic"). Tiles follow each other along SliceNormalVector of the CSA header,
which points along or against the cross product of ImageOrientationPatient. Both are checked against the slices that the scan's protocol lists.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence

import numpy as np
from pydicom.tag import Tag

from pipelines.errors import Refused
from pipelines.ingest.elements import as_number, items, number, numbers, private_blocks
from pipelines.ingest.frames import Frame
from pipelines.ingest.marks import SIEMENS, UNITED, marks_of, unit
from pipelines.ingest.scaling import scaling_of

ROWS, COLUMNS, INSTANCE = Tag("Rows"), Tag("Columns"), Tag("InstanceNumber")
SPACING, ORIENTATION, POSITION, STEP = Tag("PixelSpacing"), Tag("ImageOrientationPatient"), Tag("ImagePositionPatient"), Tag("SpacingBetweenSlices")
CSA = (0x0029, "SIEMENS CSA HEADER")
CSA_IMAGE, CSA_SERIES = 0x10, 0x20
SIEMENS_COUNT, GRID_COUNT, GRID_SLICES = 0x0A, 0x50, 0x51
MOST_TILES = 4096
PARALLEL_TOL = 1e-3  # of the cosine between two normals
STEP_TOL = 1e-2  # of the step: the protocol has it before rounding
AXES = ("dSag", "dCor", "dTra")
SLICE = re.compile(r"sSliceArray\.asSlice\[(\d+)\]\.sPosition\.(dSag|dCor|dTra)\s*=\s*(\S+)")
SLICE_COUNT = re.compile(r"sSliceArray\.lSize\s*=\s*(\d+)")
AGAIN = "export it as enhanced or single-frame DICOM, or convert it with dcm2niix and give the NIfTI"


def is_mosaic(image_type: Sequence[str]) -> bool:
    """Whether ImageType says that the image is a mosaic (Siemens) or a grid (United Imaging)."""
    return any(str(word).strip().upper() in ("MOSAIC", "VFRAME") for word in image_type)


def frames(dataset, file: int) -> list[Frame]:
    """The tiles of a mosaic as frames, in the order of the tiles. `dataset` is whole but for its pixels. Raises `Refused`."""
    blocks = private_blocks(dataset)
    if (block := blocks.get(UNITED)) and (slices := items(dataset, block + GRID_SLICES)):
        return _grid(dataset, file, number(dataset, block + GRID_COUNT), slices)
    image, series = (_csa(dataset, blocks, element) for element in (CSA_IMAGE, CSA_SERIES))
    block = blocks.get(SIEMENS)
    count = (number(dataset, block + SIEMENS_COUNT, "US") if block else None) or _value(image, "NumberOfImagesInMosaic")
    normal = [as_number(part) for part in _values(image, "SliceNormalVector")]
    if not count or unit(normal) is None:
        raise _refused("its mosaic has no CSA header with the number of tiles and the direction in which they follow each other")
    count = _whole(count)
    across = math.ceil(math.sqrt(count))
    size = _tile_size(dataset, count, across, across)
    rows, columns, spacing, first = _plane(dataset)
    cross = np.cross(rows, columns)
    if abs(abs(cosine := float(cross @ unit(normal))) - 1) > PARALLEL_TOL:
        raise _refused(f"the direction of its tiles is not that of its slices' normal (cosine {cosine:.3f})")
    cross = cross * np.sign(cosine)
    first = first + rows * spacing[1] * size[1] * (across - 1) / 2 + columns * spacing[0] * size[0] * (across - 1) / 2
    centre = first + rows * spacing[1] * size[1] / 2 + columns * spacing[0] * size[0] / 2
    step = _checked_step(number(dataset, STEP), _protocol(series), float(centre @ cross), cross, count)
    return _tiles(dataset, file, [first + index * step * cross for index in range(count)], size, across)


def _grid(dataset, file: int, count: float | None, slices) -> list[Frame]:
    """United Imaging's grid: each slice has its own position."""
    if count is not None and count != len(slices):
        raise _refused(f"its grid has {count:g} tiles and positions for {len(slices)}")
    positions = [numbers(one, POSITION) for one in slices]
    if bad := sum(len(position) != 3 for position in positions):
        raise _refused(f"{bad} of its {len(slices)} tiles have no position")
    across = math.ceil(math.sqrt(len(slices)))
    return _tiles(dataset, file, positions, _tile_size(dataset, len(slices), math.ceil(len(slices) / across), across), across)


def _tiles(dataset, file: int, positions, size: tuple[int, int], across: int) -> list[Frame]:
    slope, intercept, rescaled, _ = scaling_of(dataset)
    marks, orientation, spacing = marks_of(dataset), tuple(numbers(dataset, ORIENTATION)), tuple(numbers(dataset, SPACING))
    instance = number(dataset, INSTANCE, "IS") or 0.0
    if len(orientation) != 6 or len(spacing) != 2:
        raise _refused("its mosaic has no usable orientation or PixelSpacing")
    return [Frame(file, 0, size, orientation, tuple(float(value) for value in position), spacing, slope, intercept, rescaled,
                  tile=(index // across * size[0], index % across * size[1]), order=(instance, float(index)), marks=marks)
            for index, position in enumerate(positions)]


def _tile_size(dataset, count: int, down: int, across: int) -> tuple[int, int]:
    height, width = (int(number(dataset, tag, "US") or 0) for tag in (ROWS, COLUMNS))
    if not height or not width or height % down or width % across:
        raise _refused(f"its {count} tiles in {down} rows and {across} columns do not divide its matrix of {height} x {width}")
    return height // down, width // across


def _plane(dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Directions along a row and down a column, spacing between rows and columns, position of the large image."""
    values = [np.array(numbers(dataset, tag)) for tag in (ORIENTATION, SPACING, POSITION)]
    if [len(value) for value in values] != [6, 2, 3] or not np.isfinite(np.concatenate(values)).all():
        raise _refused("its mosaic has no usable orientation, position or PixelSpacing")
    return values[0][:3], values[0][3:], values[1], values[2]


def _whole(count: object) -> int:
    if not (value := as_number(count)).is_integer() or not 1 <= value <= MOST_TILES:
        raise _refused(f"its mosaic cannot have {value:g} tiles")
    return int(value)


def _checked_step(step: float | None, protocol: tuple[int, np.ndarray] | None, depth: float, normal: np.ndarray, count: int) -> float:
    """mm from tile to tile. `depth` is that of the first tile's centre along `normal`; `protocol` the number of slices and their centres."""
    if protocol is None:
        if not step or step <= 0:
            raise _refused("its mosaic has no SpacingBetweenSlices and no protocol")
        return step
    slices, centres = protocol
    if not np.isfinite(centres).all():
        raise _refused(f"its protocol lists {slices} slices, some without a usable position")
    depths = np.sort(centres @ normal)
    if slices == 1 and step:  # a slab: its centre
        depths = depths[0] + (np.arange(count) - (count - 1) / 2) * step
    elif slices != count or len(depths) != count:
        raise _refused(f"its mosaic has {count} tiles, its protocol {slices} slices")
    if count > 1:
        steps = np.diff(depths)
        step = step or float(steps.mean())
        if (worst := float(np.abs(steps - step).max())) > STEP_TOL * step:
            raise _refused(f"SpacingBetweenSlices is {step:.4g} mm, the steps of its protocol are up to {worst:.3g} mm off it")
    if abs(depth - depths[0]) > abs(depth - depths[-1]):
        raise _refused(f"its first tile lies {abs(depth - depths[-1]):.1f} mm from the last slice of its protocol along their normal and "
                       f"{abs(depth - depths[0]):.1f} mm from the first, so the order of the tiles is in doubt")
    return step or 1.0


def _csa(dataset, blocks: dict, element: int) -> dict:
    """The fields of a CSA header, {} where there is none that can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls its readers experimental whenever it is imported
        from nibabel.nicom import csareader
    try:
        return csareader.read(dataset[Tag(blocks[CSA] + element)].value)["tags"]
    except Exception:  # absent, or broken bytes: key, struct, index, type and value errors, and its own
        return {}


def _values(csa: dict, name: str) -> list:
    return csa.get(name, {}).get("items", [])


def _value(csa: dict, name: str) -> float | None:
    return next(iter(_values(csa, name)), None)


def _protocol(csa: dict) -> tuple[int, np.ndarray] | None:
    """How many slices the scan's protocol lists, and their centres (n, 3) in mm; None where there is no protocol."""
    text = next((str(found[0]) for name in ("MrPhoenixProtocol", "MrProtocol") if (found := _values(csa, name))), "")
    if (size := SLICE_COUNT.search(text)) is None or not (count := _whole(size[1])):
        return None
    centres = np.zeros((count, 3))
    for index, axis, value in SLICE.findall(text):  # what is 0 is left out of the protocol
        if int(index) < count:
            centres[int(index), AXES.index(axis)] = as_number(value)
    return count, centres


def _refused(reason: str) -> Refused:
    return Refused("mosaic-geometry", reason, AGAIN)
