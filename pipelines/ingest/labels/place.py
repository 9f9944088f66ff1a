"""From a label's source to segments on the grid of one of its session's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import Refused
from pipelines.ingest.labels.contours import read_structures
from pipelines.ingest.labels.frames import read_parametric_map, read_segmentation
from pipelines.ingest.labels.grid import DRAW_AGAIN
from pipelines.ingest.labels.masks import read_mask_series, read_nifti_label
from pipelines.ingest.labels.segments import LabelSource, Placeable, Segments
from pipelines.ingest.volumes import load_grid

if TYPE_CHECKING:
    from pipelines.ingest.jobs import Home


def read_segments(source: LabelSource) -> Placeable:
    """Read one label of any kind; `on_grid` of the result places it. Raises `Refused`."""
    if source.kind == "seg":
        return read_segmentation(source)
    if source.kind == "rtstruct":
        return read_structures(source)
    if source.kind == "mask":
        return read_parametric_map(source) if source.part is None else read_mask_series(source)
    return read_nifti_label(source)


def place(source: LabelSource, homes: Sequence[Home], folder: Path) -> tuple[Segments, Home]:
    """A label on the grid of the image it refers to, or else of the first image of its frame of reference whose grid it shares.

    `homes` are the session's images, best first, their volumes below `folder`. Raises `Refused`: `label-without-image`, `label-grid`, and
    what reading raises.
    """
    if not homes:
        raise Refused("label-without-image", "no image of its session could be used", "see the reasons given for those images")
    label = read_segments(source)
    in_frame = sorted((home for home in homes if home.frame == source.frame), key=lambda home: not _refers(source, home))
    reasons = []
    for home in in_frame:
        try:
            segments = label.on_grid(*load_grid(folder / home.path))
            elsewhere = "drawn on another series of its frame of reference" if source.refers_to and not _refers(source, home) else ""
            return replace(segments, note="; ".join(filter(None, [segments.note, elsewhere]))), home
        except Refused as refused:
            if refused.code != "label-grid":
                raise
            reasons.append(refused.reason)
    detail = f" ({reasons[0]}{', seen from the first of these' if len(reasons) > 1 else ''})" if reasons else ""
    raise Refused("label-grid", f"the label lies on the grid of none of the {len(homes)} image(s) of its session, of which {len(in_frame)} share "
                  f"its frame of reference{detail}", DRAW_AGAIN)


def _refers(source: LabelSource, home: Home) -> bool:
    """Whether a label was drawn on this image; one volume of several of a series bears the series' item and a name of its own."""
    return bool(source.refers_to) and (home.item == source.refers_to or home.item.startswith(f"{source.refers_to}_"))
