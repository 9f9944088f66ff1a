"""Labels on the working grid, as the target codes of the cohort.

A label is never interpolated as numbers. Each target class becomes a mask, the mask a partial volume per working voxel, and the voxel
goes to the class with the largest share. That alone shrinks small and thin structures (at a corner nobody holds half), so the classes'
shares are weighted, within bounds, until every class keeps the volume it had.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import Refused
from pipelines.params import Label
from pipelines.resample.grid import Grid
from pipelines.resample.sampling import sample
from pipelines.resample.volumes import Volume

if TYPE_CHECKING:
    import SimpleITK

#: Bounds of a class's weight: at 3 a voxel needs at least a quarter of a single class to be labelled.
WEIGHT_BOUNDS = (1 / 3, 3.0)
ROUNDS = 100
#: How much a voxel's neighbourhood counts in its share. Where spacings have a simple ratio, whole rims of voxels hold the same share and
#: would be taken or left together; this ranks them, the more enclosed first.
NEIGHBOURHOOD = 0.1
#: A label of which more than this share lies outside the images is not a label of these images.
MAX_LOST = 0.05
#: Between the names of segments that share a value of a label, as `pipelines.ingest.labels` writes it.
SHARED = " & "


@dataclass(frozen=True)
class Targets:
    """Which value of a source label volume is which target code, and what was found beside."""

    codes: Mapping[int, int]  # value in the source -> 1..K
    note: str


def lookup_path(label: Path) -> Path:
    """The table of segment names beside a label volume."""
    return label.with_name(label.name.removesuffix(".nii.gz").removesuffix(".nii") + ".tsv")


def read_lookup(label: Path) -> dict[int, str] | None:
    """Segment names by value from the `_dseg.tsv` beside the label; None where there is no such table."""
    path = lookup_path(label)
    if not path.is_file():
        return None
    try:
        with path.open(newline="") as handle:
            return {int(row["index"]): row["name"] for row in csv.DictReader(handle, delimiter="\t")}
    except (KeyError, TypeError, ValueError, UnicodeDecodeError):
        raise Refused("lookup", f"its lookup {path.name} has no columns 'index' (whole numbers) and 'name'", "write the lookup again") from None


def target_codes(array: np.ndarray, lookup: Mapping[int, str] | None, labels: Sequence[Label]) -> Targets:
    """The target code of every value of a label volume, by the segment names of `lookup` (without one, a value is its own name).

    A value that several segments share ("Necrosis & Edema") goes to the first of `labels` that has one of them. Segments no target uses are
    left out and named in the note. Raises Refused where the label knows none of the wanted segments, unless it is empty and names nothing
    else: a case without a finding is legal.
    """
    if not np.array_equal(array, np.round(array)):
        raise Refused("fractions", "the label holds fractions, not whole segment numbers", "threshold it, or write it as integers")
    values = [int(value) for value in np.unique(array) if value != 0]
    names = {value: str(value) for value in values} if lookup is None else {value: name for value, name in lookup.items() if value != 0}
    codes = {value: code for value, name in names.items() if (code := _code(name, labels))}
    if not codes and (names or values):
        found = ", ".join(repr(names[key]) for key in sorted(names)) or "no names, only values " + ", ".join(map(str, values))
        asked = ", ".join(repr(segment) for label in labels for segment in label.segments)
        raise Refused("segments", f"the label has none of the wanted segments {asked}; it has {found}", "correct cohort.labels in params.yaml")
    notes = []
    unused = sorted({name for value, name in names.items() if value not in codes})
    if unused:
        notes.append("segments that no target uses: " + ", ".join(unused))
    unnamed = [value for value in values if value not in names]
    if unnamed:
        notes.append("values without a name, ignored: " + ", ".join(map(str, unnamed)))
    if not any(value in codes for value in values):
        notes.append("empty label")
    return Targets(codes, "; ".join(notes))


def _code(name: str, labels: Sequence[Label]) -> int:
    """The first target with a segment of this name or combination of names, 0 for none."""
    def among(segment: str, names: str) -> bool:
        return f"{SHARED}{segment}{SHARED}".casefold() in f"{SHARED}{names}{SHARED}".casefold()

    return next((code for code, label in enumerate(labels, 1) if any(among(segment.strip(), name.strip()) for segment in label.segments)), 0)


def resample_label(volume: Volume, codes: Mapping[int, int], names: Sequence[str], grid: Grid, *,
                   transform: SimpleITK.Transform | None = None) -> tuple[np.ndarray, str]:
    """The label on `grid`, uint8 codes 0..K, and each class's volume with its change.

    Raises Refused where a large part of the label lies outside the grid.
    """
    masks = [np.isin(volume.array, [value for value, code in codes.items() if code == k]) for k in range(1, len(names) + 1)]
    before = np.array([mask.sum() for mask in masks]) * volume.grid.voxel_ml
    shares = np.stack([sample(Volume(mask.astype(np.float32), volume.grid), grid, transform) if mask.any() else np.zeros(grid.shape, np.float32)
                       for mask in masks])
    inside = shares.sum(axis=(1, 2, 3), dtype=np.float64) * grid.voxel_ml
    if before.sum() > 0 and inside.sum() < (1 - MAX_LOST) * before.sum():
        lost = 100 * (1 - inside.sum() / before.sum())
        raise Refused("label-grid", f"{lost:.0f} % of the label's {before.sum():.1f} ml lie outside the case's images",
                      "write it on the grid of the image it was drawn on")
    result = assign(shares)
    after = np.bincount(result.ravel(), minlength=len(names) + 1)[1:] * grid.voxel_ml
    changes = [f"{name} {new:.2f} ml" + (f" ({round(100 * (new / old - 1), 1) + 0.0:+.1f} %)" if old > 0 else "")
               for name, new, old in zip(names, after, before, strict=True)]
    return result, ", ".join(changes)


def assign(shares: np.ndarray) -> np.ndarray:
    """The class of each voxel from its shares `(K, ...)` in 0..1, uint8, 0 where no class holds enough.

    Argmax of weighted shares, background included; the weights move so that each class has as many voxels as its shares add up to, and
    the best of all rounds, the unweighted first, is kept.
    """
    from scipy import ndimage

    touched = shares.sum(axis=0) > 1e-6
    wanted = with_background(shares[:, touched]).sum(axis=1)
    around = np.stack([ndimage.gaussian_filter(share, sigma=1) for share in shares])
    parts = with_background((1 - NEIGHBOURHOOD) * shares[:, touched] + NEIGHBOURHOOD * around[:, touched])
    weights, best, best_error = np.ones(len(parts)), None, np.inf
    for step in 1 / np.sqrt(np.arange(1, ROUNDS + 1)):
        classes = (weights[:, None] * parts).argmax(axis=0)
        counts = np.bincount(classes, minlength=len(parts))
        error = float(np.abs(counts - wanted)[1:].sum())
        if error < best_error:
            best, best_error = classes, error
        if error < 1:
            break
        weights = weights * ((wanted + 0.5) / (counts + 0.5)) ** step
        weights = np.clip(weights / weights[0], *WEIGHT_BOUNDS)
    result = np.zeros(shares.shape[1:], np.uint8)
    if best is not None and best.size:
        result[touched] = best
    return result


def with_background(parts: np.ndarray) -> np.ndarray:
    """Shares `(1 + K, N)` that add up to 1: the background's first."""
    return np.concatenate([np.maximum(1 - parts.sum(axis=0, keepdims=True, dtype=np.float64), 0), parts])
