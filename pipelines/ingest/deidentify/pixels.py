"""Pixels that carry more than an image: refused where text may be burned in, cut down to the bits and bytes that the image uses otherwise."""

from __future__ import annotations

import numpy as np

from pipelines.errors import Refused

#: Classes of pictures that are photographed, printed or drawn: secondary capture, ultrasound, visible light and their multi-frame kin.
PICTURES = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.77",
            "1.2.840.10008.5.1.4.1.1.11", "1.2.840.10008.5.1.4.1.1.104")
#: Values of ImageType of what a viewer has saved.
CAPTURED = ("SCREEN SAVE", "SCREENSHOT", "SCREEN")
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient")
OBJECTS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.481.3")  # SEG, label map, RTSTRUCT
START, END_OF_IMAGE, SCAN, FILL = 0xD8, 0xD9, 0xDA, 0xFF
J2K_START, J2K_TILE, J2K_COMMENT = b"\xff\x4f", 0x90, 0x64
APPLICATION, COMMENT = range(0xE0, 0xF0), 0xFE
STAND_ALONE = (0x01, *range(0xD0, 0xD8))


def check_readable(dataset) -> None:
    """Refuse what is no image or label, and pictures that may show a name."""
    sop = str(dataset.get("SOPClassUID", ""))
    if sop not in OBJECTS and not dataset.get("Rows"):
        raise Refused("no-image", "it is a report, a plan, a waveform or a document, of which text is the content",
                      "nothing to do, or have it de-identified by hand")
    burned = str(dataset.get("BurnedInAnnotation", "")).upper()
    if burned == "YES":
        raise Refused("burned-in", "BurnedInAnnotation is YES: its pixels show text that may identify the patient",
                      "export the original series, or have the text blanked by hand")
    placed = all(_held(dataset, name) for name in GEOMETRY) or _held(dataset, "SharedFunctionalGroupsSequence")
    captured = any(str(word).upper() in CAPTURED for word in (dataset.get("ImageType") or []))
    picture = any(f"{sop}.".startswith(f"{kind}.") for kind in PICTURES)
    if burned != "NO" and (captured or (picture and not placed)):
        raise Refused("burned-in", "it is a screenshot, or a picture without a place in the patient, and BurnedInAnnotation is not NO",
                      "export the original series, or set BurnedInAnnotation to NO after looking at it")


def clean_pixels(dataset) -> bool:
    """Blank in place what pixel data hold beside the image: unused bits, bytes after the last one, comments in compressed streams. Whether any."""
    from pydicom.uid import UID

    if "PixelData" not in dataset:
        return False
    before = dataset["PixelData"].value
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    after = _compressed(before) if syntax.is_encapsulated else _native(dataset, before, "<" if syntax.is_little_endian else ">")
    dataset["PixelData"].value = after
    return after != before


def _held(dataset, name: str) -> bool:
    value = dataset.get(name)
    return value is not None and value != "" and len(value) > 0


def _native(dataset, data: bytes, order: str) -> bytes:
    allocated, stored = int(dataset.BitsAllocated), int(dataset.get("BitsStored") or dataset.BitsAllocated)
    values = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames") or 1) * int(dataset.get("SamplesPerPixel") or 1)
    bits = values * allocated
    if str(dataset.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        bits = bits * 2 // 3
    data = data[:(bits + 7) // 8]
    if bits % 8:
        data = data[:-1] + bytes([data[-1] & ((1 << bits % 8) - 1)]) if len(data) * 8 > bits else data
    high = int(dataset.get("HighBit", stored - 1))
    if allocated in (8, 16, 32) and stored < allocated and not len(data) % (allocated // 8):
        array = np.frombuffer(data, f"{order}u{allocated // 8}")
        low = high + 1 - stored
        used = (array >> low) & ((1 << stored) - 1)
        if int(dataset.get("PixelRepresentation") or 0) and not low:  # what is above a signed value is its sign
            used = np.where(used >> (stored - 1), used | (((1 << allocated) - 1) ^ ((1 << stored) - 1)), used)
        data = (used << low).astype(array.dtype).tobytes()
    return data + b"\0" * (len(data) % 2)


def _compressed(data: bytes) -> bytes:
    """Encapsulated frames without the comments of their JPEG or JPEG 2000 streams. The offset table is made again."""
    from pydicom.encaps import encapsulate, generate_fragments

    fragments = [strip_comments(fragment) for fragment in list(generate_fragments(data))[1:]]
    return encapsulate(fragments, has_bot=False)


def strip_comments(stream: bytes) -> bytes:
    """A JPEG, JPEG-LS or JPEG 2000 stream without its comment and application segments, and without what follows its end."""
    if stream[:2] == J2K_START:
        return _without(stream, lambda marker: marker == J2K_COMMENT, J2K_TILE)
    if stream[:2] != bytes([FILL, START]):
        return stream  # RLE, or a fragment that continues another
    cut = _without(stream, lambda marker: marker == COMMENT or marker in APPLICATION, SCAN)
    end = cut.rfind(bytes([FILL, END_OF_IMAGE]))
    return cut if end < 0 else cut[:end + 2] + b"\0" * (end % 2)


def _without(stream: bytes, unwanted, last: int) -> bytes:
    """`stream` without the segments of its main header that `unwanted` names; `last` is the marker that ends this header."""
    parts, place = [stream[:2]], 2
    while place + 4 <= len(stream) and stream[place] == FILL and (marker := stream[place + 1]) != last:
        if marker == FILL or marker in STAND_ALONE:
            parts, place = [*parts, stream[place:place + 1 + (marker != FILL)]], place + 1 + (marker != FILL)
            continue
        length = 2 + int.from_bytes(stream[place + 2:place + 4], "big")
        if not unwanted(marker):
            parts.append(stream[place:place + length])
        place += length
    cut = b"".join([*parts, stream[place:]])
    return cut + b"\0" * (len(cut) % 2)
