"""How stored values become measured ones, from any of the places where a header says it.

In this order:
1. Philips MR: (stored * RS + RI) / (RS * SS), with the scale slope SS of (2005,xx0E). Values of one scan are comparable with another's only so
   (Chenevert et al., Transl Oncol 2014, PMC3998685); dcm2niix does the same by default, also where a real-world value map is present.
2. RescaleSlope and RescaleIntercept (PS3.3 C.11.1, C.7.6.16.2.9): what Hounsfield units, Bq/ml and a SUV are defined on.
3. a linear real-world value map (PS3.3 C.7.6.16.2.11) with physical units, where there is no RescaleSlope.
4. stored values as they are.
"""

from __future__ import annotations

import math

from pydicom.tag import Tag

from pipelines.errors import Refused
from pipelines.ingest.elements import items, number, numbers, private_blocks, text

INTERCEPT, SLOPE, TYPE = Tag("RescaleIntercept"), Tag("RescaleSlope"), Tag("RescaleType")
MODALITY_LUT, VALUE_MAPS = Tag("ModalityLUTSequence"), Tag("RealWorldValueMappingSequence")
MAP_SLOPE, MAP_INTERCEPT = Tag("RealWorldValueSlope"), Tag("RealWorldValueIntercept")
MAP_TABLE, MAP_UNITS, CODE, PET_UNITS = Tag("RealWorldValueLUTData"), Tag("MeasurementUnitsCodeSequence"), Tag("CodeValue"), Tag("Units")
PHILIPS = (0x2005, "Philips MR Imaging DD 001")
SCALE_SLOPE = 0x0E

#: Standard tags that the header pass must read, and (group, creator, element) of private ones.
TAGS = (INTERCEPT, SLOPE, TYPE, MODALITY_LUT, VALUE_MAPS, PET_UNITS)
PRIVATE = ((*PHILIPS, SCALE_SLOPE),)

#: Names of units as headers have them -> as sidecars show them. Any other text stays in the header, because it may be anything.
UNITS = {"HU": "HU", "BQML": "Bq/ml", "GML": "g/ml", "CNTS": "counts", "CPS": "counts/s", "PROPCPS": "proportional to counts/s", "mrad": "mrad",
         "rad": "rad", "Hz": "Hz", "ms": "ms", "s": "s", "1/s": "1/s", "/s": "1/s", "mm2/s": "mm2/s", "um2/s": "um2/s", "10-6 mm2/s": "um2/s",
         "10*-6.mm2/s": "um2/s", "Bq/ml": "Bq/ml", "{counts}": "counts", "{SUVbw}g/ml": "g/ml", "g/ml{SUVbw}": "g/ml", "[hnsf'U]": "HU", "%": "%",
         "[%]": "%", "ml/(100.g.min)": "ml/100g/min", "ml/100g/min": "ml/100g/min", "cm/s": "cm/s", "mm/s": "mm/s", "T": "T", "uT": "uT"}
NO_UNITS = ("", "1", "{no units}", "no units", "US")
AGAIN = "export the series again"


def scaling_of(dataset) -> tuple[float, float, bool, str]:
    """(slope, intercept, whether the header gave them, what the values are) of a single-frame data set.

    measured = slope * stored + intercept. Raises `Refused` for values that a line does not describe.
    """
    return scaling_from(dataset, dataset, dataset)


def scaling_from(rescale, mapped, private) -> tuple[float, float, bool, str]:
    """As `scaling_of`, from the items that hold the rescaling, the real-world value maps and Philips' private elements (each may be None).

    In an enhanced object they are functional groups of a frame (PS3.3 C.7.6.16).
    """
    if rescale is not None and MODALITY_LUT in rescale and items(rescale, MODALITY_LUT):
        raise Refused("modality-lut", "its stored values become measured ones through a table (ModalityLUTSequence), not a line",
                      "export it with RescaleSlope, or give the NIfTI")
    slope, intercept = (_single(rescale, tag) for tag in (SLOPE, INTERCEPT))
    given = slope is not None
    if (slope is None) != (intercept is None) and SLOPE in rescale and INTERCEPT in rescale:
        raise Refused("bad-rescale", f"its {'RescaleSlope' if slope is None else 'RescaleIntercept'} is empty", AGAIN)
    units = _units(rescale) if rescale is not None else ""
    if (scale := _philips_scale(private)) is not None:
        display_slope, display_intercept = _checked(slope if given else 1.0, intercept or 0.0)
        line = 1 / scale, display_intercept / (display_slope * scale)
        return *_checked(*line), True, "floating-point values of the scanner (Philips scale slope)"
    if not given and mapped is not None and (found := _real_world(items(mapped, VALUE_MAPS))) is not None:
        return found
    if slope is None and intercept is None:
        return 1.0, 0.0, False, units
    return *_checked(1.0 if slope is None else slope, intercept or 0.0), True, units


def _single(dataset, tag: int, vr: str = "DS") -> float | None:
    """The one number of an element; NaN for several or for none that can be read, None for an absent one."""
    found = numbers(dataset, tag, vr) if dataset is not None else []
    return None if not found else found[0] if len(found) == 1 else math.nan


def _checked(slope: float, intercept: float) -> tuple[float, float]:
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise Refused("bad-rescale", "RescaleSlope is 0, or it or RescaleIntercept is not a number", AGAIN)
    return slope, intercept


def _philips_scale(dataset) -> float | None:
    """Philips' scale slope, None where there is none. 0 stands for none too."""
    block = private_blocks(dataset).get(PHILIPS) if dataset is not None else None
    return (number(dataset, block + SCALE_SLOPE, "FL") or None) if block else None


def _real_world(maps) -> tuple[float, float, bool, str] | None:
    """The line of the real-world value maps that have physical units; None where there is no such map."""
    physical = [one for one in maps if _map_units(one) not in NO_UNITS]
    if any(MAP_TABLE in one for one in physical):
        raise Refused("real-world-lut", "its stored values become measured ones through a table (RealWorldValueLUTData), not a line",
                      "export it with RescaleSlope, or give the NIfTI")
    lines = {(_single(one, MAP_SLOPE, "FD"), _single(one, MAP_INTERCEPT, "FD")) for one in physical}
    if not lines:
        return None
    if len(lines) > 1:
        raise Refused("real-world-lut", f"it has {len(lines)} real-world value maps and no RescaleSlope, so which values are meant is open",
                      "export it with RescaleSlope, or give the NIfTI")
    slope, intercept = lines.pop()
    name = UNITS.get(_map_units(physical[0]), "")
    return *_checked(slope if slope is not None else math.nan, intercept or 0.0), True, f"real-world values{f' in {name}' if name else ''}"


def _map_units(one) -> str:
    return next((text(code, CODE) for code in items(one, MAP_UNITS)), "")


def _units(dataset) -> str:
    return next((UNITS[name] for tag in (TYPE, PET_UNITS) if (name := text(dataset, tag)) in UNITS), "")
