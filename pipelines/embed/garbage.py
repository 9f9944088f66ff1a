"""Clearing a cache of the tokens that nothing asks for any more: of another backbone, or of images that left the cohort."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.cohort import read_manifest
from pipelines.embed.cache import Recipe, read_index, remove_begun, write_index
from pipelines.embed.folder import IMAGES, lock
from pipelines.errors import UsageError

TOKEN_FILE = re.compile(r"[0-9a-f]{32}\.safetensors")


@dataclass(frozen=True)
class Cleared:
    """What was removed, or would be, and what stays."""

    removed: int
    removed_bytes: int
    kept: int
    kept_bytes: int


def clear(embeddings: Path, sources: Sequence[Path] = (), *, listed_too: bool = False, dry_run: bool = False) -> Cleared:
    """Remove token files that neither the index nor a manifest of `sources` names.

    `listed_too` also removes what the index lists but no manifest names, and takes it out of the index. Waits for a writer, and keeps
    writers waiting. Raises `DataError` without an index: work of a killed first run is not garbage.
    """
    if listed_too and not sources:
        raise UsageError("to remove what the index lists, give the cohorts to keep: --source FOLDER, once for each")
    embeddings = Path(embeddings)
    with lock(embeddings):
        index = read_index(embeddings)
        recipes = {Recipe(row.fingerprint, row.precision) for row in index.itertuples()}
        named = {recipe.file(row.sha256, int(row.slice_axis))
                 for source in sources for row in read_manifest(source).query("kind == 'image'").itertuples() for recipe in recipes}
        keep = named if listed_too else named | set(index.file)
        present = {f"{IMAGES}/{path.name}": path for path in (embeddings / IMAGES).iterdir() if TOKEN_FILE.fullmatch(path.name)}
        sizes = {file: path.stat().st_size for file, path in present.items()}
        gone = sorted(set(present) - keep)
        if not dry_run:
            remove_begun(embeddings)
            if not set(index.file) <= keep:  # before the files, so that a killed run leaves none that is listed and gone
                write_index(embeddings, index[index.file.isin(keep)].to_dict("records"))
            for file in gone:
                present[file].unlink()
    removed_bytes = sum(sizes[file] for file in gone)
    return Cleared(len(gone), removed_bytes, len(sizes) - len(gone), sum(sizes.values()) - removed_bytes)
