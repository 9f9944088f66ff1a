"""RT structure sets (PS3.3 A.19, C.8.8.6): planar contours as masks on the grid of the image they were drawn on.

A voxel belongs to a region when its centre lies inside the contour (even-odd, in double precision). A contour lies on one slice; where none was
drawn, none is made up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.headers import quiet
from pipelines.ingest.labels.grid import LPS_TO_RAS, PLANE_TOL, off_grid
from pipelines.ingest.labels.naming import object_name
from pipelines.ingest.labels.polygons import Area, combine
from pipelines.ingest.labels.segments import LabelSource, Overlay, Segments

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CLOSED, CLOSED_XOR = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"
DRAW_AREAS = "draw it again as closed contours, or export it as DICOM SEG"
EXPORT_AGAIN = "export the structure set again, or as DICOM SEG"


@dataclass(frozen=True)
class Ring:
    """A closed contour: points `(n, 3)` in mm, RAS; `xor` where the writer says that rings of a slice cancel each other."""

    points: np.ndarray
    xor: bool


@dataclass(frozen=True)
class Contours:
    """Regions of a structure set by number, with their names."""

    rings: dict[int, tuple[Ring, ...]]
    names: dict[int, str]
    note: str = ""
    name: str = ""  # of all regions as one

    def on_grid(self, shape: tuple[int, ...], affine: np.ndarray) -> Segments:
        to_voxel = np.linalg.inv(affine)
        drawn = {number: [ring.points @ to_voxel[:3, :3].T + to_voxel[:3, 3] for ring in rings] for number, rings in self.rings.items()}
        axis, levels = _slices([points for several in drawn.values() for points in several], shape)
        notes, overlay, level = [self.note], Overlay(shape), iter(levels)
        for number, several in drawn.items():
            slices = defaultdict(list)
            for points, ring in zip(several, self.rings[number], strict=True):
                slices[next(level)].append((np.delete(points, axis, axis=1), ring.xor))
            areas = {depth: combine([points for points, _ in slices[depth]], all(xor for _, xor in slices[depth])) for depth in sorted(slices)}
            notes += _remarks(self.names[number], areas)
            for depth, area in areas.items():
                overlay.add(_where(area, depth, axis, shape), number)
        return overlay.finish(affine, self.names, "; ".join(note for note in notes if note)).as_one(self.name)


def _slices(rings: Sequence[np.ndarray], shape: tuple[int, ...]) -> tuple[int, list[int]]:
    """The axis across the planes of the contours, and the slice of each; `rings` are in voxels. Raises `Refused` (`label-grid`)."""
    if not rings:
        return 0, []
    thickness = np.max([np.ptp(points, axis=0) for points in rings], axis=0)
    axis = int(np.argmin(thickness))
    if thickness[axis] > PLANE_TOL:
        raise off_grid(f"its contours do not lie in planes of the image (one leaves its slice by {thickness[axis]:.2g} of a slice step)")
    depth = np.array([points[:, axis].mean() for points in rings])
    levels = np.round(depth).astype(int)
    off = np.abs(depth - levels)
    if (off > PLANE_TOL).any():
        between = int((off > PLANE_TOL).sum())
        raise off_grid(f"{between} of its {len(rings)} contours lie between the slices of the image, by up to {off.max():.2g} of a slice step")
    if outside := int(((levels < 0) | (levels >= shape[axis])).sum()):
        raise off_grid(f"{outside} of its {len(rings)} contours lie above or below the image's {shape[axis]} slices")
    return axis, levels.tolist()


def _where(area: Area, depth: int, axis: int, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Indices of an area's voxels in the volume. Raises `Refused` (`label-grid`) where one is outside."""
    flat = np.argwhere(area.mask) + area.start
    there = np.insert(flat, axis, depth, axis=1)
    if outside := int(((there < 0) | (there >= shape)).any(axis=1).sum()):
        raise off_grid(f"{outside} of the {len(there)} voxels of a contour lie outside the image")
    return tuple(there.T)


