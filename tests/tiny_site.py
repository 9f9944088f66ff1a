"""A project with one site whose champion is a tiny model, registered as flows.adapt_site registers one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import yaml
from tiny_studies import ROOT, make_bundle

from pipelines.outputs import write_json
from tests.tiny_store import fresh_store

SITE = "site-b"


def make_project(folder: Path, work: Path, settings: dict[str, object]) -> Path:
    """params.yaml and conf/ of this project with the one site, of which `settings` say where its studies come from, and a registered champion."""
    from tasks.champions import promote

    (folder / "conf").mkdir(parents=True)
    shutil.copytree(ROOT / "conf", folder / "conf", dirs_exist_ok=True)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["service"]["sites"] = {SITE: {name: str(value) for name, value in settings.items()}}
    content["cohort"]["pseudonym_key"] = str(ROOT / content["cohort"]["pseudonym_key"])
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    make_bundle(work / "challenger")
    write_json(work / "challenger" / "fit" / "site.json", {"site": SITE, "backbone": "atlas:models/atlas", "earlier": {}, "labels": {}})
    forget_store()
    fresh_store(folder)
    promote(SITE, work / "challenger", verdict("a" * 64), folder)
    return folder


def forget_store() -> None:
    """MLflow keeps the store that it was last pointed at in the environment, where the next project would find it."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def verdict(content: str) -> dict:
    """What the gate says of a first model."""
    return {"challenger": content, "decision": "promote", "reasons": ["the first model"], "numbers": {},
            "champion": {"model": None, "version": None}}
