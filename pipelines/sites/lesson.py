"""What the next model of a site is made of and judged on, as one small file: every labelled case with its role and the digest of its images.

DVC follows this file instead of the data behind it: an unlabelled study, or one more query case of a site that does not matter here, is no reason
to train again. An earlier site gives only cases that its own champion was made with or judged on: what its gate has not accepted, a
mislabelled batch for example, must not teach or judge elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.cohort import case_id, read_manifest
from pipelines.outputs import sha256
from pipelines.sites.folders import Folders
from pipelines.sites.params import Gate
from pipelines.sites.roles import Given, read_roles

#: Inside a model's `fit/`: the site, and which labelled cases it was made with and judged on.
CARD = "site.json"
FIT = "fit.json"  # as pipelines.train.fitted calls it, whose import takes long


def labelled(resampled: Path) -> dict[str, dict[str, str]]:
    """Case id -> `subject`, `label` (SHA-256 of its label) and `digest` (of all its files), for every case with images, mask and label."""
    found = {}
    for (subject, session), rows in read_manifest(resampled).groupby(["subject", "session"], sort=True):
        files = {row.kind: row.sha256 for row in rows.itertuples()}
        if {"image", "mask", "label"} <= set(files):
            listing = sorted([row.kind, row.modality, row.sha256] for row in rows.itertuples())
            found[case_id(subject, session)] = {"subject": subject, "label": files["label"],
                                                "digest": hashlib.sha256(json.dumps(listing).encode()).hexdigest()}
    return found


def make_lesson(site: str, own: Folders, earlier: Mapping[str, str], rehearsal: int, root: Path) -> dict[str, object]:
    """The lesson of `site`. `earlier`: the workspaces of earlier sites by name, seen from the folder `root`; `rehearsal`: support cases that each
    lends."""
    given = read_roles(own.roles)
    cases = _with_roles(labelled(own.resampled), given)
    own_subjects = {entry.subject for entry in given}
    lent = {name: _lent(Folders(root / folder), rehearsal, own_subjects) for name, folder in earlier.items()}
    return {"site": site, "cases": cases, "text": sha256(own.prompts / "prompts.json"),
            "earlier": [{"site": name, "folder": folder, "cases": lent[name], "text": sha256(Folders(root / folder).prompts / "prompts.json")}
                        for name, folder in earlier.items()]}


def _with_roles(cases: Mapping[str, dict], given: Sequence[Given]) -> dict[str, dict[str, object]]:
    order = {entry.subject: (index, entry) for index, entry in enumerate(given)}
    return {name: {**case, "role": order[case["subject"]][1].role, "batch": order[case["subject"]][1].batch, "order": order[case["subject"]][0]}
            for name, case in cases.items() if case["subject"] in order}


def _lent(folders: Folders, rehearsal: int, not_these: set[str]) -> dict[str, dict[str, object]]:
    """The first `rehearsal` support cases of another site, and all its query cases; none of a patient who is known here too."""
    accepted = read_card(folders.champion).get("labels", {})
    cases = {name: case for name, case in _with_roles(labelled(folders.resampled), read_roles(folders.roles)).items()
             if case["subject"] not in not_these and accepted.get(name) == case["label"]}
    support = sorted((name for name, case in cases.items() if case["role"] == "support"), key=lambda name: (cases[name]["order"], name))[:rehearsal]
    return {name: case for name, case in cases.items() if name in support or case["role"] == "query"}


def read_card(bundle: Path) -> dict:
    """The card of the model in `bundle`; empty where there is none."""
    path = Path(bundle) / "fit" / CARD
    return json.loads(path.read_text()) if path.is_file() else {}


def digest(bundle: Path) -> str:
    """What a model is, as hex: the files of its fit, without what the clock wrote into them."""
    record = json.loads((bundle / "fit" / FIT).read_text()) | {"train_seconds": None}
    files = [[path.relative_to(bundle).as_posix(), sha256(path)] for path in sorted((bundle / "fit").rglob("*"))
             if path.is_file() and path.name != FIT]
    return hashlib.sha256(json.dumps([record, files], sort_keys=True).encode()).hexdigest()


def read_lesson(path: Path) -> dict | None:
    """The lesson in `path`, None without."""
    return json.loads(path.read_text()) if path.is_file() else None


def named(cases: Mapping[str, Mapping], role: str) -> list[str]:
    """Ids of the cases of a role, in the order in which the roles were given."""
    return sorted((name for name, case in cases.items() if case["role"] == role), key=lambda name: (cases[name]["order"], name))


def lacking(lesson: Mapping, gate: Gate) -> list[str]:
    """What a site has too little of to adapt to it and to judge the outcome, a sentence each; empty where it is enough."""
    wanted = {"support": 1, "calibration": gate.min_calibration_cases, "query": gate.min_query_cases}
    have = {role: len({lesson["cases"][name]["subject"] for name in named(lesson["cases"], role)}) for role in wanted}
    return [f"{have[role]} labelled patient(s) for {role}, {number} needed" for role, number in wanted.items() if have[role] < number]
