"""What many tests want and takes seconds to make (simulated patients, a trained model, a migrated database): made once a run, then copied.

The processes of one run share it.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipelines.outputs import locked

#: Where it is kept: tests/conftest.py names a folder of the run; without it, one of this process.
PLACE: list[Path] = []


def kept(name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, which `make` is given (it exists and is empty) where nobody has filled it yet. Do not change it, copy it."""
    if not PLACE:
        PLACE.append(Path(tempfile.mkdtemp(prefix="semiflow-kept-")))
        atexit.register(shutil.rmtree, PLACE[0], ignore_errors=True)
    PLACE[0].mkdir(exist_ok=True)
    folder = PLACE[0] / name
    with locked(PLACE[0] / f".{name}.lock"):
        if not folder.is_dir():
            making = Path(tempfile.mkdtemp(dir=PLACE[0], prefix=f".{name}-"))
            make(making)
            making.rename(folder)
    return folder
