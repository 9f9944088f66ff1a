"""Low-rank adapters of a projector, and the hypernetwork that makes them from a few (image, text) pairs.

The paper's (Ince et al. 2025, arXiv 2509.04606): one self-attention layer with one head over a prefix token per Linear of the projector, an
instruction embedding and the pairs; from each prefix's output a linear generator emits A, B and b, so that `W' = W + (alpha/r) (A B)^T`,
`b' = b + b_generated`. Every Linear gets its adapter here, whatever lies between them (in the public code the loop that applies generated
adapters during training ends before the second one).

Ours: the projector is SEMI's, with a LayerNorm; a region's and a text's vectors have different lengths and enter through a linear map each; no
positions, because the pairs are a set; and, by default, a pair is *one* token. In one attention layer over separate tokens the output at a
prefix is a weighted mean of functions of one token each, so that nothing says which text belongs to which image; `tokens="interleaved"` keeps it
as the paper has it. B's part of a generator starts at zero, so that training begins at the shared projector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call


@dataclass(frozen=True)
class Adapter:
    """One Linear's change. a: `(in, r)`; b: `(r, out)`; bias: `(out,)`; scale: alpha / r."""

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor
    scale: float


Adapters = dict[str, Adapter]  # by the Linear's name in the projector


def linears(projector: nn.Module) -> dict[str, nn.Linear]:
    """Every Linear of a projector by name, in the order of its modules."""
    return {name: module for name, module in projector.named_modules() if isinstance(module, nn.Linear)}


def clipped_rank(linear: nn.Linear, rank: int) -> int:
    """A rank beyond the layer's size adds nothing. (The scale alpha / r stays that of the rank asked for.)"""
    return min(rank, linear.in_features, linear.out_features)


def adapted(projector: nn.Module, adapters: Adapters) -> dict[str, torch.Tensor]:
    """The adapted weights and biases of every Linear, by the parameter's name. Raises ValueError unless there is one adapter a Linear."""
    layers = linears(projector)
    if set(layers) != set(adapters):
        raise ValueError(f"adapters for {sorted(adapters)}, but the projector's Linear layers are {sorted(layers)}")
    changed = {}
    for name, layer in layers.items():
        own = adapters[name]
        changed[f"{name}.weight"] = layer.weight + own.scale * (own.a @ own.b).T
        changed[f"{name}.bias"] = layer.bias + own.bias
    return changed


def project(projector: nn.Module, adapters: Adapters, tokens: torch.Tensor) -> torch.Tensor:
    """`projector(tokens)` with adapted weights; gradients reach the adapters."""
    return functional_call(projector, adapted(projector, adapters), (tokens,))


@torch.no_grad()
def merge(projector: nn.Module, adapters: Adapters) -> None:
    """Write the adapted weights into the projector."""
    projector.load_state_dict(projector.state_dict() | adapted(projector, adapters))


def average(several: Sequence[Adapters]) -> Adapters:
    """The mean of A, of B and of the bias over adapters, as the paper averages those of several chunks of pairs."""
    def mean(name: str) -> Adapter:
        same = [adapters[name] for adapters in several]
        return Adapter(*(torch.stack([getattr(one, part) for one in same]).mean(0) for part in ("a", "b", "bias")), same[0].scale)

    return {name: mean(name) for name in several[0]}


class LowRank(nn.Module):
    """Plain LoRA (Hu et al. 2021) of every Linear: A random, B and bias zero, so that it starts as the projector itself.

    Ours: it has a bias too, so that it differs from generated adapters in nothing but its start.
    """

    def __init__(self, projector: nn.Module, rank: int, alpha: float):
        super().__init__()
        self.scales = dict.fromkeys(linears(projector), alpha / rank)
        self.parts = nn.ParameterList()
        for layer in linears(projector).values():
            size = clipped_rank(layer, rank)
            self.parts.extend([torch.randn(layer.in_features, size) / math.sqrt(size), torch.zeros(size, layer.out_features),
                               torch.zeros(layer.out_features)])

    def adapters(self) -> Adapters:
        parts = iter(self.parts)
        return {name: Adapter(next(parts), next(parts), next(parts), scale) for name, scale in self.scales.items()}


