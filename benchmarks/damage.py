"""Small series and ways to damage them: flipped bits, cut files, false lengths and types, edited, lost and doubled elements and files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.random_series import classic, encoded, enhanced, geometry

META_END = 132  # bytes before the first element
PIXELS = b"\xe0\x7f\x10\x00"  # the tag of PixelData
VRS = (b"AE", b"CS", b"DS", b"IS", b"LO", b"OB", b"OW", b"SQ", b"UI", b"UL", b"UN", b"US", b"XX", b"\0\0")
TEXTS = ("", "0", "-1", "1e400", "nan", "abc", "65536", "1\\2", "1\\0\\0\\0\\1\\0", "0\\0\\0", "\\", "9" * 70, "MOSAIC", "1.2.840.10008.1.2.4.90")
NUMBERS = (0, 1, 2, 3, 7, 8, 12, 16, 17, 32, 64, 255, 4096, 65535)
BASES = 12  # of each kind
Files = list[bytes]


@cache
def bases(mosaics: Path | None) -> list[tuple[str, Files]]:
    """Undamaged series as the bytes of their files."""
    rng, found = np.random.default_rng(4711), []
    for _ in range(BASES):
        found.append(("classic", [encoded(ds) for ds in classic(rng)[0]]))
        found.append(("compressed", [encoded(ds) for ds in classic(rng, compressed=True)[0]]))
        found.append(("enhanced", [encoded(ds) for ds in enhanced(rng)]))
    found += [("segmentation", _segmentation(rng)) for _ in range(2)]
    if mosaics is not None:
        folders = sorted({path.parent for path in mosaics.rglob("*") if path.is_file()})
        found += [("mosaic", [path.read_bytes() for path in sorted(folder.glob("*.dcm"))]) for folder in folders if list(folder.glob("*.dcm"))]
    return found


def _segmentation(rng: np.random.Generator) -> Files:
    """A DICOM segmentation of a classic series, alone."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    datasets, _, _ = classic(rng, geometry(rng, slices=(3, 5), edge=(8, 9)))
    label = np.zeros((len(datasets), datasets[0].Rows, datasets[0].Columns), np.uint8)
    label[:, 2:5, 3:6] = 1
    kind = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm
    segment = hd.seg.SegmentDescription(1, "tumour", *kind, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
    for ds in datasets:
        ds.StudyID, ds.AccessionNumber, ds.PatientBirthDate, ds.PatientSex, ds.ReferringPhysicianName = "", "", "", "", ""
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    made = hd.seg.Segmentation(datasets, label, hd.seg.SegmentationTypeValues.BINARY, [segment], hd.UID(), 2, hd.UID(), 1, "Maker", "Model", "1", "1")
    return [encoded(made)]


def damaged(number: int, seed: int, mosaics: Path | None) -> tuple[str, Files, Files]:
    """What was done to series `number`, its files after that, and before."""
    rng, found = np.random.default_rng([seed, number]), bases(mosaics)
    kind, before = found[int(rng.integers(len(found)))]
    files, names = list(before), []
    for _ in range(int(rng.integers(1, 4))):
        name = str(rng.choice(list(DAMAGES)))
        names.append(name)
        files = DAMAGES[name](files, rng)
    return f"{kind}: {', '.join(names)}", files, before


def _one(files: Files, rng: np.random.Generator, change: Callable[[bytearray, np.random.Generator], object]) -> Files:
    """The files with one of them (or, one time in four, all of them, in the same way) changed in place."""
    chosen, seed, out = range(len(files)), int(rng.integers(2**31)), list(files)
    if files and rng.random() > 0.25:
        chosen = [int(rng.integers(len(files)))]
    for index in chosen:
        content = bytearray(files[index])
        if len(content) > META_END:
            with contextlib.suppress(Exception):  # a damage that does not fit these bytes leaves them
                out[index] = bytes(change(content, np.random.default_rng(seed)) or content)
    return out


def flip_header(files: Files, rng: np.random.Generator) -> Files:
    def change(content, rng):
        end = content.rfind(PIXELS)
        content[int(rng.integers(META_END, end if end > META_END else len(content)))] ^= 1 << int(rng.integers(8))
    return _one(files, rng, change)


def flip_anywhere(files: Files, rng: np.random.Generator) -> Files:
    def change(content, rng):
        for place in rng.integers(0, len(content), int(rng.integers(1, 20))):
            content[int(place)] ^= 1 << int(rng.integers(8))
    return _one(files, rng, change)


def truncate(files: Files, rng: np.random.Generator) -> Files:
    return _one(files, rng, lambda content, rng: content[:int(rng.integers(1, len(content)))])


def zero_block(files: Files, rng: np.random.Generator) -> Files:
    def change(content, rng):
        start = int(rng.integers(0, len(content)))
        size = min(int(rng.integers(1, 600)), len(content) - start)
        content[start:start + size] = bytes(size)
    return _one(files, rng, change)


def edit_element(files: Files, rng: np.random.Generator) -> Files:
    """A random element, at any depth, gets another value of its kind."""
    def change(content, rng):
        import pydicom

        ds = pydicom.dcmread(io.BytesIO(content))
        elements = [element for element in ds.iterall() if element.tag.group != 0x7FE0 and element.VR != "SQ"]
        element = elements[int(rng.integers(len(elements)))]
        if element.VR in ("US", "SS", "UL", "SL"):
            element.value = int(rng.choice(NUMBERS))
        elif element.VR in ("FD", "FL"):
            element.value = float(rng.choice([0, -1, 1e30, np.nan, np.inf]))
        else:
            _set_text(element, str(rng.choice(TEXTS)))
        return bytearray(encoded(ds))
    return _one(files, rng, change)


def _set_text(element, text: str) -> None:
    import pydicom.config

    before = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        element.VR, element.value = "LO" if element.VR != "UI" else "UI", text.split("\\") if "\\" in text else text
    finally:
        pydicom.config.settings.writing_validation_mode = before


def _elements(content: bytes) -> list[tuple[int, int]]:
    """Where top-level elements of an explicit little-endian file begin and end."""
    import pydicom

    ds, found = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True), []
    for tag in sorted(ds.keys()):
        mark = int(tag >> 16).to_bytes(2, "little") + int(tag & 0xFFFF).to_bytes(2, "little")
        if (start := content.find(mark, META_END)) > 0:
            found.append(start)
    found.sort()
    return list(zip(found, [*found[1:], len(content)], strict=True))[:-1]


