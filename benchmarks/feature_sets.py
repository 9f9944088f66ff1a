"""What a probe can be given to see of a voxel: sets of features, each put together from parts that are computed once per case.

Every part gives numbers for any voxels of a case's foreground, so that a fit reads the few that it samples and a prediction goes through
the case in pieces. Dense networks keep their tokens as they are (float16, on their own coarse grids) and are interpolated to the voxels asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipelines.cohort import Case
from pipelines.outputs import sha256, staged_file
from pipelines.systems import filters
from pipelines.systems.baselines.random_forest import features as filter_bank
from pipelines.systems.baselines.random_forest.params import Params as ForestParams

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

#: Raised when a part would give other numbers for the same images and weights.
VERSION = 1
Stored = Mapping[str, np.ndarray]


class Part(Protocol):
    """Some of the numbers of a voxel."""

    name: str

    @property
    def key(self) -> str:
        """What its numbers depend on besides the cohort; part of the name of their folder."""

    def store(self, case: Case, modalities: Sequence[str]) -> Stored:
        """What is worth keeping of a case (nothing for a part that costs nothing)."""

    def columns(self, voxels: Voxels, stored: Stored, rows: np.ndarray) -> list[np.ndarray]:
        """Blocks `(len(rows), F)` of these rows of the foreground."""


@dataclass(frozen=True)
class Voxels:
    """The foreground voxels of a case, in the order of `np.nonzero`, and what several parts need to know of them."""

    case: Case
    modalities: tuple[str, ...]

    @cached_property
    def where(self) -> np.ndarray:
        """Slice, row and column of each, `(3, N)`."""
        return np.stack(np.nonzero(self.case.foreground()))

    @cached_property
    def grey(self) -> np.ndarray:
        """`(N, 2 M)`: grey level of each modality, and whether the case has it."""
        images = [self.case.image(name)[tuple(self.where)] if name in self.case.images else None for name in self.modalities]
        absent = np.zeros(self.where.shape[1], np.float32)
        return np.stack([column for image in images for column in ((absent, absent) if image is None else (image, absent + 1))], axis=1)


@dataclass(frozen=True)
class Grey:
    """The grey level itself."""

    name: str = "grey"
    key: str = ""

    def store(self, case: Case, modalities: Sequence[str]) -> Stored:
        return {}

    def columns(self, voxels: Voxels, stored: Stored, rows: np.ndarray) -> list[np.ndarray]:
        return [voxels.grey[rows]]


@dataclass(frozen=True)
class Filters:
    """The random forest's multi-scale filters, grey level included."""

    name: str = "filters"
    sigmas: tuple[float, ...] = ForestParams().sigmas

    @property
    def key(self) -> str:
        return _hash(repr(self.sigmas), *(sha256(Path(module.__file__)) for module in (filter_bank, filters)))

    def store(self, case: Case, modalities: Sequence[str]) -> Stored:
        return {"table": filter_bank.voxel_features(case, modalities, self.sigmas)}

    def columns(self, voxels: Voxels, stored: Stored, rows: np.ndarray) -> list[np.ndarray]:
        return [stored["table"][rows].astype(np.float32)]


@dataclass(frozen=True)
class Tokens:
    """Dense tokens of a frozen network, at every level it has, interpolated to voxels.

    `encoder` is what `benchmarks.feature_encoders` can load; it names the network's levels and their strides.
    """

    name: str
    encoder: Encoder

    @property
    def key(self) -> str:
        return self.encoder.key

    def store(self, case: Case, modalities: Sequence[str]) -> Stored:
        found = {}
        for modality in modalities:
            if modality in case.images:
                found |= {f"{modality}/{level}": values for level, values in self.encoder.levels(case, modality).items()}
        return found

    def columns(self, voxels: Voxels, stored: Stored, rows: np.ndarray) -> list[np.ndarray]:
        where, weights, blocks = voxels.where[:, rows], {}, []
        widths = {name.partition("/")[2]: values.shape[-1] for name, values in stored.items()}
        for modality in voxels.modalities:
            for level, width in widths.items():
                values = stored.get(f"{modality}/{level}")
                if values is None:
                    blocks.append(np.zeros((len(rows), width), np.float32))
                    continue
                if level not in weights:  # the same for every modality: they lie on one grid
                    weights[level] = bilinear(where, values.shape[:3], self.encoder.strides[level])
                blocks.append(weights[level] @ values.reshape(-1, width))
        return blocks


