"""Names of segments: which may leave a header, and how a voxel of several segments is named."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipelines.ingest.vocabulary import SEGMENT_WORDS

#: Between the names of segments that share a voxel, in the lookup table: "Necrosis & Edema".
SEPARATOR = " & "
#: Names that tell nothing of what was drawn; writers fill them in where nobody gave one.
GENERIC = re.compile(r"(segment|label|region|roi|mask)?[\s_-]*\d*", re.IGNORECASE)
UNWANTED = re.compile(r"[^\w\s.,/()+-]")


def safe_name(text: str, number: int, known: frozenset[str]) -> str:
    """A name if params.yaml asks for it or it is made of words for segments, else 'segment <number>'; a combined name part by part."""
    text = " ".join(text.split())
    if text in known:
        return text
    return SEPARATOR.join(dict.fromkeys(part if part in known else _ordinary(part) or f"segment {number}" for part in text.split(SEPARATOR)))


def object_name(candidates: Sequence[str], number: int, known: frozenset[str]) -> str:
    """The first of `candidates` (label first, then coded meaning) that may leave and says something, as the name of one segment."""
    texts = [" ".join(text.split()) for text in candidates]
    safe = [text if text in known else _ordinary(text.replace("&", " and ")) for text in texts]
    telling = [name for name in safe if name and not GENERIC.fullmatch(name)]
    return next((name for name in (*telling, *safe) if name), f"segment {number}")


def _ordinary(text: str) -> str:
    """`text` without odd marks where all its words are words for segments, else ''."""
    text = " ".join(UNWANTED.sub(" ", text).split())
    words = re.findall(r"[^\W_]+", text.casefold())
    return text if words and all(word in SEGMENT_WORDS or (word.isdigit() and len(word) < 3) for word in words) else ""
