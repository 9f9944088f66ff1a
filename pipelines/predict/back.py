"""From the working grid back to the slices as they were acquired: the inverse of what the resample stage did to the reference image.

The reference image gave the working grid and was never moved, so the way back is its own two grids. Probabilities are interpolated, not labels:
a label taken from them on the finer grid has the border where it belongs, not in steps of the coarser one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.ingest.frames import Frame
from pipelines.ingest.labels.grid import LPS_TO_RAS, plane_steps
from pipelines.resample.grid import Grid
from pipelines.resample.sampling import sample
from pipelines.resample.volumes import Volume


def onto_grid(probabilities: np.ndarray, slice_axis: int, working: Grid, home: Grid) -> np.ndarray:
    """Probabilities `(C, slices, rows, columns)` of a case on its reference image's own grid, `(C, *home.shape)` float32.

    They add up to 1 over the first axis, channel 0 being background. `slice_axis` is the axis of `working` that a case has first.
    """
    channels = [sample(Volume(np.moveaxis(channel, 0, slice_axis).astype(np.float32), working), home) for channel in probabilities[1:]]
    foreground = np.stack(channels)
    background = 1 - foreground.sum(axis=0, keepdims=True)  # where a corner of the home grid lies outside the working one, all is background
    return np.clip(np.concatenate([background, foreground]), 0, 1)


def on_slices(volume: np.ndarray, home: Grid, frames: Sequence[Frame]) -> np.ndarray:
    """A volume on `home` as the pixels of the frames it was read from, `(frames, rows, columns)`.

    Each frame finds its voxels by its own position, by the map that puts labels onto images at ingest. Raises `Refused` (`label-grid`) where the
    frames do not lie on the grid.
    """
    rows, columns = frames[0].size
    steps = np.rint(plane_steps(planes_of(frames), rows, columns, home.affine)).astype(int)[:, :3]
    down, across = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    pixels = np.stack([down, across, np.ones_like(down)])
    return np.stack([volume[tuple(np.tensordot(step, pixels, axes=1))] for step in steps])


def planes_of(frames: Sequence[Frame]) -> np.ndarray:
    """Maps `(frames, 4, 3)` from (row, column, 1) to homogeneous mm, RAS (PS3.3 C.7.6.2.1.1)."""
    planes = np.zeros((len(frames), 4, 3))
    for plane, frame in zip(planes, frames, strict=True):
        orientation = np.array(frame.orientation, float)
        plane[:3] = np.column_stack([orientation[3:] * frame.spacing[0], orientation[:3] * frame.spacing[1], frame.position])
        plane[3, 2] = 1
    return LPS_TO_RAS @ planes
