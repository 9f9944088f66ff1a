"""Atlas as a frozen backbone: weights and config from a folder, dense tokens and text vectors out."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from pipelines.backbones.atlas.config import AtlasConfig
from pipelines.backbones.atlas.image import COARSE_STRIDE, FINE_STRIDE, ImageEncoder
from pipelines.backbones.atlas.text import TextEncoder
from pipelines.backbones.precision import PRECISIONS, native_precision
from pipelines.errors import DataError
from pipelines.outputs import staged_file, write_json

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
#: Raised whenever the same weights would give other numbers: it is part of the fingerprint, so caches notice.
CODE_VERSION = "3"
#: Slices encoded together: large enough to keep two cores busy, small enough to stay in their caches.
SLICES_AT_ONCE = 8


class Towers(nn.Module):
    """Both encoders and the temperature they were trained with."""

    def __init__(self, config: AtlasConfig):
        super().__init__()
        self.image = ImageEncoder(config.widths, config.depths, config.fine, config.coarse, config.dim)
        self.text = TextEncoder(config.text_buckets, config.dim, config.text_layers, config.text_heads)
        self.classes = nn.Parameter(torch.randn(config.classes, config.dim)) if config.classes else None
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())


class Atlas:
    """The embedded backbone, on the CPU. See `pipelines.backbones.protocol.Backbone`, and `pipelines.backbones.precision` for `precision`.

    Every slice is encoded with its two neighbours, at the resolution it has; it was trained on pixels of 0.9 to 2 mm, slices 1 to 9 mm apart.
    """

    def __init__(self, towers: Towers, config: AtlasConfig, fingerprint: str, precision: torch.dtype | None = None):
        self.towers = towers.eval().to(memory_format=torch.channels_last)
        self.config = config
        self.dim = config.dim
        self.levels = {"fine": (config.fine, FINE_STRIDE), "coarse": (config.coarse, COARSE_STRIDE)}
        self.precision = precision or native_precision(accelerated=False)
        self._fingerprint = fingerprint

    @classmethod
    def load(cls, folder: str | Path) -> Atlas:
        """From a folder with weights.safetensors and config.json. Raises DataError where either is missing or they do not fit."""
        weights, config_file = Path(folder) / WEIGHTS, Path(folder) / CONFIG
        for path in (weights, config_file):
            if not path.is_file():
                raise DataError(f"{path} does not exist; get it with the project (git checkout {path}), "
                                f"or train it: python -m pipelines.backbones.atlas.pretrain --out {folder}")
        try:
            config = AtlasConfig(**json.loads(config_file.read_text()))
            towers = Towers(config)
            towers.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
        except (ValidationError, ValueError, TypeError) as error:
            raise DataError(f"{config_file} is no Atlas config ({' '.join(str(error).split())}); restore it with git checkout") from None
        except (SafetensorError, RuntimeError) as error:
            raise DataError(f"{weights} is damaged or does not fit {CONFIG} ({' '.join(str(error).split())[:200]}); "
                            "restore both with git checkout") from None
        return cls(towers, config, _fingerprint(weights.read_bytes(), config))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._fingerprint} {self.precision}".encode()).hexdigest()

    def computing_as(self, fingerprint: str) -> Atlas:
        """This backbone in the precision that has this fingerprint, slower where the machine lacks it; itself where none has."""
        others = (Atlas(self.towers, self.config, self._fingerprint, precision) for precision in PRECISIONS)
        return next((other for other in others if other.fingerprint == fingerprint), self)

    @property
    def scale(self) -> float:
        """What similarities are multiplied by before a softmax over classes: the inverse temperature of the training."""
        return float(self.towers.log_scale.detach().exp())

    @torch.inference_mode()
    def encode_image(self, volume: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        """Tokens of `(S, H, W)`: `fine` `(S, 24, ceil(H/2), ceil(W/2))` and `coarse` `(S, 64, ceil(H/8), ceil(W/8))`, float16.

        `spacing_mm` is not used: slices are not resampled, so that a token always covers whole pixels.
        """
        slices = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16):
            batches = [self.towers.image.encode(slices, slice(start, start + SLICES_AT_ONCE)) for start in range(0, len(slices), SLICES_AT_ONCE)]
        return {name: torch.cat([batch[name] for batch in batches]).half().contiguous().numpy() for name in self.levels}

    @torch.inference_mode()
    def align(self, tokens: dict[str, np.ndarray]) -> np.ndarray:
        """Tokens in text space, `(S, h, w, dim)` float32, unit length, at the fine grid."""
        fine, coarse = (torch.from_numpy(np.asarray(tokens[name], dtype=np.float32)) for name in ("fine", "coarse"))
        parts = [self.towers.image.align({"fine": a, "coarse": b}) for a, b in
                 zip(fine.split(SLICES_AT_ONCE), coarse.split(SLICES_AT_ONCE), strict=True)]
        return torch.cat(parts).permute(0, 2, 3, 1).contiguous().numpy()

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> np.ndarray:
        """`(N, dim)` float32, unit length. Raises DataError for a control model that was taught without text."""
        if self.config.classes:
            raise DataError(f"this Atlas was taught with {self.config.classes} class vectors and without text; use one whose config has classes: 0")
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return self.towers.text(list(texts)).numpy()

    def encode_text_with_context(self, texts: list[str], context: torch.Tensor) -> torch.Tensor:
        """`(N, dim)`, unit length, with a gradient for `context` `(N, L, dim)`, which is read before the words of each text (prompt learning)."""
        return self.towers.text(list(texts), context)

    def image_tower(self) -> ImageEncoder:
        """A copy of the image tower to train; see `with_image_tower`."""
        return copy.deepcopy(self.towers.image)

    def with_image_tower(self, tower: nn.Module) -> Atlas:
        """The same backbone with another image tower; its fingerprint is not this one's, so its tokens must not be cached."""
        towers = copy.copy(self.towers)
        towers._modules = {**self.towers._modules, "image": tower}
        return Atlas(towers, self.config, f"{self._fingerprint} with another image tower", self.precision)

    def class_vectors(self) -> np.ndarray:
        """`(classes, dim)` float32, unit length: what stands in for texts in a control model (in the order of `concepts.CONCEPTS`)."""
        return functional.normalize(self.towers.classes.detach(), dim=1).numpy()


def save_towers(folder: Path, towers: Towers, config: AtlasConfig) -> None:
    """Write what `Atlas.load` reads: float16 weights (they are small enough to live in the repository) and the config."""
    with staged_file(Path(folder) / WEIGHTS) as path:
        save_file({name: tensor.detach().half().contiguous() for name, tensor in towers.state_dict().items()}, path)
    write_json(Path(folder) / CONFIG, config.model_dump())


def _fingerprint(weights: bytes, config: AtlasConfig) -> str:
    digest = hashlib.sha256(weights)
    digest.update(json.dumps(config.model_dump(), sort_keys=True).encode())
    digest.update(f"atlas {CODE_VERSION}".encode())
    return digest.hexdigest()
