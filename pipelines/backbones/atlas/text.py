"""The text tower: hashed words and character n-grams into a two-layer transformer.

Hashing needs no vocabulary file and gives a word never seen in training the n-grams it shares with known ones ("oedematous", "tumor").
"""

from __future__ import annotations

import re
import zlib

import torch
from torch import nn
from torch.nn import functional

MAX_WORDS = 24
NGRAMS = (3, 4)
WORD = re.compile(r"[a-z0-9]+")


def features(text: str, buckets: int) -> list[list[int]]:
    """For every word of `text` the hash buckets of the word itself and of its character n-grams. CRC-32, as `hash()` differs per run."""
    words = WORD.findall(text.lower())[:MAX_WORDS] or ["?"]
    return [[zlib.crc32(piece.encode()) % buckets for piece in _pieces(word)] for word in words]


def _pieces(word: str) -> list[str]:
    marked = f"<{word}>"
    return [f"={word}", *(marked[i : i + n] for n in NGRAMS for i in range(len(marked) - n + 1))]


class TextEncoder(nn.Module):
    """Texts to unit vectors `(N, dim)`."""

    def __init__(self, buckets: int, dim: int, layers: int, heads: int):
        super().__init__()
        self.buckets = buckets
        self.pieces = nn.EmbeddingBag(buckets, dim, mode="mean")
        self.position = nn.Parameter(torch.zeros(MAX_WORDS, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        nn.init.normal_(self.pieces.weight, std=0.5)

    def forward(self, texts: list[str], context: torch.Tensor | None = None) -> torch.Tensor:
        """`context` `(N, L, dim)`: what stands in place of L < MAX_WORDS words before each text; words that find no room are left out."""
        room = MAX_WORDS - (0 if context is None else context.shape[1])
        words = [features(text, self.buckets)[:room] for text in texts]
        flat = [word for text in words for word in text]
        offsets = torch.tensor([0, *(len(word) for word in flat)])[:-1].cumsum(0)
        embedded = self.pieces(torch.tensor([bucket for word in flat for bucket in word]), offsets)
        # always padded to MAX_WORDS: a text's embedding does not depend on the texts beside it
        x = embedded.new_zeros(len(texts), room, embedded.shape[1])
        present = torch.zeros(len(texts), room, dtype=torch.bool)
        for row, text in enumerate(words):
            present[row, : len(text)] = True
        x = x.masked_scatter(present[..., None].expand_as(x), embedded)
        if context is not None:
            x = torch.cat([context, x], dim=1)
            present = torch.cat([torch.ones(context.shape[:2], dtype=torch.bool), present], dim=1)
        x = x + self.position
        x = self.blocks(x, src_key_padding_mask=~present)
        mean = (x * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        return functional.normalize(self.head(mean), dim=1)