class Encoder(Protocol):
    """A frozen network, light to send to another process: it is loaded where it is used."""

    key: str
    strides: Mapping[str, int]

    def levels(self, case: Case, modality: str) -> dict[str, np.ndarray]:
        """Level -> `(S, h, w, C)` float16 of one image."""


@dataclass(frozen=True)
class FeatureSet:
    """A named choice of parts; what is compared."""

    name: str
    parts: tuple[Part, ...]

    @property
    def key(self) -> str:
        return _hash(self.name, *(part.key for part in self.parts))


@dataclass
class Features:
    """The features of one case's foreground voxels: `len()` and rows as of an array `(N, F)` float32, computed when asked for."""

    voxels: Voxels
    parts: Sequence[tuple[Part, Stored]]
    width: int = field(init=False)

    def __post_init__(self) -> None:
        self.width = self[np.arange(1)].shape[1]

    def __len__(self) -> int:
        return self.voxels.where.shape[1]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([block for part, stored in self.parts for block in part.columns(self.voxels, stored, rows)], axis=1)


def bilinear(where: np.ndarray, shape: tuple[int, int, int], stride: int) -> csr_matrix:
    """Weights `(N, S * h * w)` that take tokens `(S * h * w, C)` to voxels `(3, N)`; beyond the outermost tokens' centres they are repeated.

    Token (i, j) covers the pixels `stride * i ... stride * (i + 1) - 1`, so its centre lies at `stride * i + (stride - 1) / 2`.
    """
    from scipy.sparse import csr_matrix

    slices, rows, columns = where
    count, corners = where.shape[1], []
    for axis, size in ((rows, shape[1]), (columns, shape[2])):
        position = np.clip((axis + 0.5) / stride - 0.5, 0, size - 1)
        first = position.astype(np.int64)
        share = (position - first).astype(np.float32)
        corners.append(((first, 1 - share), (np.minimum(first + 1, size - 1), share)))
    index = np.stack([(slices * shape[1] + row) * shape[2] + column for row, _ in corners[0] for column, _ in corners[1]], axis=1)
    weight = np.stack([a * b for _, a in corners[0] for _, b in corners[1]], axis=1)
    return csr_matrix((weight.ravel(), index.ravel(), np.arange(0, 4 * count + 1, 4)), shape=(count, int(np.prod(shape))))


def stored_file(folder: Path, part: Part, case: Case) -> Path:
    """Where a part of a case lies below the cohort's folder."""
    return folder / "features" / f"{part.name}-{part.key[:12]}" / f"{case.id}.safetensors"


def compute(folder: Path, part: Part, case: Case, modalities: Sequence[str]) -> None:
    """Compute and write one part of one case, float16, unless it is there; nothing for a part that keeps nothing."""
    from safetensors.numpy import save_file

    path = stored_file(folder, part, case)
    if path.is_file():
        return
    arrays = {name: np.ascontiguousarray(values, np.float16) for name, values in part.store(case, modalities).items()}
    if arrays:
        with staged_file(path) as temporary:
            save_file(arrays, temporary)


def read(folder: Path, feature_set: FeatureSet, case: Case, modalities: tuple[str, ...]) -> Features:
    """The features of a case, from the files that `compute` wrote."""
    from safetensors.numpy import load_file

    parts = []
    for part in feature_set.parts:
        path = stored_file(folder, part, case)
        arrays = load_file(path) if path.is_file() else {}
        # interpolation multiplies in float32; a table of voxels is large and read a few rows at a time
        parts.append((part, {name: values if values.ndim == 2 else values.astype(np.float32) for name, values in arrays.items()}))
    return Features(Voxels(case, modalities), parts)


def _hash(*words: str) -> str:
    return hashlib.sha256("\n".join([str(VERSION), *words]).encode()).hexdigest()
