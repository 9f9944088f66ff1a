"""Text vectors of a prompt bank, encoded once per text and backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipelines.backbones.protocol import Backbone
from pipelines.errors import DataError
from pipelines.outputs import staged_file, write_json
from pipelines.prompts.bank import PromptBank

TENSORS, NAMES = "text.safetensors", "text.json"


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
    """Write `text.safetensors` and `text.json` for exactly `texts`; returns how many had to be encoded."""
    known = _stored(Path(folder), backbone.fingerprint)
    new = [text for text in texts if text not in known]
    known |= dict(zip(new, backbone.encode_text(new), strict=True))
    matrix = np.stack([known[text] for text in texts]).astype(np.float32) if texts else np.zeros((0, backbone.dim), np.float32)
    with staged_file(Path(folder) / TENSORS) as path:
        save_file({"embeddings": matrix}, path, metadata={"fingerprint": backbone.fingerprint})
    write_json(Path(folder) / NAMES, texts)
    return len(new)


def _stored(folder: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """Vectors of an earlier run of the same backbone; none where the files are missing, damaged or do not fit together."""
    try:
        texts = json.loads((folder / NAMES).read_text())
        with safe_open(folder / TENSORS, "numpy") as stored:
            if (stored.metadata() or {}).get("fingerprint") != fingerprint:
                return {}
            matrix = stored.get_tensor("embeddings")
        lengths = np.linalg.norm(matrix, axis=1)
        return dict(zip(texts, matrix, strict=True)) if np.allclose(lengths, 1, atol=1e-4) else {}
    except (OSError, ValueError, SafetensorError):
        return {}