def lie_about_length(files: Files, rng: np.random.Generator) -> Files:
    def change(content, rng):
        spans = _elements(bytes(content))
        start = spans[int(rng.integers(len(spans)))][0]
        content[start + 6:start + 8] = int(rng.choice([0, 1, 2, 8, 255, 65535, 4096])).to_bytes(2, "little")
    return _one(files, rng, change)


def lie_about_type(files: Files, rng: np.random.Generator) -> Files:
    def change(content, rng):
        spans = _elements(bytes(content))
        start = spans[int(rng.integers(len(spans)))][0]
        content[start + 4:start + 6] = VRS[int(rng.integers(len(VRS)))]
    return _one(files, rng, change)


def drop_element(files: Files, rng: np.random.Generator) -> Files:
    def change(content, rng):
        spans = _elements(bytes(content))
        start, end = spans[int(rng.integers(len(spans)))]
        del content[start:end]
    return _one(files, rng, change)


def double_element(files: Files, rng: np.random.Generator) -> Files:
    def change(content, rng):
        spans = _elements(bytes(content))
        start, end = spans[int(rng.integers(len(spans)))]
        content[end:end] = content[start:end]
    return _one(files, rng, change)


def lose_files(files: Files, rng: np.random.Generator) -> Files:
    keep = rng.random(len(files)) > 0.25
    return [content for content, kept in zip(files, keep, strict=True) if kept] or files[:1]


def double_file(files: Files, rng: np.random.Generator) -> Files:
    return [*files, files[int(rng.integers(len(files)))]]


def mix_in(files: Files, rng: np.random.Generator) -> Files:
    """A file of another series, under this one's UIDs half of the time."""
    import pydicom

    _, others = bases(None)[int(rng.integers(len(bases(None))))]
    with contextlib.suppress(Exception):
        own, ds = pydicom.dcmread(io.BytesIO(files[0])), pydicom.dcmread(io.BytesIO(others[int(rng.integers(len(others)))]))
        if rng.random() < 0.5:
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = own.StudyInstanceUID, own.SeriesInstanceUID, own.FrameOfReferenceUID
        return [*files, encoded(ds)]
    return files


DAMAGES: dict[str, Callable[[Files, np.random.Generator], Files]] = {damage.__name__: damage for damage in (
    flip_header, flip_anywhere, truncate, zero_block, edit_element, lie_about_length, lie_about_type, drop_element, double_element, lose_files,
    double_file, mix_in)}
