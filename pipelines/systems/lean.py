"""MONAI without what nothing here uses of it.

`import monai` loads every module it has, and with them whatever it can make use of: transformers, MLflow and matplotlib are most of the eight
seconds it takes. MONAI calls them optional and does without where they are missing, so they are missing while it is imported.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

#: Used by MONAI's TransChex, its MLflow handler and its notebooks alone.
UNUSED = ("transformers", "mlflow", "matplotlib")


def load_monai() -> None:
    """Import MONAI, quickly; `from monai.losses import ...` and the like follow this."""
    with absent(*UNUSED):
        import monai  # noqa: F401


@contextlib.contextmanager
def absent(*packages: str) -> Iterator[None]:
    """Inside the block, importing one of `packages` fails as if it was not installed, unless it was imported before. Not for use with threads."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None there is Python's own sign for a module that must not be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
