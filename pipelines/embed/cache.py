"""The content-addressed cache of dense tokens: one safetensors file per image, named after what its content depends on.

A file proves itself: its header carries its key and a checksum of its tensors, so that a truncated, altered or misplaced file is noticed
whether or not the writer lived long enough to list it in the index.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipelines.cohort import frame
from pipelines.embed.folder import IMAGES, INDEX
from pipelines.embed.precision import FLOAT16, SCALE, unpack
from pipelines.errors import DataError
from pipelines.outputs import staged_file

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = ".safetensors"
#: The one entry of a token file's header (one, because safetensors writes several in no fixed order): its key and its checksum.
PROOF = "key and checksum"
INDEX_COLUMNS = {"subject": "str", "session": "str", "modality": "str", "sha256": "str", "slice_axis": "Int64", "fingerprint": "str",
                 "precision": "str", "file": "str", "checksum": "str", "bytes": "Int64"}


@dataclass(frozen=True)
class Recipe:
    """What tokens depend on besides their image: the backbone's weights, preprocessing and code, and how they are stored."""

    fingerprint: str
    precision: str = FLOAT16

    def file(self, image_sha256: str, slice_axis: int) -> str:
        """Where the tokens of an image lie in the cache: a name made of everything that they depend on."""
        key = f"{image_sha256} {slice_axis} {self.fingerprint} {self.precision}"
        return f"{IMAGES}/{hashlib.sha256(key.encode()).hexdigest()[:32]}{SUFFIX}"


class StoredTokens(Mapping[str, np.ndarray]):
    """Levels of one image on disk, level name -> `(S, C, h, w)` float16. Nothing is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __getitem__(self, level: str) -> np.ndarray:
        with self._opened() as stored:
            if level not in stored.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                raise KeyError(level)
            return unpack(stored.get_tensor(level), _scale(stored, level))

    def __iter__(self) -> Iterator[str]:
        with self._opened() as stored:
            return iter([name for name in stored.keys() if not name.endswith(SCALE)])  # noqa: SIM118

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def slices(self, chosen: Sequence[int]) -> dict[str, np.ndarray]:
        """Only some slices of every level, `(len(chosen), C, h, w)`: the file is mapped into memory, the others are never read."""
        with self._opened() as stored:
            levels = [name for name in stored.keys() if not name.endswith(SCALE)]  # noqa: SIM118
            parts = {}
            for name in levels:
                level = stored.get_slice(name)
                wanted = np.arange(level.get_shape()[0])[list(chosen)]  # an index out of range is the caller's error, not the file's
                parts[name] = unpack(np.stack([level[int(index)] for index in wanted]), _scale(stored, name))
            return parts

    @contextlib.contextmanager
    def _opened(self) -> Iterator:
        try:
            with safe_open(self.path, "numpy") as stored:
                yield stored
        except (OSError, SafetensorError):
            raise DataError(f"{self.path} is gone or damaged; run the embed stage again, it computes again what is missing") from None


def _scale(stored, level: str) -> np.ndarray | None:
    return stored.get_tensor(level + SCALE) if level + SCALE in stored.keys() else None  # noqa: SIM118


def write_tokens(path: Path, tensors: Mapping[str, np.ndarray]) -> str:
    """Write the packed levels of one image whole or not at all; returns their checksum."""
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    digest = checksum(tensors)
    with writing(path), staged_file(path) as temporary:
        save_file(tensors, temporary, metadata={PROOF: f"{path.stem} {digest}"})
    return digest


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into an error with a way out."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be written ({error}); free some space or give another --out, what is finished is kept") from None


def remove_begun(folder: Path) -> None:
    """Remove what a killed writer had begun. Only under the lock: nobody else writes then."""
    for left in [*Path(folder).glob(".[0-9]*"), *(Path(folder) / IMAGES).glob(".[0-9]*")]:
        left.unlink(missing_ok=True)


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


def write_index(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `index.parquet`: which file holds the tokens of which image."""
    table = frame(rows, INDEX_COLUMNS).sort_values(["subject", "session", "modality", "sha256"]).reset_index(drop=True)
    with staged_file(Path(folder) / INDEX) as path:
        table.to_parquet(path, index=False)


def read_index(folder: Path) -> pd.DataFrame:
    """Read `index.parquet`. Raises `DataError` where there is none, or one that this version did not write."""
    path = Path(folder) / INDEX
    if not path.is_file():
        raise DataError(f"{path} does not exist; run the embed stage first (python -m pipelines.embed --out {folder} ...)")
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError):
        raise DataError(f"{path} is damaged; run the embed stage again, token files that are whole are kept") from None
    if missing := [name for name in INDEX_COLUMNS if name not in table]:
        raise DataError(f"{path} has no column {', '.join(missing)}; it was not written by this version, run the embed stage again")
    return table


def token_files(embeddings: Path) -> dict[str, StoredTokens]:
    """Tokens of every embedded image, by the SHA-256 of the image file: what `pipelines.cohort.cases_of` takes as `tokens`."""
    files = {row.sha256: Path(embeddings) / row.file for row in read_index(embeddings).itertuples()}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(files)} token files that {INDEX} lists are gone (first: {missing[0]}); run the embed stage again")
    return {digest: StoredTokens(path) for digest, path in files.items()}
