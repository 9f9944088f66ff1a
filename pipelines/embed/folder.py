"""Where things lie in the cache's folder and beside it, and who may write there."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pipelines.outputs import locked

INDEX = "index.parquet"
IMAGES = "images"


def lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Held by whoever writes into the cache or clears it; freed by the kernel when its holder dies."""
    folder = Path(folder).resolve()  # one lock, whatever link leads there
    return locked(folder.parent / f".{folder.name}.lock")


def notes(folder: Path) -> Path:
    """What this machine has checked (`pipelines.embed.remembered`): beside the cache, whose bytes do not depend on the machine."""
    folder = Path(folder).resolve()
    return folder.parent / f".{folder.name}.checked.json"
