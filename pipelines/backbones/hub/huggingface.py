"""`transformers:<folder or hub id>`: CLIP, PubMedCLIP, SigLIP, MedSigLIP and SigLIP 2."""

from __future__ import annotations

import contextlib
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from pipelines.backbones.hub import checkpoint
from pipelines.backbones.hub.dense import DenseBackbone, device
from pipelines.backbones.hub.pixels import Preprocessing
from pipelines.backbones.hub.vision import TOWERS
from pipelines.errors import DataError, UsageError

ADAPTER = "transformers"


def load(where: str, precision: torch.dtype | None = None) -> DenseBackbone:
    """The model in the folder `where`, or of that hub id in the local cache.

    Raises UsageError where there is none or it is of another kind, DataError where its files are missing, damaged or do not fit together.
    """
    folder = checkpoint.find(where, ADAPTER)
    family = checkpoint.read_json(folder / checkpoint.CONFIG).get("model_type")
    if family not in TOWERS:
        raise UsageError(f"{folder} holds a model of type {family!r}; '{ADAPTER}:' knows {', '.join(TOWERS)}, "
                         "and 'open_clip:<folder>' the checkpoints of open_clip")
    weights = checkpoint.weight_files(folder)
    content, source = checkpoint.preprocessor(folder)
    preprocessing = Preprocessing.read(content, source)
    with _quiet():
        model, tokenizer = _model(folder), _tokenizer(folder)
    _check_tower(folder, model)
    words = Words(model, tokenizer, punctuation=_tokenizer_class(folder) != "SiglipTokenizer")
    return DenseBackbone(TOWERS[family](model), words, preprocessing, checkpoint.fingerprint(folder, weights, ADAPTER), precision)


class Words:
    """The text side. Every text is padded to the full length, so that its vector does not depend on the texts beside it.

    SigLIP demands that anyhow: it takes the last position, padded on the right, lower case, and was trained without a mask over the padding. The
    first SigLIP (not the second) takes texts without punctuation: `SiglipTokenizer` strips it, the tokenizer.json beside it may not.
    """

    def __init__(self, model: torch.nn.Module, tokenizer, punctuation: bool = True):
        self.model, self.tokenizer = model, tokenizer
        self._dropped = None if punctuation else str.maketrans("", "", string.punctuation)
        self.siglip = model.config.model_type != "clip"
        self.length = model.config.text_config.max_position_embeddings
        self._noted = False

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """`(N, dim)`, of any length."""
        if self.siglip:
            texts = [text.lower() for text in texts]
        if self._dropped:
            texts = [" ".join(text.translate(self._dropped).split()) for text in texts]
        self._note_truncation(texts)
        encoded = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.length, padding_side="right", return_tensors="pt")
        mask = None if self.siglip else encoded["attention_mask"].to(self.model.device)
        return self.model.get_text_features(input_ids=encoded["input_ids"].to(self.model.device), attention_mask=mask).pooler_output

    def _note_truncation(self, texts: list[str]) -> None:
        long = sum(len(tokens) > self.length for tokens in self.tokenizer(texts, verbose=False)["input_ids"])
        if long and not self._noted:
            self._noted = True
            print(f"warning: {long} of {len(texts)} texts are longer than the {self.length} tokens that the backbone reads; what follows is ignored, "
                  "shorten prompts.templates", file=sys.stderr)


def _model(folder: Path) -> torch.nn.Module:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModel

    try:
        model, report = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError, StrictDataclassError) as error:
        raise DataError(f"{folder} cannot be loaded, its weights are damaged or do not fit {checkpoint.CONFIG} ({_short(error)}); "
                        "fetch the model again") from None
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise DataError(f"{folder} lacks {len(missing)} of the model's tensors (first: {missing[0]}); both the image and the text side are needed, "
                        "fetch the whole model")
    return model.eval().requires_grad_(False).to(device())


def _tokenizer(folder: Path):
    """What tokenizer.json says where there is one: AutoTokenizer would force its content into the class that the model type suggests, which needs
    sentencepiece for SigLIP and turns any other tokenizer of a SigLIP 2 into one that knows no word."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise UsageError(f"the tokenizer of {folder} needs another package ({_short(error)}); install it") from None
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise DataError(f"the tokenizer of {folder} is missing or damaged ({_short(error)}); fetch the model again") from None
    if tokenizer.pad_token is None:
        raise DataError(f"the tokenizer of {folder} has no padding token; fetch tokenizer_config.json and special_tokens_map.json again")
    return tokenizer


def _tokenizer_class(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    return checkpoint.read_json(path).get("tokenizer_class") if path.is_file() else None


def _check_tower(folder: Path, model: torch.nn.Module) -> None:
    """Some published configurations leave out the head that joins image and text."""
    if not getattr(model.vision_model, "use_head", True):
        raise DataError(f"{folder} has no pooling head (vision_use_head is false), so its tokens have no way into text space; "
                        "take another checkpoint")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its bars and remarks, as before afterwards. What matters of a load is checked above."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
