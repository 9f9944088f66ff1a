"""One case: every image and label of a subject at a session, brought to one grid and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.cohort import bids_path
from pipelines.errors import Refused
from pipelines.outputs import sha256
from pipelines.params import Label, Resample
from pipelines.resample.foreground import standardise
from pipelines.resample.labels import lookup_path, read_lookup, resample_label, target_codes
from pipelines.resample.place import Image, Placement, find_foreground, frame_name, place, read_image
from pipelines.resample.volumes import read_volume, write_volume

#: An image that covers less of the foreground than this shows too little of the head to be used.
MIN_COVERAGE = 0.25
#: A coverage from here on is whole, and not worth a note.
FULL_COVERAGE = 0.995
#: A NIfTI label on a grid of its own has to cover at least this much of the foreground: NIfTI is not cropped, so its header must be wrong.
MIN_LABEL_COVERAGE = 0.9


@dataclass
class CaseResult:
    """What became of a case: rows of the manifest and of quarantine.tsv, and the folder its files are in."""

    folder: Path
    rows: list[dict] = field(default_factory=list)
    quarantine: list[dict] = field(default_factory=list)

    def refuse(self, row: dict, refused: Refused) -> None:
        """Send a row of the source's manifest to quarantine."""
        self.quarantine.append(refused.row(row["subject"], row["session"], row["path"]))

    def write(self, row: dict, array: np.ndarray, placement: Placement, notes: Sequence[str]) -> None:
        """Write a volume on the case's grid at the row's path; header facts of the row stay the source's."""
        path, grid = self.folder / row["path"], placement.grid
        write_volume(path, array, grid)
        self.rows.append(row | {
            "sha256": sha256(path), "shape": shape(array), "spacing_mm": "x".join(f"{value:.6g}" for value in grid.spacing),
            "slice_axis": placement.slice_axis, "frame_of_reference": placement.reference.row["frame_of_reference"],
            "note": "; ".join(filter(None, [row.get("note"), *notes])),
        })


def resample_case(source: Path, folder: Path, rows: Sequence[dict], resample: Resample, *, labels: Sequence[Label]) -> CaseResult:
    """Bring one case's images and label to one grid, standardise them, find the foreground, and write all under `folder`.

    `rows` are the case's manifest rows; their paths are relative to `source` and stay the same under `folder`. What cannot be used is
    refused with a reason, and nothing is written for a case without a reference image.
    """
    result = CaseResult(folder)
    images, label_rows = read_images(source, rows, result), [row for row in rows if row["kind"] == "label"]
    lost: list[tuple[Image, Refused]] = []
    try:
        placement, lost = place(images, resample)
        arrays = [placement.sample(image.volume, image.row) for image in placement.images]
        placement.mask = find_foreground(placement, arrays, resample)
    except Refused as refused:
        gone = [image for image, _ in lost]
        for row in [*(image.row for image in images if image not in gone), *label_rows]:
            result.refuse(row, refused)
    else:
        add_mask(placement, result)
        for image, values in zip(placement.images, arrays, strict=True):
            add_image(image, values, placement, result)
        add_label(source, label_rows, placement, labels, result)
    for image, refused in lost:
        result.refuse(image.row, refused)
    return result


def read_images(source: Path, rows: Sequence[dict], result: CaseResult) -> list[Image]:
    """The case's images, one a modality; those that cannot be used are refused."""
    images: dict[str, Image] = {}
    for row in sorted((row for row in rows if row["kind"] == "image"), key=lambda row: row["path"]):
        try:
            if row["modality"] in images:
                raise Refused("duplicate", f"the case has another {row['modality']}, which is used", "leave one of the two out of the source")
            images[row["modality"]] = read_image(source / row["path"], row)
        except Refused as refused:
            result.refuse(row, refused)
    return list(images.values())


def add_mask(placement: Placement, result: CaseResult) -> None:
    """Write the foreground mask."""
    row = placement.reference.row
    path = Path("derivatives/masks") / bids_path(row["subject"], row["session"], "anat", "mask", {"desc": "brain"})
    facts = {key: row[key] for key in ("subject", "session", "site", "source_kind")}
    note = f"foreground {placement.mask.sum() * placement.grid.voxel_ml:.0f} ml"
    result.write(facts | {"kind": "mask", "modality": "brain", "path": str(path)}, placement.mask.astype(np.uint8), placement, [note])


def add_image(image: Image, values: np.ndarray, placement: Placement, result: CaseResult) -> None:
    """Standardise and write one image given by its values on the grid, or refuse it."""
    seen = placement.covered(image.volume.grid, image.row)
    share = seen.sum() / placement.mask.sum()
    try:
        if share < MIN_COVERAGE:
            raise Refused("coverage", f"it covers {100 * share:.0f} % of the foreground of {placement.reference.modality}",
                          "check that its affine places it on the same head")
        standard = standardise(values, seen, placement.slice_axis)
    except Refused as refused:
        result.refuse(image.row, refused)
        return
    notes = [*image.notes, *placement.notes(image.row)]
    if image is placement.reference:
        notes.append("reference of the grid")
    if share < FULL_COVERAGE:
        notes.append(f"covers {100 * share:.0f} % of the foreground")
    result.write(image.row, standard, placement, notes)


def add_label(source: Path, rows: Sequence[dict], placement: Placement, labels: Sequence[Label], result: CaseResult) -> None:
    """Write the case's label in target codes: the first that can be used. Any other is refused."""
    done = False
    for row in sorted(rows, key=lambda row: row["path"]):
        try:
            if done:
                raise Refused("duplicate", "the case has another label, which is used", "leave one of the two out of the source")
            array, notes = label_on_grid(source / row["path"], row, placement, labels)
        except Refused as refused:
            result.refuse(row, refused)
            continue
        result.write(row, array, placement, notes)
        names = "".join(f"{code}\t{label.name}\n" for code, label in enumerate(labels, start=1))
        lookup_path(result.folder / row["path"]).write_text(f"index\tname\n{names}")
        done = True


def label_on_grid(path: Path, row: dict, placement: Placement, labels: Sequence[Label]) -> tuple[np.ndarray, list[str]]:
    """A label in target codes on the case's grid, and what is worth knowing about it."""
    if not placement.has(row):
        if frame_name(row):
            raise Refused("frame", "its frame of reference is that of none of the case's usable images", "add the image it was drawn on")
        row = row | {"frame_of_reference": placement.reference.row["frame_of_reference"]}  # it says nothing: its affine is all there is
    volume = read_volume(path)
    targets = target_codes(volume.array, read_lookup(path), labels)
    notes = placement.notes(row) + ([targets.note] if targets.note else [])
    if not any(volume.grid.same_as(image.volume.grid) for image in placement.images):
        share = placement.covered(volume.grid, row).sum() / placement.mask.sum()
        if row["source_kind"] == "nifti" and share < MIN_LABEL_COVERAGE:
            raise Refused("label-grid", f"the label has a grid of its own, {shape(volume.array)}, that covers {100 * share:.0f} % of the foreground "
                          f"of {placement.reference.modality} ({shape(placement.reference.volume.array)})",
                          "write it on the grid of the image it was drawn on")
        notes.append(f"drawn on a grid of its own, {shape(volume.array)}")
    array, volumes = resample_label(volume, targets.codes, [label.name for label in labels], placement.grid,
                                    transform=placement.transforms[frame_name(row)])
    return array, [volumes, *notes]


def shape(array: np.ndarray) -> str:
    """An array's shape as the manifest spells it."""
    return "x".join(map(str, array.shape))
