"""Folders of published models: found without a download, checked before use, and fingerprinted."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from pipelines.backbones.hub.dense import CODE_VERSION
from pipelines.errors import DataError, UsageError
from pipelines.outputs import sha256

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
#: Besides the weights, what tokens and text vectors depend on, as published models name it.
DEFINING = (CONFIG, "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
            "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model", "open_clip_config.json")
PICKLES = ("*.bin", "*.pt", "*.pth")
#: Medical models by what a folder of theirs is called, letters and digits only: their hub id, and what has to be done there first.
MEDICAL = {"medsiglip": ("google/medsiglip-448", "accept its terms on https://huggingface.co/google/medsiglip-448 and log in (hf auth login), then "),
           "pubmedclip": ("flaviagiammarino/pubmed-clip-vit-base-patch32", ""),
           "biomedclip": ("microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "")}


def find(where: str, adapter: str) -> Path:
    """The folder of a model: `where` itself, or the local Hugging Face cache where it is a hub id. Never a download.

    Raises UsageError with the command that gets the model.
    """
    if where and Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(where, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        name = where.rstrip("/").rpartition("/")[2] or "<name>"
        hub_id = where if re.fullmatch(r"(?!models/)\w[\w.-]*/[\w.-]+", where) else "<owner/name>"
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        known_id, first = next((entry for word, entry in MEDICAL.items() if word in plain), ("<owner/name>", ""))
        raise UsageError(f"the model {where!r} is no folder here and not in the local Hugging Face cache, and a run downloads nothing; where there "
                         f"is a network: {first}hf download {hub_id if hub_id != '<owner/name>' else known_id} --local-dir models/{name}, "
                         f"then embed.backbone: {adapter}:models/{name}") from None


def weight_files(folder: Path, single: str = WEIGHTS) -> list[Path]:
    """The safetensors files of a model. Raises DataError where there are none, or only pickles, which can run code when they are read."""
    if (folder / single).is_file():
        return [folder / single]
    if (folder / INDEX).is_file():
        paths = [folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]
        for path in paths:
            if not path.is_file():
                raise DataError(f"{path} does not exist though {INDEX} lists it; fetch the model again (hf download)")
        return paths
    pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise DataError(f"{pickles[0]} is a pickle, which can run code when it is read; convert it once: python -c "
                        f"\"import torch, safetensors.torch as s; "
                        f"s.save_file({{k: v.clone().contiguous() for k, v in torch.load('{pickles[0]}', weights_only=True).items()}}, "
                        f"'{folder / single}', metadata={{'format': 'pt'}})\"")
    raise DataError(f"{folder / single} does not exist; fetch the model again (hf download <owner/name> --local-dir {folder})")


def read_json(path: Path) -> dict:
    """A JSON file that holds an object. Raises DataError naming it."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; fetch the model again (hf download <owner/name> --local-dir {path.parent})")
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch the model again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; fetch the model again")
    return content


def preprocessor(folder: Path) -> tuple[dict, Path]:
    """How the checkpoint wants its pixels, and the file that says so: preprocessor_config.json, or part of processor_config.json."""
    newer = folder / "processor_config.json"
    if not (folder / "preprocessor_config.json").is_file() and newer.is_file() and "image_processor" in read_json(newer):
        return read_json(newer)["image_processor"], newer
    path = folder / "preprocessor_config.json"
    return read_json(path), path


def fingerprint(folder: Path, weights: list[Path], adapter: str) -> str:
    """SHA-256 over the weights, everything else in the folder that numbers depend on, and this code's version."""
    digest = hashlib.sha256(f"{adapter} {CODE_VERSION}".encode())
    for path in [*weights, *(folder / name for name in DEFINING)]:
        if path.is_file():
            digest.update(f" {path.name} {sha256(path)}".encode())
    return digest.hexdigest()
