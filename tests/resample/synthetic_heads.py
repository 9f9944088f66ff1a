"""A small head defined in world coordinates, so that any grid shows the same anatomy, and cohorts of it as ingest would write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from pipelines.cohort import bids_path, write_manifest
from pipelines.outputs import sha256
from pipelines.resample.grid import Grid
from pipelines.resample.volumes import Volume, write_volume

#: centre (mm), radii (mm), and intensity by contrast: T1-like, T2-like, map-like (inside the brain only)
TISSUES = {
    "neck": ((0, -20, -62), (45, 48, 35), {"t1": 70, "t2": 45, "map": 0}),
    "nose": ((0, 84, -28), (11, 16, 20), {"t1": 80, "t2": 45, "map": 0}),
    "scalp": ((0, 0, 0), (70, 85, 65), {"t1": 90, "t2": 40, "map": 0}),
    "skull": ((0, 0, 0), (65, 80, 60), {"t1": 15, "t2": 12, "map": 0}),
    "brain": ((0, 0, 0), (60, 75, 55), {"t1": 60, "t2": 70, "map": 20}),
    "ventricle-left": ((-12, 5, 5), (7, 25, 10), {"t1": 20, "t2": 130, "map": 5}),
    "ventricle-right": ((12, 9, 5), (7, 22, 12), {"t1": 20, "t2": 130, "map": 5}),
    "nucleus": ((28, 10, -8), (9, 16, 9), {"t1": 80, "t2": 50, "map": 35}),
    "lesion": ((-32, -28, 12), (15, 18, 16), {"t1": 40, "t2": 110, "map": 50}),
    "cerebellum": ((8, -48, -34), (28, 18, 14), {"t1": 70, "t2": 85, "map": 25}),
}


def inside(world: np.ndarray, tissue: str) -> np.ndarray:
    """Which of the points `(..., 3)` lie in a tissue's ellipsoid."""
    center, radii, _ = TISSUES[tissue]
    return (((world - np.array(center)) / np.array(radii)) ** 2).sum(-1) <= 1


def outline(world: np.ndarray) -> np.ndarray:
    """Which of the points lie in the head, nose and neck included."""
    return inside(world, "scalp") | inside(world, "neck") | inside(world, "nose")


def grid_of(shape: Sequence[int], spacing: Sequence[float], angles: Sequence[float] = (0, 0, 0), center: Sequence[float] = (0, 0, 0)) -> Grid:
    """A grid about `center`, turned by `angles` in degrees."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = np.array(center) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(tuple(shape), affine)


def points(grid: Grid, move: np.ndarray | None = None) -> np.ndarray:
    """World coordinates of all voxels; `move` is a rigid 4 x 4 by which the patient lies elsewhere."""
    world = grid.world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1))
    return world if move is None else (world - move[:3, 3]) @ move[:3, :3]


def head(grid: Grid, contrast: str = "t2", *, noise: float = 1.0, move: np.ndarray | None = None, seed: int = 0) -> Volume:
    """The head on a grid, with Rician-like noise."""
    world, values = points(grid, move), np.zeros(grid.shape)
    for tissue, (_, _, intensity) in TISSUES.items():
        values[inside(world, tissue)] = intensity[contrast]
    if contrast != "map":
        values = np.abs(values + np.random.default_rng(seed).normal(0, noise, grid.shape))
    return Volume(values.astype(np.float32), grid)


def lesion(grid: Grid, move: np.ndarray | None = None) -> Volume:
    """The lesion as a label of value 1."""
    return Volume(inside(points(grid, move), "lesion").astype(np.uint8), grid)


def rigid(angles: Sequence[float], shift: Sequence[float]) -> np.ndarray:
    """A rigid 4 x 4: angles in degrees, shift in mm."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), shift
    return matrix


@dataclass
class Source:
    """An ingested cohort in the making."""

    folder: Path
    rows: list[dict] = field(default_factory=list)

    def add(self, volume: Volume, modality: str, subject: str = "a", *, kind: str = "image", frame: str = "", **facts) -> Path:
        """Add an image or (modality 'dseg', kind 'label') a label; facts are further columns of its row."""
        path = bids_path(subject, "", "anat", modality) if kind == "image" else Path("derivatives/labels") / bids_path(subject, "", "anat", "dseg")
        array = volume.array.astype(np.float32 if kind == "image" else np.uint8)
        write_volume(self.folder / path, array, volume.grid)
        row = {"subject": subject, "session": "", "site": "here", "kind": kind, "modality": modality, "path": str(path),
               "sha256": sha256(self.folder / path), "shape": "x".join(map(str, array.shape)), "slice_axis": volume.grid.slice_axis,
               "spacing_mm": "x".join(f"{value:g}" for value in volume.grid.spacing), "frame_of_reference": frame, "source_kind": "nifti"}
        self.rows.append(row | facts)
        return self.folder / path

    def label(self, volume: Volume, names: dict[int, str] | None, subject: str = "a", **facts) -> Path:
        """Add a label with its lookup."""
        path = self.add(volume, "dseg", subject, kind="label", **facts)
        if names is not None:
            table = "".join(f"{index}\t{name}\n" for index, name in names.items())
            path.with_name(path.name.replace(".nii.gz", ".tsv")).write_text("index\tname\n" + table)
        return path

    def write(self) -> Path:
        """Write the manifest and return the folder."""
        write_manifest(self.folder, self.rows)
        return self.folder
