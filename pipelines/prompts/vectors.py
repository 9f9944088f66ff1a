"""Text vectors on disk: `text.json` lists the texts, `text.safetensors` holds a row for each and proves that it belongs to them.

Both are written by the embed stage and read by whoever needs a prompt bank. A writer killed between the two leaves new vectors beside old
texts, perhaps as many of them, which only the proof tells apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipelines.errors import DataError
from pipelines.outputs import staged_file, write_json

TENSORS, NAMES = "text.safetensors", "text.json"
#: The one entry of the vectors' header: whose they are, of which texts, and their checksum.
PROOF = "fingerprint and checksum"


def write_vectors(folder: Path, fingerprint: str, texts: Sequence[str], matrix: np.ndarray) -> None:
    """Write the vectors `(N, dim)` float32 of `texts`, encoded by the backbone of that fingerprint."""
    with staged_file(Path(folder) / TENSORS) as path:
        save_file({"embeddings": matrix}, path, metadata={PROOF: _proof(fingerprint, texts, matrix)})
    write_json(Path(folder) / NAMES, list(texts))


def read_vectors(folder: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The backbone's fingerprint, and text -> vector `(dim,)`. Raises DataError where files are missing, damaged or not of one run."""
    folder = Path(folder)
    for path in (folder / NAMES, folder / TENSORS):
        if not path.is_file():
            raise DataError(f"{path} does not exist; run the embed stage first (python -m pipelines.embed --out {folder} ...)")
    try:
        texts = json.loads((folder / NAMES).read_text())
        with safe_open(folder / TENSORS, "numpy") as stored:
            matrix = stored.get_tensor("embeddings")
            proof = (stored.metadata() or {}).get(PROOF, "")
        fingerprint = proof.partition(" ")[0]
        if proof == _proof(fingerprint, texts, matrix):
            return fingerprint, dict(zip(texts, matrix, strict=True))
    except (OSError, ValueError, TypeError, SafetensorError):
        pass
    raise DataError(f"{folder / TENSORS} is damaged or holds vectors of other texts than {NAMES} lists; run the embed stage again")


def _proof(fingerprint: str, texts: Sequence[str], matrix: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps(list(texts)).encode())
    digest.update(np.ascontiguousarray(matrix).data)
    return f"{fingerprint} {digest.hexdigest()}"
