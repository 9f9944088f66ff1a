"""A backbone that is not loaded before it has something to encode: loading one takes seconds, and a run with nothing new needs none.

Its fingerprint, levels and width are remembered from the last time it was loaded. They are taken for as long as every file of its folder,
the code that would load it, torch and the machine (on which the precision of the numbers depends) are the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import threading
from collections.abc import Iterable
from pathlib import Path

import pipelines
from pipelines.backbones import Backbone, load_backbone
from pipelines.embed.remembered import Remembered
from pipelines.errors import DataError
from pipelines.outputs import sha256

CPU_FACTS = Path("/proc/cpuinfo")


class Deferred:
    """See `pipelines.backbones.protocol.Backbone`."""

    def __init__(self, name: str, known: dict) -> None:
        self.name, self.fingerprint, self.dim = name, known["fingerprint"], known["dim"]
        self.levels = {level: tuple(shape) for level, shape in known["levels"]}
        self._loaded: Backbone | None = None
        self._loading = threading.Lock()  # images are encoded on several threads

    @property
    def loaded(self) -> Backbone:
        """The backbone itself."""
        with self._loading:
            if self._loaded is None:
                backbone = load_backbone(self.name)
                if backbone.fingerprint != self.fingerprint:
                    raise DataError(f"the files of {self.name} changed while this run read them; run the embed stage again")
                self._loaded = backbone
        return self._loaded

    def encode_image(self, volume, spacing_mm):
        return self.loaded.encode_image(volume, spacing_mm)

    def align(self, tokens):
        return self.loaded.align(tokens)

    def encode_text(self, texts):
        return self.loaded.encode_text(texts)

    def __reduce__(self):
        """To another process it goes whole: the folder may not be there."""
        return _itself, (self.loaded,)


def _itself(backbone: Backbone) -> Backbone:
    return backbone


def backbone_key(name: str, remembered: Remembered) -> str | None:
    """What the backbone that params call `name` depends on, as hex; None for a hub id, whose files only its library finds."""
    folder = Path(name.partition(":")[2])
    if not folder.parts or not folder.is_dir():
        return None
    files = [[path.relative_to(folder).as_posix(), remembered.sha256(path.resolve())] for path in sorted(folder.rglob("*")) if path.is_file()]
    return digest_of([name, files, code_digest("backbones"), _machine()])


def deferred(name: str, key: str | None, remembered: Remembered) -> Backbone:
    """The backbone of that key as it is remembered, else loaded, and remembered."""
    known = remembered.of_key(f"backbone {name}", key) if key else None
    if known:
        return Deferred(name, known)
    backbone = load_backbone(name)
    if key:
        remembered.keep_of_key(f"backbone {name}", key, {"fingerprint": backbone.fingerprint, "dim": backbone.dim,
                                                        "levels": [[level, list(shape)] for level, shape in backbone.levels.items()]})
    return backbone


def code_digest(*parts: str) -> str:
    """SHA-256 over the code of some of the project's packages and modules."""
    package = Path(pipelines.__file__).parent
    paths = sorted(path for part in parts for path in ([package / part] if part.endswith(".py") else (package / part).rglob("*.py")))
    return digest_of([[path.relative_to(package).as_posix(), sha256(path)] for path in paths])


def digest_of(value: object) -> str:
    """SHA-256 of anything that JSON can spell."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _machine() -> list[object]:
    """What decides in which precision a model computes here, read without importing torch."""
    torch = importlib.util.find_spec("torch")
    version = sha256(Path(torch.origin).with_name("version.py")) if torch and torch.origin else ""
    return [version, platform.machine(), _processor_flags(), sorted(path.name for path in Path("/dev").glob("nvidia*")),
            os.environ.get("CUDA_VISIBLE_DEVICES", "")]


def _processor_flags() -> str:
    try:
        lines: Iterable[str] = CPU_FACTS.read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
