"""The private elements that stay: numbers that a volume, its contrast or its units depend on.

The first ones are safe by DICOM PS3.15 Table E.3.10-1; the others are numbers too, as pydicom's private dictionary has them, and are needed to tell
the volumes of a series apart. No private text stays, and an element is kept only where its bytes are numbers of the type given here.
"""

from __future__ import annotations

#: (group, creator, element) -> VR.
SAFE = {
    # PS3.15 Table E.3.10-1
    (0x0019, "SIEMENS MR HEADER", 0x0A): "US",  # NumberOfImagesInMosaic
    (0x0019, "SIEMENS MR HEADER", 0x0B): "DS",  # SliceMeasurementDuration
    (0x0019, "SIEMENS MR HEADER", 0x0C): "IS",  # B_value
    (0x0019, "SIEMENS MR HEADER", 0x0E): "FD",  # DiffusionGradientDirection
    (0x0019, "SIEMENS MR HEADER", 0x27): "FD",  # B_matrix
    (0x0019, "SIEMENS MR HEADER", 0x28): "FD",  # BandwidthPerPixelPhaseEncode
    (0x0043, "GEMS_PARM_01", 0x39): "IS",  # b-value, first of four
    (0x2001, "Philips Imaging DD 001", 0x03): "FL",  # Diffusion B-Factor
    (0x2005, "Philips MR Imaging DD 001", 0x0D): "FL",  # Scale Intercept
    (0x2005, "Philips MR Imaging DD 001", 0x0E): "FL",  # Scale Slope
    (0x7053, "Philips PET Private Group", 0x00): "DS",  # SUV Factor
    (0x7053, "Philips PET Private Group", 0x09): "DS",  # Activity Concentration Factor
    # numbers that tell volumes apart
    (0x0019, "GEMS_ACQU_01", 0xBB): "DS",  # diffusion direction x, y, z
    (0x0019, "GEMS_ACQU_01", 0xBC): "DS",
    (0x0019, "GEMS_ACQU_01", 0xBD): "DS",
    (0x0043, "GEMS_PARM_01", 0x2F): "SS",  # magnitude, phase, real or imaginary
    (0x2001, "Philips Imaging DD 001", 0x08): "IS",  # phase number
    (0x2005, "Philips MR Imaging DD 001", 0xB0): "FL",  # diffusion direction RL, AP, FH
    (0x2005, "Philips MR Imaging DD 001", 0xB1): "FL",
    (0x2005, "Philips MR Imaging DD 001", 0xB2): "FL",
    (0x0065, "Image Private Header", 0x09): "FD",  # United Imaging: b-value
    (0x0065, "Image Private Header", 0x37): "FD",  # gradient direction
    (0x0065, "Image Private Header", 0x50): "DS",  # tiles of a grid
    (0x0065, "Image Private Header", 0x51): "SQ",  # their positions, cleaned as any sequence
}
CSA_IMAGE, CSA_SERIES = (0x0029, "SIEMENS CSA HEADER", 0x10), (0x0029, "SIEMENS CSA HEADER", 0x20)


def kept(dataset, make_again: bool) -> list[tuple[tuple[int, str, int], str, object]]:
    """Those of a data set: (group, creator, element), VR, value. `make_again`: CSA headers are needed, and rebuilt from their numbers (csa.py)."""
    from pydicom.tag import Tag

    from pipelines.ingest.deidentify.csa import numeric_image_header, numeric_series_header
    from pipelines.ingest.elements import items, numbers, private_blocks

    found = []
    blocks = private_blocks(dataset)
    for key, vr in SAFE.items():
        if (block := blocks.get(key[:2])) is None or (tag := Tag(block + key[2])) not in dataset:
            continue
        if vr == "SQ":
            if held := items(dataset, tag):
                found.append((key, vr, held))
            continue
        values = numbers(dataset, tag, vr)
        if values and all(abs(value) < float("inf") for value in values):
            found.append((key, vr, _typed(values, vr)))
    for key, rebuild in ((CSA_IMAGE, numeric_image_header), (CSA_SERIES, numeric_series_header)):
        block = blocks.get(key[:2])
        if make_again and block is not None and (tag := Tag(block + key[2])) in dataset and (data := rebuild(dataset[tag].value)):
            found.append((key, "OB", data + b"\0" * (len(data) % 2)))
    return found


def _typed(values: list[float], vr: str) -> list:
    """Numbers as their VR wants them; a decimal string has 16 characters at most."""
    if vr == "DS":
        return [f"{value:.10g}" for value in values]
    return [int(value) for value in values] if vr in ("IS", "US", "SS", "UL", "SL") else values
