"""Training that gives the same weights for the same seed, without touching the caller's random state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

#: Share of the steps in which a one-cycle schedule warms up. No integer number of steps times this is exactly 1, where torch divides by zero.
WARM_UP = 0.11


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and insist on deterministic algorithms inside the block; restore both afterwards."""
    import torch

    before = torch.get_deterministic_debug_mode()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True) does the same, and imports a compiler for seconds
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)
