"""A model as it is served: a folder with `fit/` (weights and record), `text/` (prompts and their vectors) and, where known, who it is.

    fit/            as `pipelines.train.one.save_fit` writes it; beside the weights quality.json and quality.safetensors, where they were made:
                    what the site's cases look like (`pipelines.sites.typical`)
    text/           prompts.json, text.json, text.safetensors
    champion.json   {model, version, source, backbone}; without it the model goes by its system and its contents

Nothing is unpickled: weights are safetensors, or skops with its list of trusted types.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.backbones.protocol import Backbone
from pipelines.errors import DataError
from pipelines.outputs import sha256
from pipelines.prompts.bank import PromptBank
from pipelines.sites.typical import Reference
from pipelines.systems.protocol import Task
from pipelines.train.fitted import RECORD, Fitted, load_fitted

FIT, TEXT, IDENTITY = "fit", "text", "champion.json"


@dataclass(frozen=True)
class Model:
    """A fitted model, its name and version in the registry, a digest of its contents, and what its site's cases look like."""

    fitted: Fitted
    name: str
    version: str
    digest: str
    reference: Reference | None

    @property
    def site(self) -> str:
        return str(self.fitted.record["site"])

    def facts(self) -> dict[str, str]:
        """Who it is, for reports."""
        return {"name": self.name, "version": self.version, "digest": self.digest, "system": str(self.fitted.record["system"]), "site": self.site}


def read_record(folder: Path) -> dict:
    """The record of a bundle's fit. Raises `DataError` where the folder is no bundle."""
    path = Path(folder) / FIT / RECORD
    if not path.is_file() or not (Path(folder) / TEXT).is_dir():
        raise DataError(f"{folder} is no model (it needs {FIT}/{RECORD} and {TEXT}/ with prompts and their vectors); give the folder of a champion "
                        "or of a challenger")
    return json.loads(path.read_text())


def backbone_of(folder: Path, default: str) -> tuple[str, str]:
    """The frozen backbone of a bundle: its name in params (`default` where the bundle does not say) and its fingerprint."""
    record, identity = read_record(folder), _identity(folder)
    return str(identity.get("backbone") or default), str(record["backbone"])


def load_model(folder: Path, backbone: Backbone) -> Model:
    """Read a bundle that works with `backbone`. Raises `DataError` where a part of it is missing, or it was made with another backbone."""
    folder = Path(folder)
    record, identity = read_record(folder), _identity(folder)
    if backbone.fingerprint != record["backbone"]:
        raise DataError(f"{folder} was trained on the backbone {record['backbone'][:12]}, and this is {backbone.fingerprint[:12]}; give that one")
    prompts = PromptBank.load(folder / TEXT, folder / TEXT)
    task = Task(tuple(record["labels"]), tuple(record["modalities"]), prompts, backbone)
    digest = digest_of(folder)
    return Model(load_fitted(folder / FIT, task), str(identity.get("model") or f"semiflow-{record['system']}"),
                 str(identity.get("version") or digest[:12]), digest, Reference.load(folder / FIT))


def digest_of(folder: Path) -> str:
    """A hash of all that a bundle predicts with, whatever the registry calls it."""
    files = sorted(path for part in (FIT, TEXT) for path in (Path(folder) / part).rglob("*") if path.is_file())
    content = [[path.relative_to(folder).as_posix(), sha256(path)] for path in files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _identity(folder: Path) -> dict:
    path = Path(folder) / IDENTITY
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise DataError(f"{path} is damaged; have the model fetched again") from None
