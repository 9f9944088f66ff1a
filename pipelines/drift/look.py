"""Look at one site: which cases are recent, how they differ from those that the champion was made with, and what a person should do.

`drift.json` says all of it. Where nothing that it depends on has changed, it is handed back as it is, and no image is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.cohort import MANIFEST, Case, cases_of, read_manifest
from pipelines.drift.calibrated import compare, load_champion
from pipelines.drift.distance import Test, pairwise, permutation_test
from pipelines.drift.headers import new_facts
from pipelines.embed.folder import INDEX
from pipelines.errors import DataError
from pipelines.outputs import sha256, write_json
from pipelines.params import Params
from pipelines.predict.bundle import IDENTITY
from pipelines.report.resampling import holm
from pipelines.sites.describe import by_patient, histogram, pooled_tokens
from pipelines.sites.folders import Folders

REPORT = "drift.json"
FIT = "fit/fit.json"  # in the folder of the champion

#: no-champion, no-reference, nothing-new, too-few: nothing can be said; same; header: new header facts alone; drift.
VERDICTS = ("no-champion", "no-reference", "nothing-new", "too-few", "same", "header", "drift")


@dataclass(frozen=True)
class Groups:
    """The cases to compare. `recent` are the newest that the champion does not know, `known` those it was made with."""

    known: list[Case]
    recent: list[Case]
    query: list[str]  # ids of the cases that the champion was judged by


def look(workspace: Path, params: Params, *, calibration: bool = True) -> tuple[dict[str, object], bool]:
    """Bring `workspace/drift.json` up to date. Returns it, and whether it was made anew.

    `workspace` is a site's folder with `data/resampled`, `data/embeddings` and `champion/`; the cases that a champion of another site was made with
    are looked for in that site's folder beside it. Raises `DataError` where the stages of the site have not run.
    """
    workspace = Path(workspace)
    home, champion = _champion(workspace)
    inputs, report = _inputs(workspace, home, params, calibration), workspace / REPORT
    if (known := _read(report)) and known.get("inputs") == inputs:
        return known, False
    facts = {"site": workspace.name, "champion": champion, "inputs": inputs}
    found = _compare(workspace, home, params, calibration) if home else {"verdict": "no-champion"}
    found |= facts
    found["sentence"] = sentence(found, params)
    write_json(report, found)
    return found, True


def _champion(workspace: Path) -> tuple[Path | None, dict[str, object]]:
    """The workspace of the site that the champion was made at, and which model it is."""
    path = Folders(workspace).champion / IDENTITY
    if not path.is_file():
        return None, {}
    content = json.loads(path.read_text())
    return workspace.parent / str(content.get("source") or workspace.name), {name: content.get(name) for name in ("model", "version", "source")}


def _inputs(workspace: Path, home: Path | None, params: Params, calibration: bool) -> str:
    """Everything that the report depends on, as hex."""
    from pipelines.embed.deferred import code_digest

    files = []
    for site in map(Folders, dict.fromkeys([workspace, home or workspace])):
        files += [site.resampled / MANIFEST, site.embeddings / INDEX, site.champion / IDENTITY, site.champion / FIT]
    parts = [sha256(path) if path.is_file() else "" for path in files]
    settings = [params.service.drift.model_dump(), params.service.gate.ece_margin, params.evaluate.model_dump(), params.embed.backbone, calibration]
    return hashlib.sha256(json.dumps([parts, settings, code_digest("drift")]).encode()).hexdigest()


def _read(report: Path) -> dict[str, object]:
    try:
        content = json.loads(report.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _compare(workspace: Path, home: Path, params: Params, calibration: bool) -> dict[str, object]:
    groups, settings = gather(workspace, home, params.service.drift.recent), params.service.drift
    known, recent = ({case.subject for case in cases} for cases in (groups.known, groups.recent))
    found: dict[str, object] = {"known": len(known), "recent": len(recent), "recent_cases": [case.id for case in groups.recent]}
    if not known or not recent:
        return found | {"verdict": "no-reference" if not known else "nothing-new"}
    found["facts"] = new_facts(_rows(home, groups.known), _rows(workspace, groups.recent))
    tests, modalities = tested([*groups.known, *groups.recent], recent, settings.permutations)
    found["tests"] = {name: {"distance": test.distance, "p": test.p, "smallest_p": test.smallest} for name, test in tests.items()}
    found["modalities"] = modalities
    adjusted = holm([test.p for test in tests.values()])
    found["p"] = min(adjusted)
    since = [case for case in groups.recent if case.dseg is not None]
    if calibration and since:
        before = [case for case in groups.known if case.id in groups.query and case.dseg is not None]
        found["calibration"] = compare(load_champion(Folders(workspace).champion, params), before[-settings.recent:], since, params)
    return found | {"verdict": _verdict(found, len(tests) * max(test.smallest for test in tests.values()), settings.p)}


def _verdict(found: dict, reachable: float, p: float) -> str:
    if found["p"] <= p or found.get("calibration", {}).get("worse"):
        return "drift"
    if found["facts"]:
        return "header"
    return "too-few" if reachable > p else "same"


def gather(workspace: Path, home: Path, recent: int) -> Groups:
    """The champion's own cases in `home`, and of the others in `workspace` those of the `recent` latest patients."""
    record = json.loads((Folders(workspace).champion / FIT).read_text())
    split = {name: list(record.get("split", {}).get(name, ())) for name in ("support", "calibration", "query")}
    made_with = {name for names in split.values() for name in names}
    own = _cases(workspace)
    there = own if home == workspace else _cases(home) if (Folders(home).resampled / MANIFEST).is_file() else []
    known = [case for case in there if case.id in made_with]
    taken = {case.subject for case in known} if home == workspace else set()
    newest: dict[str, float] = {}
    for case in own:
        if case.id not in made_with and case.subject not in taken:
            newest[case.subject] = max(newest.get(case.subject, 0.0), arrived(case))
    latest = set(sorted(newest, key=lambda subject: (newest[subject], subject))[-recent:])
    return Groups(known, [case for case in own if case.subject in latest and case.id not in made_with], split["query"])


