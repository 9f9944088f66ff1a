"""The content-addressed cache of dense tokens: one safetensors file per image, named after what its content depends on.

A file proves itself: its header carries its key and a checksum of its tensors, so that a truncated, altered or misplaced file is noticed
whether or not the writer lived long enough to list it in the index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipelines.cohort import frame
from pipelines.errors import DataError
from pipelines.outputs import staged_file

INDEX = "index.parquet"
IMAGES = "images"
#: The one entry of a token file's header (one, because safetensors writes several in no fixed order): its key and its checksum.
PROOF = "key and checksum"
INDEX_COLUMNS = {"subject": "str", "session": "str", "modality": "str", "sha256": "str", "fingerprint": "str", "file": "str", "checksum": "str",
                 "bytes": "Int64"}


def key(image_sha256: str, fingerprint: str) -> str:
    """What tokens depend on, as one hex digest: the image's bytes and the backbone's fingerprint."""
    return hashlib.sha256(f"{image_sha256} {fingerprint}".encode()).hexdigest()


def token_path(folder: Path, image_sha256: str, fingerprint: str) -> Path:
    return Path(folder) / IMAGES / f"{key(image_sha256, fingerprint)[:32]}.safetensors"


def write_tokens(path: Path, tokens: Mapping[str, np.ndarray]) -> str:
    """Write the levels of one image whole or not at all; returns their checksum."""
    tensors = {name: np.ascontiguousarray(array) for name, array in tokens.items()}
    digest = checksum(tensors)
    try:
        with staged_file(path) as temporary:
            save_file(tensors, temporary, metadata={PROOF: f"{path.stem} {digest}"})
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be written ({error}); free some space or give another --out, what is finished is kept") from None
    return digest


def intact(path: Path) -> str | None:
    """The checksum of a token file that is whole and belongs where it lies, else None."""
    try:
        with safe_open(path, "numpy") as stored:
            metadata = stored.metadata() or {}
            digest = checksum({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118 - a safetensors handle is no mapping
    except (OSError, SafetensorError, ValueError):
        return None
    return digest if metadata.get(PROOF) == f"{path.stem} {digest}" else None


def checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes, types and values, whatever order a file keeps them in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape} ".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def write_index(folder: Path, rows: list[Mapping[str, object]]) -> None:
    """Write `index.parquet`: which file holds the tokens of which image."""
    table = frame(rows, INDEX_COLUMNS).sort_values(["subject", "session", "modality", "sha256"]).reset_index(drop=True)
    with staged_file(Path(folder) / INDEX) as path:
        table.to_parquet(path, index=False)


def read_index(folder: Path) -> pd.DataFrame:
    path = Path(folder) / INDEX
    if not path.is_file():
        raise DataError(f"{path} does not exist; run the embed stage first (python -m pipelines.embed --out {folder} ...)")
    return pd.read_parquet(path)


def token_files(embeddings: Path) -> dict[str, Path]:
    """Token file of every embedded image, by the SHA-256 of the image file: what `pipelines.cohort.cases_of` takes as `tokens`."""
    files = {row.sha256: Path(embeddings) / row.file for row in read_index(embeddings).itertuples()}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(files)} token files that {INDEX} lists are gone (first: {missing[0]}); run the embed stage again")
    return files
