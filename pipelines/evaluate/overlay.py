"""One slice of a query case with truth and prediction, small enough to keep, so that the report can draw what the numbers are about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.evaluate.uncertainty import entropy
from pipelines.train.band import bounding_box

INDEX = "index.json"

#: Grey levels run between these percentiles of the head's intensities, so that one bright vessel does not darken the rest.
WINDOW_PERCENTILES = (0.5, 99.5)
MARGIN_PIXELS = (4, 4)


@dataclass(frozen=True)
class Overlay:
    """Arrays ready to draw (radiological orientation) and what they are of."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, object]


def display(plane: np.ndarray) -> np.ndarray:
    """A slice of a RAS+ volume as radiologists look at it: patient right on the left, anterior (or superior) on top.

    The plane's axes are the two in-plane axes in RAS order, both growing towards R, A or S, so transposing and flipping both does it
    for axial, coronal and sagittal slices alike (a sagittal one looks left, anterior on the left).
    """
    return np.ascontiguousarray(np.flip(plane.T))


def make_overlay(case: Case, truth: np.ndarray, predicted: np.ndarray, probability: np.ndarray, facts: Mapping[str, object]) -> Overlay:
    """The slice with most truth (or most prediction where there is no truth), cut to the head.

    Arrays: `image_<modality>` uint8, `truth` and `predicted` uint8 label values, `probability` float16 `(labels, H, W)`, `uncertainty` float16
    in 0..1. `probability` here has the background as its first channel.
    """
    area = (truth > 0).sum(axis=(1, 2))
    if not area.any():
        area = (predicted > 0).sum(axis=(1, 2))
    index = int(area.argmax())
    head = case.foreground()[index]
    box = bounding_box(head | (truth[index] > 0), MARGIN_PIXELS) if head.any() else (slice(None), slice(None))
    arrays = {f"image_{name}": display(grey(case.image(name)[index], head)[box]) for name in sorted(case.images)}
    arrays["truth"] = display(truth[index][box])
    arrays["predicted"] = display(predicted[index][box].astype(np.uint8))
    arrays["probability"] = np.stack([display(channel[index][box]) for channel in probability[1:]]).astype(np.float16)
    arrays["uncertainty"] = display(entropy(probability[:, index][:, *box])).astype(np.float16)
    in_plane = case.spacing_mm[1:]
    return Overlay(arrays, {**facts, "case": case.id, "slice": index, "slices": len(area), "modalities": sorted(case.images),
                            "pixel_mm": [in_plane[1], in_plane[0]]})


def grey(plane: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Intensities as uint8, windowed to the head's, black outside it (0 there is the mean of a standardised image, a grey)."""
    low, high = np.percentile(plane[head] if head.any() else plane, WINDOW_PERCENTILES)
    windowed = np.clip((plane - low) / max(high - low, 1e-6) * 255, 0, 255)
    return np.where(head | ~head.any(), windowed, 0).astype(np.uint8)


def choose(overlays: Sequence[Overlay]) -> list[tuple[Overlay, list[str]]]:
    """The best, median and worst case by mean Dice, and the common one: of median truth, so the same for every system on this draw."""
    scored = sorted((entry for entry in overlays if entry.facts["mean_dice"] is not None),
                    key=lambda entry: (entry.facts["mean_dice"], entry.facts["case"]))
    by_size = sorted(overlays, key=lambda entry: (entry.facts["truth_ml"], entry.facts["case"]))
    wanted = {"common": by_size[len(by_size) // 2]} if by_size else {}
    if scored:
        wanted |= {"best": scored[-1], "median": scored[len(scored) // 2], "worst": scored[0]}
    roles: dict[str, list[str]] = {}
    for role, entry in wanted.items():
        roles.setdefault(str(entry.facts["case"]), []).append(role)
    return [(entry, roles[str(entry.facts["case"])]) for entry in overlays if str(entry.facts["case"]) in roles]


def write_overlays(folder: Path, overlays: Sequence[Overlay]) -> list[dict[str, object]]:
    """Write the chosen ones as `<site>_<case>.npz`; returns their index entries."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for overlay, roles in choose(overlays):
        name = f"{overlay.facts['site']}_{overlay.facts['case']}.npz"
        np.savez_compressed(folder / name, **overlay.arrays)
        entries.append({**overlay.facts, "file": name, "roles": roles})
    (folder / INDEX).write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
    return entries