def arrived(case: Case) -> float:
    """When a case came, in seconds since the epoch: when its first tokens were written. A token file is written once and never again."""
    return min((tokens.path.stat().st_mtime for tokens in case.tokens.values()), default=0.0)


def _cases(workspace: Path) -> list[Case]:
    from pipelines.embed.cache import token_files

    site = Folders(workspace)
    if not (site.resampled / MANIFEST).is_file():
        raise DataError(f"{site.resampled / MANIFEST} does not exist; run the site's stages first (python -m flows.adapt_site {workspace.name})")
    return cases_of(site.resampled, token_files(site.embeddings))


def _rows(workspace: Path, cases: Sequence[Case]):
    """Rows of the manifest of these cases."""
    table = read_manifest(Folders(workspace).resampled)
    wanted = {(case.subject, case.session) for case in cases}
    return table[[key in wanted for key in zip(table.subject, table.session, strict=True)]]


def tested(cases: Sequence[Case], recent: set[str], permutations: int) -> tuple[dict[str, Test], dict[str, dict[str, float]]]:
    """Tests of embeddings and of intensities over all modalities; and each modality's energy distance, which says where to look first."""
    tests, modalities = {}, {}
    for name, describe in (("embeddings", pooled_tokens), ("intensities", histogram)):
        patients = by_patient(cases, describe)
        marked = np.array([subject in recent for subject in patients])
        tests[name] = permutation_test(pairwise(list(patients.values())), marked, permutations)
        for modality in sorted({modality for of in patients.values() for modality in of}):
            having = np.array([modality in of for of in patients.values()])
            if marked[having].any() and not marked[having].all():
                alone = pairwise([{modality: of[modality]} for of in patients.values() if modality in of])
                modalities.setdefault(modality, {})[name] = permutation_test(alone, marked[having], permutations).distance
    return tests, modalities


def sentence(found: dict, params: Params) -> str:
    """What a person needs to know, and what to do."""
    site, p = found["site"], f"p = {found['p']:.2g}" if "p" in found else ""
    latest, own = f"the {found.get('recent')} latest patients of {site}", f"the {found.get('known')} that its champion was made with"
    headers = "; ".join(f"{entry['fact']} {entry['modality']}".strip() + f" {', '.join(map(str, entry['new']))}" for entry in found.get("facts", []))
    said = {
        "no-champion": f"{site} has no champion yet, so there is nothing to compare with; run adapt_site once labelled cases have arrived.",
        "no-reference": f"None of the cases that the champion of {site} was made with lie on this machine; they can be compared once it has a "
                        "champion of its own.",
        "nothing-new": f"No patient has come to {site} since its champion was made.",
        "too-few": f"{latest} and {own} are too few to show a difference at p = {params.service.drift.p:g} ({p}); wait for more.",
        "same": f"{latest} look like {own} ({p}).",
        "header": f"{latest} look like {own} ({p}), but their headers are new ({headers}): check the results on these cases by eye.",
    }
    text = said.get(found["verdict"]) or _alarm(found, params, f"{latest} differ from {own} ({p}", headers)
    return text[0].upper() + text[1:]


def _alarm(found: dict, params: Params, differ: str, headers: str) -> str:
    """The sentence of the verdict 'drift'."""
    parts = []
    if found["p"] <= params.service.drift.p:
        most = max(found["modalities"], key=lambda name: found["modalities"][name].get("embeddings", 0.0))
        parts.append(f"{differ}, most on {most})")
    if found.get("calibration", {}).get("worse"):
        errors = found["calibration"]
        parts.append(f"the champion is worse calibrated on the {errors['cases_since']} labelled cases since "
                     f"(ECE {errors['ece_since']:.3f}, was {errors['ece_before']:.3f})")
    return ", and ".join(parts) + (f"; new in their headers: {headers}" if headers else "") + "; label some of them and run adapt_site."
