"""A Siemens CSA header made again with nothing but the numbers that place the tiles of a mosaic and its diffusion weighting.

The header that a scanner writes holds the whole protocol with names and free text, so it cannot be kept; without it a mosaic cannot be placed. The
layout (SV10) is as nibabel documents and reads it: https://nipy.org/nibabel/dicom/siemens_csa.html.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from pipelines.errors import Refused
from pipelines.ingest.mosaic import SLICE, SLICE_COUNT

#: Fields of the image header that stay, with their types: counts, directions in patient coordinates, b-values and times of slices in ms.
NUMBERS = {"NumberOfImagesInMosaic": "US", "SliceNormalVector": "FD", "B_value": "IS", "DiffusionGradientDirection": "FD", "B_matrix": "FD",
           "SliceMeasurementDuration": "DS", "MosaicRefAcqTimes": "FD", "BandwidthPerPixelPhaseEncode": "FD", "PhaseEncodingDirectionPositive": "IS"}
PROTOCOLS = ("MrPhoenixProtocol", "MrProtocol")
FIELD, ITEM, END = "<64si4siii", "<4i", 77


def numeric_image_header(data: bytes) -> bytes:
    """The image header (0029,xx10) with its numbers only. Raises `Refused` (code `mosaic-geometry`) when it cannot be read."""
    read = _read(data)
    values = {name: [f"{float(item):.10g}" for item in _items(read, name)] for name in NUMBERS if _items(read, name)}
    return _write({name: (NUMBERS[name], items) for name, items in values.items()})


def numeric_series_header(data: bytes) -> bytes:
    """The series header (0029,xx20) with the number of slices and their centres only. Raises `Refused` as above."""
    read = _read(data)
    text = next((str(found[0]) for name in PROTOCOLS if (found := _items(read, name))), "")
    lines = [f"sSliceArray.asSlice[{int(index)}].sPosition.{axis} = {float(value):.10g}" for index, axis, value in SLICE.findall(text)]
    lines += [f"sSliceArray.lSize = {int(size[1])}"] if (size := SLICE_COUNT.search(text)) else []
    return _write({PROTOCOLS[0]: ("UN", ["\n".join(lines) + "\n"])} if lines else {})


def _read(data: bytes) -> dict:
    from nibabel.nicom import csareader

    try:
        return csareader.read(data)["tags"]
    except Exception:  # broken bytes: struct, index, value and its own errors
        raise Refused("mosaic-geometry", "its CSA header cannot be read, and without it the tiles cannot be placed",
                      "export it as enhanced or single-frame DICOM") from None


def _items(read: Mapping, name: str) -> list:
    return read.get(name, {}).get("items", [])


def _write(fields: Mapping[str, tuple[str, Sequence[str]]]) -> bytes:
    if not fields:
        return b""
    parts = [b"SV10", b"\4\3\2\1", struct.pack("<2I", len(fields), END)]
    for name, (vr, items) in fields.items():
        parts.append(struct.pack(FIELD, name.encode(), len(items), vr.encode(), 0, len(items), END))
        for item in items:
            content = item.encode("ascii") + b"\0"
            parts += [struct.pack(ITEM, len(content), len(content), END, len(content)), content, b"\0" * (-len(content) % 4)]
    return b"".join(parts)
