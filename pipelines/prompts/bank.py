"""Text of every modality x class x site, with its embedding from the frozen text encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import DataError
from pipelines.prompts.vectors import read_vectors

#: Classes that every cohort has besides its target labels: what a token is when no label covers it.
BACKGROUND_CLASSES = ("healthy", "outside")


@dataclass(frozen=True)
class PromptBank:
    """Phrasings and their embeddings.

    `phrasings[modality][class_name][site]` is a list of texts; `vectors` maps a text to its unit embedding.
    """

    phrasings: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]
    vectors: Mapping[str, np.ndarray]

    @classmethod
    def load(cls, prompts: Path, embeddings: Path) -> PromptBank:
        """From stage 3's folder (`prompts.json`) and stage 4's (`text.safetensors`, `text.json`).

        Raises DataError where a file is missing or damaged, or a text has no vector.
        """
        path = Path(prompts) / "prompts.json"
        try:
            bank = cls(json.loads(path.read_text()), read_vectors(embeddings)[1])
            missing = [text for text in bank.texts() if text not in bank.vectors]
        except FileNotFoundError:
            raise DataError(f"{path} does not exist; run the prompts stage first (python -m pipelines.prompts --out {prompts} ...)") from None
        except (ValueError, AttributeError, TypeError):
            raise DataError(f"{path} is no prompt bank (modality -> class -> site -> list of texts); run the prompts stage again") from None
        if missing:
            raise DataError(f"{embeddings} has no vector of {len(missing)} texts of {path} (first: {missing[0]!r}); run the embed stage again")
        return bank

    def texts(self) -> list[str]:
        """Every distinct text, sorted: what stage 4 encodes."""
        return sorted({text for classes in self.phrasings.values() for sites in classes.values() for texts in sites.values() for text in texts})

    def embedding(self, modality: str, class_name: str, site: str) -> np.ndarray:
        """The class's unit vector `(dim,)`: mean of its phrasings' unit vectors, renormalised."""
        try:
            texts = self.phrasings[modality][class_name][site]
        except KeyError as missing:
            raise DataError(f"there is no prompt for class {class_name!r} on {modality!r} at site {site!r} (no entry {missing}); "
                            "run the prompts stage on this cohort again") from None
        mean = np.mean([self.vectors[text] for text in texts], axis=0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)
