"""Which vision transformer a params value names: the project's own, or a published checkpoint through transformers.

Either is a module with `size` (pixels), `dim`, `targets` (endings of the names of the layers that adapters wrap), `embed(slices)`, `(N, size,
size)` to what enters the first block, `(N, tokens, dim)` with the class token first, and `forward(tokens, further=None)`, further `(N, K, dim)`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from pipelines.backbones.vit.config import VitConfig

#: The weights of the stem "atlas", which this transformer does not store again.
ATLAS = "models/atlas"
WEIGHTS, CONFIG = "weights.safetensors", "config.json"
HUB, STEM = "transformers", "stem.tower."


def load_vit(name: str) -> nn.Module:
    """The frozen transformer `vit:<folder>` (this project's, with weights.safetensors and config.json) or `transformers:<folder>` (a ViT checkpoint).

    Its `fingerprint` is the hash of its weights. A relative folder is looked for here and beside the installed code. Raises `UsageError` where
    there is none.
    """
    adapter, _, where = name.partition(":")
    if adapter not in ("vit", HUB) or not where:
        raise UsageError(f"the vision transformer {name!r} is not known; give 'vit:<folder>' (models/vit is the project's own) or "
                         f"'{HUB}:<folder of a ViT checkpoint>'")
    folder = next((place for place in (Path(where), Path(__file__).parents[3] / where) if (place / CONFIG).is_file()), None)
    if folder is None:
        raise UsageError(f"the vision transformer {name!r} has no {CONFIG} at {where}; give a folder with one (vit:models/vit is ours)")
    network = _own(folder) if adapter == "vit" else _published(folder)
    network.fingerprint = _fingerprint(network)
    return network.requires_grad_(False).eval()


def save_vit(folder: Path, network: nn.Module, config: VitConfig) -> None:
    """Write weights (float16: the network is frozen) and config; the frozen Atlas is not written."""
    from safetensors.torch import save_file

    from pipelines.outputs import staged_file, write_json

    folder.mkdir(parents=True, exist_ok=True)
    with staged_file(folder / WEIGHTS) as path:
        save_file({key: value.half().contiguous() for key, value in network.state_dict().items() if not key.startswith(STEM)}, path)
    write_json(folder / CONFIG, config.model_dump())


def _own(folder: Path) -> nn.Module:
    import torch
    from safetensors.torch import load_file

    from pipelines.backbones.vit.config import VitConfig

    with torch.random.fork_rng(devices=[]):  # the first weights are replaced; the caller's random state must not move
        network = new_vit(VitConfig(**json.loads((folder / CONFIG).read_text())))
    lacking = network.load_state_dict({key: value.float() for key, value in load_file(folder / WEIGHTS).items()}, strict=False)
    if any(not key.startswith(STEM) for key in lacking.missing_keys):
        raise UsageError(f"{folder / WEIGHTS} lacks {lacking.missing_keys[0]}; it does not belong to the {CONFIG} beside it, restore both")
    return network


def new_vit(config: VitConfig) -> nn.Module:
    """A transformer that was not trained, with its frozen stem."""
    from pipelines.backbones.vit.model import Vit

    if config.stem != "atlas":
        return Vit(config)
    from pipelines.backbones.atlas import Atlas

    place = next((place for place in (Path(ATLAS), Path(__file__).parents[3] / ATLAS) if place.is_dir()), Path(ATLAS))
    return Vit(config, Atlas.load(place).towers.image)


def _published(folder: Path) -> nn.Module:
    from pipelines.backbones.vit.published import PublishedVit

    return PublishedVit.load(folder)


def _fingerprint(network) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
