"""Where the volumes of a case lie: one grid, and for each frame of reference the way to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import Refused
from pipelines.params import Resample
from pipelines.resample.foreground import foreground
from pipelines.resample.grid import Grid, working_grid
from pipelines.resample.registration import register
from pipelines.resample.sampling import covered, sample
from pipelines.resample.volumes import Volume, read_volume

if TYPE_CHECKING:
    import SimpleITK

#: Frames of reference that say nothing: NIfTI files have none, and their affine is all there is.
UNKNOWN_FRAMES = ("", "nifti")


@dataclass
class Image:
    """An image of the case on its way to the grid."""

    row: dict  # of the source's manifest
    volume: Volume
    notes: list[str] = field(default_factory=list)

    @property
    def modality(self) -> str:
        return self.row["modality"]


@dataclass
class Placement:
    """The grid of a case and who gets there how."""

    reference: Image
    grid: Grid
    slice_axis: int
    transforms: dict[str, SimpleITK.Transform | None]  # frame of reference -> from the reference's world to its world
    found: dict[str, str] = field(default_factory=dict)  # frame of reference -> what its registration found
    images: list[Image] = field(default_factory=list)  # that have a way to the grid
    mask: np.ndarray | None = None  # foreground on the grid

    def has(self, row: dict) -> bool:
        """Whether the row's frame of reference has a way to the grid."""
        return frame_name(row) in self.transforms

    def sample(self, volume: Volume, row: dict) -> np.ndarray:
        """The row's volume on the grid."""
        return sample(volume, self.grid, self.transforms[frame_name(row)])

    def covered(self, grid: Grid, row: dict) -> np.ndarray:
        """The part of the foreground that the row's own grid covers."""
        return covered(grid, self.grid, self.transforms[frame_name(row)]) & self.mask

    def notes(self, row: dict) -> list[str]:
        """What the manifest should say about how the row got here."""
        return [self.found[frame_name(row)]] if frame_name(row) in self.found else []


def frame_name(row: dict) -> str:
    """The frame of reference of a manifest row, empty where it says nothing."""
    return "" if row["frame_of_reference"] in UNKNOWN_FRAMES else row["frame_of_reference"]


def read_image(path: Path, row: dict) -> Image:
    """Read one image. Raises Refused where it is damaged or empty."""
    volume, notes = read_volume(path), []
    finite = np.isfinite(volume.array)
    if not finite.all():
        notes.append(f"{(~finite).sum()} voxels without a finite value set to 0")
        volume = Volume(np.where(finite, volume.array, np.float32(0)), volume.grid)
    if volume.array.min() == volume.array.max():
        raise Refused("constant", f"all its voxels have the value {volume.array.flat[0]:g}", "leave it out of the source")
    return Image(row, volume, notes)


def place(images: Sequence[Image], resample: Resample) -> tuple[Placement, list[tuple[Image, Refused]]]:
    """The case's placement, and the images that have none with the reason.

    The reference is the first modality of `resample.reference` there is. Images of one frame of reference share one registration, found
    with the first of them (same order) that succeeds; where none does, all are refused. Raises Refused where there is no reference.
    """
    ranks = {modality: rank for rank, modality in enumerate(resample.reference)}
    images = sorted(images, key=lambda image: (ranks.get(image.modality, len(ranks)), image.row["path"]))
    if not images or images[0].modality not in ranks:
        raise Refused("no-reference", f"the case has no usable image of a reference modality ({', '.join(resample.reference)})",
                      "add the missing image, or a modality the case has to resample.reference in params.yaml")
    reference = images[0]
    placement = Placement(reference, *working_grid(reference.volume.grid, resample.in_plane_mm, resample.slice_mm), {frame_name(reference.row): None})
    frames: dict[str, list[Image]] = {}
    for image in images:
        if not placement.has(image.row):
            frames.setdefault(frame_name(image.row), []).append(image)
    lost = []
    for name, members in frames.items():
        if resample.register_frames:
            lost += register_frame(placement, name, members)
        else:
            placement.transforms[name] = None
            placement.found[name] = "another frame of reference, placed by its header"
    placement.images = [image for image in images if placement.has(image.row)]
    return placement, lost


def register_frame(placement: Placement, name: str, members: Sequence[Image]) -> list[tuple[Image, Refused]]:
    """Register one frame of reference by the first of its images that succeeds; else all of them with their reasons."""
    failures = []
    for image in members:
        try:
            registration = register(placement.reference.volume, image.volume)
        except Refused as refused:
            failures.append((image, refused))
            continue
        placement.transforms[name] = registration.transform
        placement.found[name] = f"registered to {placement.reference.modality} by {image.modality}: {registration}"
        return []
    return failures


def find_foreground(placement: Placement, arrays: Sequence[np.ndarray], resample: Resample) -> np.ndarray:
    """The case's foreground, from its structural images: those that may be a reference. Maps are too noisy outside the head.

    `arrays`: the values of `placement.images` on the grid, the reference's first.
    """
    structural = [values for image, values in zip(placement.images, arrays, strict=True) if image.modality in resample.reference]
    try:
        return foreground(structural, placement.slice_axis)
    except Refused as refused:
        raise Refused(refused.code, f"the case's reference {placement.reference.modality} {refused.reason}", refused.remedy) from None