def _remarks(name: str, areas: dict[int, Area]) -> list[str]:
    """What the manifest should say of a region. Raises `Refused` (`label-gaps`) for one drawn on every second slice or fewer."""
    notes = []
    depths = list(areas)
    gaps = np.diff(depths)
    bridged = sum(gap > 1 and areas[low].meets(areas[high]) for gap, low, high in zip(gaps, depths, depths[1:], strict=False))
    missing = int((gaps - 1).sum())
    if bridged and gaps.min() > 1:
        raise Refused("label-gaps", f"{name} has contours on {len(depths)} slices, no two of them neighbours, and none on the {missing} slices "
                      "between", "interpolate the contours in the program they were drawn with (they are never interpolated here)")
    if missing:
        notes.append(f"{name}: {missing} slice(s) without contour between the first and the last")
    if holes := sum(area.holes for area in areas.values()):
        notes.append(f"{name}: {holes} contour(s) inside another taken as holes")
    if small := sum(not area.mask.any() for area in areas.values()):
        notes.append(f"{name}: contours of {small} slice(s) hold no voxel centre")
    return notes


def read_structures(source: LabelSource) -> Contours:
    """The closed planar contours of an RT structure set. Raises `Refused`."""
    import pydicom

    if len(source.paths) > 1:
        raise Refused("several-segmentations", f"its series holds {len(source.paths)} structure sets", "keep one of them per series")
    with quiet():
        dataset = pydicom.dcmread(source.paths[0], force=True)
        regions = {int(item.ROINumber): item for item in dataset.get("StructureSetROISequence") or []}
        drawn = {int(item.ReferencedROINumber): item.get("ContourSequence") or [] for item in dataset.get("ROIContourSequence") or []}
        frames = {str(item.get("ReferencedFrameOfReferenceUID") or "") for number, item in regions.items() if drawn.get(number)} - {""}
        if len(frames) > 1:
            raise Refused("label-frames", f"its regions lie in {len(frames)} frames of reference", "export one structure set per frame of reference")
        rings, names, left_out = {}, {}, Counter()
        for number, roi in enumerate(sorted(regions), 1):
            names[number] = object_name(_called(dataset, regions[roi], roi), number, source.known)
            rings[number] = tuple(_rings(drawn.get(roi, []), left_out))
    if left_out and not any(rings.values()):
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        raise Refused("label-points", f"it has no closed contours, only {listed}, which enclose no voxels", DRAW_AREAS)
    notes = [f"{count} contour(s) of type {kind} left out, which enclose no voxels" for kind, count in sorted(left_out.items())]
    return Contours(rings, names or {1: source.name or "segment 1"}, "; ".join(notes), source.name)


def _called(dataset: Dataset, roi: Dataset, number: int) -> list[str]:
    """ROIName, then the labels and codes of the observations of that region."""
    observed = [item for item in dataset.get("RTROIObservationsSequence") or [] if item.get("ReferencedROINumber") == number]
    codes = [code for item in observed for code in item.get("RTROIIdentificationCodeSequence") or []]
    texts = [roi.get("ROIName"), *(item.get("ROIObservationLabel") for item in observed), *(code.get("CodeMeaning") for code in codes)]
    return [str(text or "") for text in texts]


def _rings(contours: Sequence[Dataset], left_out: Counter) -> list[Ring]:
    """The closed contours; the others are counted in `left_out` by type."""
    rings = []
    for index, contour in enumerate(contours, 1):
        kind = str(contour.get("ContourGeometricType") or "")
        points = np.array(contour.get("ContourData") if contour.get("ContourData") is not None else [], float).ravel()
        if kind not in (CLOSED, CLOSED_XOR):
            left_out[kind if kind in ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR") else "unknown"] += 1
            continue
        stated = contour.get("NumberOfContourPoints")
        if points.size % 3 or not np.isfinite(points).all() or (stated is not None and int(stated) * 3 != points.size):
            raise Refused("label-contours", f"contour {index} of {len(contours)} of a region has {points.size} coordinates, which are not "
                          f"{'whole points' if stated is None else f'its {int(stated)} points'} of three numbers", EXPORT_AGAIN)
        if np.any(np.array(contour.get("ContourOffsetVector") or 0, float)):
            raise Refused("label-contours", "a contour has a ContourOffsetVector, which is retired and read in different ways", EXPORT_AGAIN)
        if points.size < 9:
            left_out["closed with fewer than 3 points"] += 1
            continue
        rings.append(Ring(points.reshape(-1, 3) @ LPS_TO_RAS[:3, :3], kind == CLOSED_XOR))
    return rings
