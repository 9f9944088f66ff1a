"""The data section of the page: a cohort's fingerprint.json as warnings and tables that a clinician can read."""

from __future__ import annotations

from collections.abc import Mapping

SEVERITIES = {"check": "Look at this first", "know": "Good to know"}
MANY = 6  # combinations shown one by one; the rest is summed up
UNKNOWN = "not given"


def data_section(fingerprint: Mapping | None) -> dict[str, object] | None:
    """What the template needs of a fingerprint; None where the cohort has none."""
    if fingerprint is None:
        return None
    return {
        "counts": fingerprint["counts"],
        "warnings": [{"title": title, "severity": severity, "rows": rows} for severity, title in SEVERITIES.items()
                     if (rows := [_warning(one) for one in fingerprint["warnings"] if one["severity"] == severity])],
        "checks": sum(one["severity"] == "check" for one in fingerprint["warnings"]),
        "modalities": [_modality(name, found) for name, found in fingerprint["modalities"].items()],
        "sites": [_site(name, found) for name, found in fingerprint["sites"].items()],
        "names": list(fingerprint["modalities"]),
        "combinations": _combinations(fingerprint["combinations"]),
        "labels": [{"name": name, "cases": found["cases"], "absent": found["absent"], "volume": found["volume_ml"]}
                   for name, found in fingerprint["labels"].items()],
        "refused": sorted(fingerprint["refused"].items(), key=lambda item: (-item[1], item[0])),
    }


def _warning(one: Mapping) -> dict[str, object]:
    sentence = one["sentence"]
    return {"code": one["code"], "sentence": sentence[0].upper() + sentence[1:], "remedy": one["remedy"], "cases": len(one["cases"])}


def _modality(name: str, found: Mapping) -> dict[str, object]:
    shapes = list(found["shapes"])
    return {"name": name, "images": found["images"], "subjects": found["subjects"], "sites": len(found["sites"]),
            "shape": shapes[0].replace("x", " × ") if len(shapes) == 1 else f"{len(shapes)} sizes", "in_plane": _range(found["in_plane_mm"]),
            "slices": _range(found["slice_mm"]), "intensity": found["intensity"]["median"]}


def _site(name: str, found: Mapping) -> dict[str, object]:
    return {"name": name, "subjects": found["subjects"], "cases": found["cases"], "labelled": found["labelled_cases"],
            "makers": _words(found["manufacturers"]), "scanners": _words(found["scanners"]),
            "tesla": ", ".join(f"{tesla} T" for tesla in found["field_strengths_t"]) or UNKNOWN, "modalities": found["modalities"]}


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(name or UNKNOWN for name in counts) or UNKNOWN


def _range(spread: Mapping[str, float | None], digits: int = 3) -> str:
    """Median, and the range where there is one."""
    low, middle, high = (f"{spread[name]:.{digits}g}" for name in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _combinations(found: list[Mapping]) -> list[dict[str, object]]:
    """The most frequent sets of modalities by what they lack; what is rare together in one row."""
    rows = [{"has": ", ".join(one["modalities"]) or "no image", "lacks": ", ".join(one["missing"]) or "nothing", "cases": one["cases"],
             "labelled": one["labelled_cases"]} for one in found]
    if len(rows) <= MANY:
        return rows
    rest = rows[MANY - 1:]
    return [*rows[:MANY - 1], {"has": f"{len(rest)} other sets", "lacks": "", "cases": sum(row["cases"] for row in rest),
                               "labelled": sum(row["labelled"] for row in rest)}]
