"""PET activity to standardised uptake values by body weight, or a refusal that says which tag is in the way.

Follows the QIBA FDG-PET profile's vendor-neutral pseudo-code: SUVbw = activity [Bq/ml] * weight [g] / dose at the time that the
image is decay corrected to [Bq].
"""

from __future__ import annotations

from datetime import datetime, timedelta

from pipelines.errors import Refused
from pipelines.ingest.headers import Header
from pipelines.ingest.series import Series

REMEDY = "complete the tags, or convert the series to SUV where it was made and export that"
#: Beyond this the dose left is below 0.1 %: the times are of two different clocks or days, not of one examination.
MAX_HALF_LIVES = 10.0


def suv_factor(series: Series) -> float:
    """What the rescaled voxel values must be multiplied with to give SUVbw (g/ml). Raises `Refused` (code `pet-suv`)."""
    first = series.first
    for name in ("Units", "DecayCorrection", "PatientWeight"):
        if len({header.text(name) for header in series.headers}) > 1:
            raise _refused(f"{name} differs between slices")
    units = first.text("Units").upper()
    if units == "GML":
        if first.text("SUVType").upper() not in ("", "BW"):
            raise _refused("Units are GML, but SUVType is not BW (body weight)")
        return 1.0
    if units != "BQML":
        raise _refused(f"Units are {units if units.isalnum() and len(units) < 9 else 'not given'}; SUV needs BQML or GML")
    corrections = set(first.words("CorrectedImage"))
    if not {"ATTN", "DECY"} <= corrections:
        raise _refused("CorrectedImage does not say both ATTN and DECY, so voxel values are not activities at a known time")
    weight = first.number("PatientWeight") or 0.0
    if weight <= 0:
        raise _refused("PatientWeight is missing or 0")
    return weight * 1000.0 / _dose(series)


def _dose(series: Series) -> float:
    """The injected activity left at the time the image is decay corrected to, in Bq."""
    agents = series.first.get("RadiopharmaceuticalInformationSequence", [])
    if len(agents) != 1:
        raise _refused(f"RadiopharmaceuticalInformationSequence has {len(agents)} items, one is needed")
    agent = Header(series.first.file, agents[0])
    dose, half_life = agent.number("RadionuclideTotalDose") or 0.0, agent.number("RadionuclideHalfLife") or 0.0
    if dose <= 0:
        raise _refused("RadionuclideTotalDose is missing or 0")
    correction = series.first.text("DecayCorrection").upper()
    if correction == "ADMIN":
        return dose
    if correction != "START":
        raise _refused("DecayCorrection is neither START nor ADMIN")
    if half_life <= 0:
        raise _refused("RadionuclideHalfLife is missing or 0")
    delay = (_start(series) - _injection(agent, _start(series))).total_seconds() / half_life
    if not 0 <= delay <= MAX_HALF_LIVES:
        raise _refused(f"injection and scan lie {delay:.1f} half-lives apart, the times cannot belong together")
    return dose * 2.0 ** -delay


def _start(series: Series) -> datetime:
    """When the scan began. A series time after the first acquisition is the time of a later processing, and not used."""
    acquired = [_moment(header.text("AcquisitionDate") or header.text("SeriesDate"), header.text("AcquisitionTime")) for header in series.headers]
    known = [moment for moment in acquired if moment]
    begun = _moment(series.first.text("SeriesDate"), series.first.text("SeriesTime"))
    if not known and not begun:
        raise _refused("neither SeriesTime nor AcquisitionTime is given")
    return min([*known, *([begun] if begun else [])])


def _injection(agent: Header, start: datetime) -> datetime:
    if stamp := agent.text("RadiopharmaceuticalStartDateTime"):
        if moment := _moment(stamp[:8], stamp[8:].split("+")[0].split("-")[0]):
            return moment
    elif moment := _moment(start.strftime("%Y%m%d"), agent.text("RadiopharmaceuticalStartTime")):
        return moment if moment <= start else moment - timedelta(days=1)  # injected before midnight
    raise _refused("the time of injection is missing")


def _moment(date: str, time: str) -> datetime | None:
    digits = time.partition(".")[0].replace(":", "").ljust(6, "0")
    try:
        return datetime.strptime(date + digits, "%Y%m%d%H%M%S") if time else None
    except ValueError:
        return None


def _refused(why: str) -> Refused:
    return Refused("pet-suv", f"no SUV can be computed: {why}", REMEDY)
