"""How large a cache is beside the volumes it stands for, before and after it is made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipelines.embed.precision import FLOAT16, INT8, item_bytes

#: Tokens of a volume take at most this many times its float16 voxels.
BUDGET = 8.0
VOXEL_BYTES = 2  # of a float16 volume


def voxels(images: pd.DataFrame) -> int:
    """Voxels of all rows of a manifest together."""
    return sum(slices * height * width for slices, height, width in _shapes(images))


def tokens(images: pd.DataFrame, levels: Mapping[str, tuple[int, int]]) -> int:
    """Tokens of all rows of a manifest together, over all levels."""
    return sum(slices * -(-height // stride) * -(-width // stride) for slices, height, width in _shapes(images) for _, stride in levels.values())


def planned_bytes(images: pd.DataFrame, levels: Mapping[str, tuple[int, int]], precision: str) -> int:
    """Bytes that the tokens of these images take, from the backbone's levels (name -> channels, stride) alone."""
    numbers = sum(slices * channels * -(-height // stride) * -(-width // stride)
                  for slices, height, width in _shapes(images) for channels, stride in levels.values())
    return numbers * item_bytes(precision)


def warnings(images: pd.DataFrame, todo: pd.DataFrame, levels: Mapping[str, tuple[int, int]], precision: str, out: Path) -> list[str]:
    """What a person should know before hours of work: tokens over the budget, or more of them than the disk has room for."""
    said = []
    times = planned_bytes(images, levels, precision) / (VOXEL_BYTES * voxels(images))
    if times > BUDGET:
        way_out = f"precision {INT8} halves that" if precision == FLOAT16 else "a backbone with fewer channels or coarser levels takes less"
        said.append(f"tokens take {times:.1f} times the float16 voxels of the images, the budget is {BUDGET:g}; {way_out}")
    needed, free = planned_bytes(todo, levels, precision), shutil.disk_usage(out).free
    if needed > free:
        said.append(f"{len(todo)} images need {needed / 1e6:.1f} MB, {out} has {free / 1e6:.1f} MB free; free some space or give another --out")
    return said


def _shapes(images: pd.DataFrame) -> list[tuple[int, int, int]]:
    """`(S, H, W)` of every row."""
    shapes = []
    for shape, axis in zip(images["shape"], images.slice_axis, strict=True):
        size = [int(length) for length in shape.split("x")]
        size.insert(0, size.pop(int(axis)))
        shapes.append(tuple(size))
    return shapes
