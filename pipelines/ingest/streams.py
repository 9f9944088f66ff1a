"""Is a compressed image whole? Decoders fill in what is missing of a stream cut short, JPEG-LS with no word about it."""

from __future__ import annotations

from pipelines.errors import Refused

END = b"\xff\xd9"  # of image in JPEG and JPEG-LS, of codestream in JPEG 2000 (ISO 10918-1 B.2, 14495-1 C.1, 15444-1 A.2)
JPEG_FAMILY = "1.2.840.10008.1.2.4."


def check_whole(dataset, index: int, count: int, which: str) -> None:
    """Refuse a frame of encapsulated pixels whose stream has no end. `index` of `count` frames; `which` names the file without its name.

    Streams without a mark for their end (RLE) are checked by their decoder. A few zeros may follow the mark, to make the length even.
    """
    from pydicom.encaps import get_frame

    if not str(dataset.file_meta.TransferSyntaxUID).startswith(JPEG_FAMILY):
        return
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    try:
        stream = get_frame(dataset.PixelData, index, number_of_frames=count, extended_offsets=offsets if all(offsets) else None)
    except Exception:  # pydicom raises what broken items make it raise
        stream = b""
    if not stream.rstrip(b"\0").endswith(END):
        raise Refused("truncated-file", f"the compressed pixels of {which} end before the image does", "copy or export that file again")