class HyperNetwork(nn.Module):
    """Pairs of a modality to adapters of a projector (whose shape alone is kept)."""

    def __init__(self, projector: nn.Module, token_width: int, dim: int, *, width: int, rank: int, alpha: float,
                 tokens: Literal["joined", "interleaved"] = "joined"):
        super().__init__()
        self.shapes = {name: (layer.in_features, clipped_rank(layer, rank), layer.out_features) for name, layer in linears(projector).items()}
        self.scale, self.tokens = alpha / rank, tokens
        self.prefixes = nn.Parameter(nn.init.xavier_uniform_(torch.empty(len(self.shapes), width)))
        self.from_region = nn.Linear(token_width, width)
        self.from_text = nn.Linear(dim, width)
        self.from_instruction = nn.Linear(dim, width)
        self.joined = nn.Sequential(nn.GELU(), nn.Linear(width, width))
        self.attention = nn.MultiheadAttention(width, num_heads=1, batch_first=True)
        self.generators = nn.ModuleList(nn.Linear(width, sum(self._sizes(shape))) for shape in self.shapes.values())
        for generator, shape in zip(self.generators, self.shapes.values(), strict=True):
            nn.init.zeros_(generator.weight[self._sizes(shape)[0]:])
            nn.init.zeros_(generator.bias)
            self._start_a(generator, shape)

    @torch.no_grad()
    def _start_a(self, generator: nn.Linear, shape: tuple[int, int, int]) -> None:
        """A's bias is random as LoRA's A is: were A and B both zero, neither would have a gradient."""
        inputs, rank, _ = shape
        generator.bias[:inputs * rank] = torch.randn(inputs * rank) / math.sqrt(inputs)

    @staticmethod
    def _sizes(shape: tuple[int, int, int]) -> tuple[int, int, int]:
        inputs, rank, outputs = shape
        return inputs * rank, rank * outputs, outputs

    def forward(self, regions: torch.Tensor, texts: torch.Tensor, instruction: torch.Tensor) -> Adapters:
        """Adapters from pairs: regions `(P, D)` standardised, texts `(P, dim)`, instruction `(dim,)` the text vector of the modality's name."""
        from_regions, from_texts = self.from_region(regions), self.from_text(texts)
        pairs = (self.joined(from_regions + from_texts) if self.tokens == "joined"
                 else torch.stack([from_regions, from_texts], dim=1).flatten(0, 1))
        sequence = torch.cat([self.prefixes, self.from_instruction(instruction)[None], pairs])[None]
        encoded = self.attention(sequence[:, :len(self.prefixes)], sequence, sequence, need_weights=False)[0][0]
        return {name: self._adapter(generator(prefix), shape)
                for prefix, generator, (name, shape) in zip(encoded, self.generators, self.shapes.items(), strict=True)}

    def _adapter(self, flat: torch.Tensor, shape: tuple[int, int, int]) -> Adapter:
        inputs, rank, outputs = shape
        a, b, bias = flat.split(self._sizes(shape))
        return Adapter(a.view(inputs, rank), b.view(rank, outputs), bias, self.scale)


def random_rotation(width: int, kind: Literal["haar", "graded"] = "haar") -> torch.Tensor:
    """A random orthogonal matrix `(width, width)`. Torch's global generator is the randomness.

    haar: uniform over all of them (QR of normal numbers with the signs put right), the paper's. graded: the exponential of a random
    skew-symmetric matrix of random size, from next to the identity to angles past a right one (ours: a new contrast seen by the *same* frozen
    encoder is no uniformly rotated one).
    """
    if kind == "haar":
        return nn.init.orthogonal_(torch.empty(width, width))
    upper = torch.randn(width, width).triu(1)
    return torch.matrix_exp((upper - upper.T) * (torch.rand(()) / math.sqrt(width)))  # the angles reach 2 * rand
