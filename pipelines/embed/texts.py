"""Text vectors of a prompt bank, encoded once per text and backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipelines.backbones.protocol import Backbone
from pipelines.errors import DataError
from pipelines.prompts.bank import PromptBank
from pipelines.prompts.vectors import read_vectors, write_vectors


def bank_texts(prompts: Path) -> list[str]:
    """Every distinct text of the prompts stage's folder."""
    path = Path(prompts) / "prompts.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist; run the prompts stage first (python -m pipelines.prompts --out {prompts} ...)")
    try:
        return PromptBank(json.loads(path.read_text()), {}).texts()
    except (ValueError, AttributeError, TypeError):
        raise DataError(f"{path} is no prompt bank (modality -> class -> site -> list of texts); run the prompts stage again") from None


def embed_texts(backbone: Backbone, texts: list[str], folder: Path) -> int:
    """Write the vectors of exactly `texts`; returns how many had to be encoded. Vectors of another backbone, or damaged ones, are not used."""
    try:
        fingerprint, known = read_vectors(folder)
    except DataError:
        fingerprint, known = "", {}
    known = known if fingerprint == backbone.fingerprint else {}
    new = [text for text in texts if text not in known]
    if new:
        known |= dict(zip(new, backbone.encode_text(new), strict=True))
    matrix = np.stack([known[text] for text in texts]).astype(np.float32) if texts else np.zeros((0, backbone.dim), np.float32)
    write_vectors(folder, backbone.fingerprint, texts, matrix)
    return len(new)
