"""Stored values of frames. Native ones are read where they lie; compressed ones by pydicom's decoders, a file at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.errors import Refused
from pipelines.ingest.frames import Frame
from pipelines.ingest.geometry import EXPORT_AGAIN
from pipelines.ingest.headers import Header
from pipelines.ingest.streams import check_whole

STORED_BITS = (8, 16, 32, 64)


class Pixels:
    """The pixels of one series' files. Keeps the last compressed file open, because a volume's frames often lie in one."""

    def __init__(self, headers: Sequence[Header]) -> None:
        self._headers = headers
        self._last: tuple[Path, object] | None = None

    def read(self, frame: Frame) -> np.ndarray:
        """Stored values `(rows, columns)` of a frame. Raises `Refused`, or what a decoder raises of damaged data."""
        header = self._headers[frame.file]
        shape = int(header.number("Rows")), int(header.number("Columns"))
        image = self._native(header, frame.number, shape) if header.spot else self._decoded(header, frame)
        if image.shape != shape:
            raise Refused("damaged-pixels", f"file {frame.file + 1} of {len(self._headers)} (by SOPInstanceUID) decodes to another size than its "
                          "header says", "export that file again")
        if frame.tile is None:
            return image
        row, column = frame.tile
        return image[row:row + frame.size[0], column:column + frame.size[1]]

    def _native(self, header: Header, number: int, shape: tuple[int, int]) -> np.ndarray:
        spot, dtype = header.spot, _dtype(header)
        count = shape[0] * shape[1]
        values = np.fromfile(header.file.path, dtype, count, offset=spot.offset + number * count * dtype.itemsize)
        if len(values) < count:
            raise Refused("truncated-file", "a file ends before its pixels do", "copy or export that file again")
        return _masked(values.astype(dtype.newbyteorder("="), copy=False), header).reshape(shape)

    def _decoded(self, header: Header, frame: Frame) -> np.ndarray:
        from pydicom.pixels import pixel_array

        dataset = self._open(header)
        frames = int(header.number("NumberOfFrames") or 1)
        check_whole(dataset, frame.number, frames, f"file {frame.file + 1} of {len(self._headers)} (by SOPInstanceUID)")
        values = pixel_array(dataset, index=frame.number if frames > 1 else None)
        return values if values.dtype.kind == "f" else _masked(values, header)

    def _open(self, header: Header):
        import pydicom

        if self._last is None or self._last[0] != header.file.path:
            dataset = pydicom.dcmread(header.file.path, force=True)
            _check_decoder(dataset)
            self._last = header.file.path, dataset
        return self._last[1]


def _dtype(header: Header) -> np.dtype:
    if header.spot.kind != "stored":
        return np.dtype(f"{header.spot.order}{'f4' if header.spot.kind == 'float' else 'f8'}")
    bits = int(header.number("BitsAllocated") or 0)
    if bits not in STORED_BITS:
        raise Refused("bad-bits", f"BitsAllocated is {bits}; pixels of 8, 16, 32 or 64 bits can be read", EXPORT_AGAIN)
    if (signed := header.number("PixelRepresentation")) not in (0, 1):
        raise Refused("bad-bits", "PixelRepresentation is missing or neither 0 nor 1, so nothing says whether pixels are signed", EXPORT_AGAIN)
    return np.dtype(f"{header.spot.order}{'i' if signed else 'u'}{bits // 8}")


def _masked(values: np.ndarray, header: Header) -> np.ndarray:
    """Stored values without what else lies in their words (PS3.5 8.1.1): old overlays use the bits above HighBit.

    Where no overlay is declared there, set bits mean that BitsStored or the pixels are wrong, and nobody can tell which: `Refused`.
    """
    allocated = values.dtype.itemsize * 8
    stored = int(header.number("BitsStored") or allocated)
    high = int(found) if (found := header.number("HighBit")) is not None else stored - 1
    if not 1 <= stored <= high + 1 <= int(header.number("BitsAllocated") or allocated):
        raise Refused("bad-bits", f"BitsStored {stored} and HighBit {high} do not fit into the {allocated} bits of a pixel", EXPORT_AGAIN)
    if stored == allocated:
        return values
    masked = (values << (allocated - 1 - high)) >> (allocated - stored)
    if header.get("OverlayBitPosition") is None and (odd := int((masked << (high + 1 - stored) != values).sum())):
        raise Refused("bits-beyond-stored", f"{odd} pixels of a slice use other bits than the {stored} of BitsStored", EXPORT_AGAIN)
    return masked


def _check_decoder(dataset) -> None:
    import pydicom
    from pydicom.pixels import get_decoder

    meta = getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    if syntax is None:
        dataset.file_meta = meta or pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        return
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Refused("no-pixels", "a file has no pixels", EXPORT_AGAIN)
    try:
        usable = get_decoder(syntax).is_available
    except NotImplementedError:
        usable = False
    if not usable:
        name = syntax.name if syntax.name != str(syntax) else "not one of the standard's"
        raise Refused("no-decoder", f"its transfer syntax ({name}) is one for which no decoder is installed",
                      "decompress it first (gdcmconv --raw, dcmdjpeg)")
