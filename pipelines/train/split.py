"""Which cases teach, which set the temperature, which are judged: three groups that share no subject, drawn by seed.

The draw depends on the site's name, its cases and the seed alone, so that every system and every number of shots is compared on the same
draws, and the support of fewer shots is the beginning of the support of more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.params import Protocol

#: Below this many query cases the calibration cases come from other sites, where there are any: a mean over one case says little.
PREFERRED_QUERY_CASES = 2

CalibrationSource = Literal["site", "other sites", "none"]


@dataclass(frozen=True)
class Split:
    """The cases of one fit. `calibration_from` says whose images set the temperature."""

    support: tuple[Case, ...]
    calibration: tuple[Case, ...]
    query: tuple[Case, ...]
    calibration_from: CalibrationSource

    def ids(self) -> dict[str, list[str]]:
        """Case ids of each group, as `fit.json` keeps them."""
        return {name: [case.id for case in getattr(self, name)] for name in ("support", "calibration", "query")}


def draw(cases: Sequence[Case], site: str, shots: int, seed: int, protocol: Protocol, *,
         split_by: Literal["subject", "session"] = "subject", experiment: str = "") -> Split:
    """Draw the support, calibration and query cases of one fit at `site` (protocol `within`).

    Support is the beginning of the site's shuffled labelled cases, calibration its end, query all that is left and shares no subject with
    either (no session, with `split_by` "session"). Raises `DataError` where the site has too few labelled cases.
    """
    labelled = [case for case in cases if case.dseg is not None]
    local = _shuffled([case for case in labelled if case.site == site], f"{site}/{seed}", split_by)
    support = tuple(local[:shots])
    rest = _without(local[shots:], support, split_by)
    if len(rest) < protocol.min_query_cases:
        raise DataError(f"experiment {experiment or '(unnamed)'!r}: site {site!r} has {len(local)} labelled case(s), and {shots} shot(s) leave "
                        f"{len(rest)} of another {split_by} to evaluate where {protocol.min_query_cases} are needed; "
                        f"lower experiments.{experiment or '<name>'}.shots in params.yaml or add labelled cases of that site")
    wanted = protocol.calibration_cases
    if wanted == 0:
        return Split(support, (), tuple(rest), "none")
    from_site = rest[-wanted:]
    query = tuple(_without(rest[:-wanted], from_site, split_by))
    if len(from_site) == wanted and len(query) >= max(protocol.min_query_cases, PREFERRED_QUERY_CASES):
        return Split(support, tuple(from_site), query, "site")
    elsewhere = _without([case for case in labelled if case.site != site], local, split_by)
    if elsewhere:
        return Split(support, tuple(_shuffled(elsewhere, f"not {site}/{seed}", split_by)[:wanted]), tuple(rest), "other sites")
    if len(from_site) == wanted and len(query) >= protocol.min_query_cases:
        return Split(support, tuple(from_site), query, "site")
    return Split(support, (), tuple(rest), "none")


def sites_of(cases: Sequence[Case], targets: Sequence[str] | Literal["all"]) -> list[str]:
    """The sites to adapt to, sorted: those of params' cohort.targets, or every site that has a case."""
    present = sorted({case.site for case in cases})
    if targets == "all":
        return present
    for site in targets:
        if site not in present:
            raise DataError(f"cohort.targets names {site!r}, which this cohort does not have; its sites are {', '.join(present)}")
    return sorted(set(targets))


def _unit(case: Case, split_by: str) -> str:
    """What two groups may not share."""
    return case.subject if split_by == "subject" else case.id


def _shuffled(cases: Sequence[Case], key: str, split_by: str) -> list[Case]:
    """Cases in an order that only `key` and their ids decide, those of one subject one after another."""
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    units: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.id):
        units.setdefault(_unit(case, split_by), []).append(case)
    groups = list(units.values())
    return [case for index in generator.permutation(len(groups)) for case in groups[index]]


def _without(cases: Sequence[Case], taken: Sequence[Case], split_by: str) -> list[Case]:
    """Those of `cases` that share nothing with `taken`."""
    units = {_unit(case, split_by) for case in taken}
    return [case for case in cases if _unit(case, split_by) not in units]
