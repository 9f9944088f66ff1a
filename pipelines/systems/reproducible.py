"""Training that gives the same weights for the same seed, without touching the caller's random state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and insist on deterministic algorithms inside the block; restore both afterwards."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
