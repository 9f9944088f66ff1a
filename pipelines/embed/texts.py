"""Text vectors of a prompt bank, encoded once per text and backbone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipelines.backbones.protocol import Backbone
from pipelines.errors import DataError
from pipelines.outputs import staged_file, write_json
from pipelines.prompts.bank import PromptBank

TENSORS, NAMES = "text.safetensors", "text.json"
#: The one entry of the vectors' header: whose they are, of which texts, and their checksum.
PROOF = "fingerprint and checksum"


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
        save_file({"embeddings": matrix}, path, metadata={PROOF: _proof(backbone.fingerprint, texts, matrix)})
    write_json(Path(folder) / NAMES, texts)
    return len(new)


def _stored(folder: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """Vectors of an earlier run of the same backbone; none where the files are missing, damaged or not of one run.

    A writer killed between the two files leaves new vectors beside old texts, perhaps as many of them.
    """
    try:
        texts = json.loads((folder / NAMES).read_text())
        with safe_open(folder / TENSORS, "numpy") as stored:
            matrix = stored.get_tensor("embeddings")
            proven = (stored.metadata() or {}).get(PROOF) == _proof(fingerprint, texts, matrix)
        return dict(zip(texts, matrix, strict=True)) if proven else {}
    except (OSError, ValueError, SafetensorError):
        return {}


def _proof(fingerprint: str, texts: Sequence[str], matrix: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps(list(texts)).encode())
    digest.update(np.ascontiguousarray(matrix).data)
    return f"{fingerprint} {digest.hexdigest()}"
