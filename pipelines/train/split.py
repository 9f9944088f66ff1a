"""Which cases teach, which set the temperature, which are judged: three groups that share no subject, drawn by seed.

The draw depends on the site's name, its cases and the seed alone, so that every system and every number of shots is compared on the same
draws, and the support of fewer shots is the beginning of the support of more. Under transfer the draw is the one of `within` with the other
sites' cases as source beside it, so that the two protocols pair case by case. Pooled shots are drawn from all sites as from one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.cohort import Answers, Case
from pipelines.errors import DataError
from pipelines.experiments import ProtocolKind
from pipelines.params import Protocol

#: Below this many query cases the calibration cases come from other sites, where there are any: a mean over one case says little.
PREFERRED_QUERY_CASES = 2
#: What stands for a site where all sites are one pool.
POOL = "all"

CalibrationSource = Literal["site", "other sites", "pool", "none"]


class TooFewCases(DataError):
    """A site cannot give the shots asked for. `what`: the finding alone, without the way out."""

    def __init__(self, what: str, experiment: str):
        super().__init__(f"experiment {experiment or '(unnamed)'!r}: {what}; lower experiments.{experiment or '<name>'}.shots in params.yaml or "
                         "add labelled cases of that site")
        self.what = what


@dataclass(frozen=True)
class Split:
    """The cases of one fit. `calibration_from` says whose images set the temperature; `source`: other sites' cases that teach too (transfer)."""

    support: tuple[Case, ...]
    calibration: tuple[Case, ...]
    query: tuple[Case, ...]
    calibration_from: CalibrationSource
    source: tuple[Case, ...] = ()

    def ids(self) -> dict[str, list[str]]:
        """Case ids of each group, as `fit.json` keeps them."""
        return {name: [case.id for case in getattr(self, name)] for name in ("support", "calibration", "query", "source")}


def draw(cases: Sequence[Case], site: str, shots: int, seed: int, protocol: Protocol, *, split_by: Literal["subject", "session"] = "subject",
         experiment: str = "", kind: ProtocolKind | None = None, answers: Answers = "voxels") -> Split:
    """Draw the support, calibration, query and source cases of one fit at `site`; `kind` stands in for `protocol.kind`.

    Labelled is a case whose truth is known: of its voxels, or of the whole case, whichever the system `answers`.

    Support is the beginning of the site's shuffled labelled cases, calibration its end, query all that is left and shares no subject with
    either (no session, with `split_by` "session"); source, under transfer, is every labelled case of another site that shares none with these.
    Pooled, `site` is `POOL` and every labelled case belongs to it. Without shots (transfer only) nothing of the site is used, not for calibration
    either. Raises `TooFewCases` where the site has too few labelled cases, `DataError` where transfer finds no other site.
    """
    kind = kind or protocol.kind
    labelled = [case for case in cases if case.known(answers)]
    local = _shuffled(labelled if kind == "pooled" else [case for case in labelled if case.site == site], f"{site}/{seed}", split_by)
    elsewhere = [] if kind == "pooled" else _without([case for case in labelled if case.site != site], local, split_by)
    support = tuple(local[:shots])
    rest = _without(local[shots:], support, split_by)
    if len(rest) < protocol.min_query_cases:
        raise TooFewCases(f"site {site!r} has {len(local)} labelled case(s), and {shots} shot(s) leave {len(rest)} of another {split_by} to evaluate "
                          f"where {protocol.min_query_cases} are needed", experiment)
    calibration, query, origin = _calibration(rest, _shuffled(elsewhere, f"not {site}/{seed}", split_by), protocol, split_by, shots)
    if kind != "transfer":
        return Split(support, calibration, query, "pool" if kind == "pooled" and origin == "site" else origin)
    source = _without(elsewhere, calibration, split_by)
    if not source and elsewhere:  # so few that calibration would take them all
        calibration, origin, source = (), "none", elsewhere
    if not source:
        raise DataError(f"experiment {experiment or '(unnamed)'!r}: protocol 'transfer' learns from other sites than {site!r}, and this cohort has "
                        "no labelled case of another subject there; use protocol 'within'")
    return Split(support, calibration, query, origin, tuple(sorted(source, key=lambda case: case.id)))


def _calibration(rest: list[Case], elsewhere: list[Case], protocol: Protocol, split_by: str, shots: int
                 ) -> tuple[tuple[Case, ...], tuple[Case, ...], CalibrationSource]:
    """The calibration cases and what of `rest` is left to evaluate. `elsewhere`: shuffled cases of other sites that could stand in."""
    wanted = protocol.calibration_cases
    if wanted == 0:
        return (), tuple(rest), "none"
    from_site = rest[-wanted:] if shots else []  # a labelled case of the site would be a shot
    query = tuple(_without(rest[:-wanted], from_site, split_by))
    if len(from_site) == wanted and len(query) >= max(protocol.min_query_cases, PREFERRED_QUERY_CASES):
        return tuple(from_site), query, "site"
    if elsewhere:
        return tuple(elsewhere[:wanted]), tuple(rest), "other sites"
    if len(from_site) == wanted and len(query) >= protocol.min_query_cases:
        return tuple(from_site), query, "site"
    return (), tuple(rest), "none"


def sites_of(cases: Sequence[Case], targets: Sequence[str] | Literal["all"], kind: ProtocolKind = "within",
             key: str = "cohort.targets") -> list[str]:
    """The sites to adapt to, sorted: those of params (`key` says where), or every site that has a case; pooled, the one pool."""
    if kind == "pooled":
        return [POOL]
    present = sorted({case.site for case in cases})
    if targets == "all":
        return present
    for site in targets:
        if site not in present:
            raise DataError(f"{key} names {site!r}, which this cohort does not have; its sites are {', '.join(present)}")
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
