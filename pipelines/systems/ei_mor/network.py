"""The networks of EI + MoR and of what it is compared with, over one frozen transformer.

The paper's (arXiv 2603.17514): unimodal encoders with MoR; `INT = MLP(LN(CLS_r))` of each reference modality appended to the target's tokens after
the position embedding; a head a modality; a router that weighs the heads' scores, both detached for it. Ours: class tokens are whitened before they
become interventions; several slices of an image are averaged at the class token; the auxiliary score of a target is read from the mean of its patch
tokens; and the comparisons, late fusion and gated-attention pooling, whose own layers are as large as the intervention networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from pipelines.systems.ei_mor.adapters import tower, trainable
from pipelines.systems.ei_mor.params import Params

#: modality -> (B, slices, tokens, dim) that enter the first block, of the modalities that all cases of the batch have.
Images = Mapping[str, torch.Tensor]


@dataclass
class Scores:
    """Logits `(B, classes)` of the whole and of each modality, and of the router `(B, modalities of own)`, None where the fusion has none."""

    joint: torch.Tensor
    own: dict[str, torch.Tensor]
    auxiliary: dict[str, torch.Tensor] = field(default_factory=dict)
    router: torch.Tensor | None = None


class Unimodal(nn.Module):
    """One adapted encoder a modality, each with a head."""

    def __init__(self, vit: nn.Module, modalities: tuple[str, ...], classes: int, params: Params):
        super().__init__()
        self.modalities, self.dim = modalities, vit.dim
        settings = {"ranks": params.ranks, "alphas": params.alphas}
        self.towers = nn.ModuleDict({name: tower(vit, params.adapter, **settings) for name in modalities})
        self.heads = nn.ModuleDict({name: head(vit.dim, classes) for name in modalities})
        self.auxiliary = nn.ModuleDict({name: head(vit.dim, classes) for name in modalities})

    def encode(self, name: str, images: torch.Tensor, further: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Class token `(B, dim)`, mean over the slices, and all patch tokens `(B, slices * patches, dim)`."""
        count, slices = images.shape[:2]
        if further is not None:
            further = further.repeat_interleave(slices, 0)
        tokens = self.towers[name](images.flatten(0, 1), further).unflatten(0, (count, slices))
        last = tokens.shape[2] - (0 if further is None else further.shape[1])
        return tokens[:, :, 0].mean(1), tokens[:, :, 1:last].flatten(1, 2)

    def scored(self, seen: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Each modality's own and auxiliary scores, of what `encode` gave."""
        return ({name: self.heads[name](cls) for name, (cls, _) in seen.items()},
                {name: self.auxiliary[name](patches.mean(1)) for name, (_, patches) in seen.items()})

    def forward(self, images: Images, references: Images | None = None) -> Scores:
        """Scores of which `joint` is the modalities' mean."""
        own, auxiliary = self.scored({name: self.encode(name, values) for name, values in images.items()})
        return Scores(torch.stack(list(own.values())).mean(0), own, auxiliary)


class Whitening(nn.Module):
    """Class tokens as what tells one patient from another: centred, and every direction divided by its standard deviation over the patients learned
    from and a share of the largest one, so that noise is not blown up. Left out, the token of one patient is nearly that of every other."""

    def __init__(self, dim: int, floor: float):
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))

    def learn(self, tokens: torch.Tensor) -> None:
        """From class tokens `(N, dim)`."""
        self.mean = tokens.mean(0)
        _, spread, axes = torch.linalg.svd((tokens - self.mean) / len(tokens) ** 0.5, full_matrices=False)
        self.matrix = axes.T @ torch.diag(1 / (spread + self.floor * spread[0]).clamp_min(1e-6)) @ axes

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return (tokens - self.mean) @ self.matrix


class Early(Unimodal):
    """Early intervention: every target is encoded with tokens that the references' class tokens were made into."""

    def __init__(self, vit: nn.Module, modalities: tuple[str, ...], classes: int, params: Params):
        super().__init__(vit, modalities, classes, params)
        self.interventions = nn.ModuleDict({f"{target}<-{reference}".replace(".", "_"): intervention(self.dim, params.hidden)
                                            for target in modalities for reference in modalities if target != reference})
        self.router = nn.Linear(len(modalities) * self.dim, len(modalities))
        self.whitening = nn.ModuleDict() if params.whiten is None else nn.ModuleDict({name: Whitening(vit.dim, params.whiten) for name in modalities})

    def look_at(self, references: Sequence[Images]) -> None:
        """Learn how the class tokens `(N, ways, dim)` of the patients to learn from differ."""
        for name, whitening in self.whitening.items():
            if tokens := [some[name].flatten(0, 1) for some in references if name in some]:
                whitening.learn(torch.cat(tokens))

    def forward(self, images: Images, references: Images | None = None) -> Scores:
        """`references`: class tokens `(B, dim)` of the frozen unimodal encoders. A modality that is not among `images` has no part in anything."""
        seen, references = {}, {name: self.whitening[name](references[name]) if self.whitening else references[name] for name in images}
        for target, values in images.items():
            said = [self.interventions[f"{target}<-{name}".replace(".", "_")](references[name]) for name in images if name != target]
            seen[target] = self.encode(target, values, torch.stack(said, 1) if said else None)
        own, auxiliary = self.scored(seen)
        routed = self._routed({name: cls.detach() for name, (cls, _) in seen.items()})
        joint = (routed.softmax(1)[..., None] * torch.stack([scores.detach() for scores in own.values()], 1)).sum(1)
        return Scores(joint, own, auxiliary, routed)

    def _routed(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        some = next(iter(features.values()))
        logits = self.router(torch.cat([features.get(name, torch.zeros_like(some)) for name in self.modalities], 1))
        return logits[:, [self.modalities.index(name) for name in features]]


class Late(Unimodal):
    """Late fusion of features: the class tokens of all modalities are read together by a network as large as the intervention networks."""

    def __init__(self, vit: nn.Module, modalities: tuple[str, ...], classes: int, params: Params):
        super().__init__(vit, modalities, classes, params)
        inputs = len(modalities) * (self.dim + 1)
        hidden = max(8, round(spare(len(modalities), self.dim, params.hidden) / (inputs + classes + 1)))
        self.fused = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, classes))
        self.norms = nn.ModuleDict({name: nn.LayerNorm(self.dim) for name in modalities})

    def forward(self, images: Images, references: Images | None = None) -> Scores:
        seen = {name: self.encode(name, values) for name, values in images.items()}
        features = {name: cls for name, (cls, _) in seen.items()}
        some = next(iter(features.values()))
        parts = [torch.cat([self.norms[name](features[name]), some.new_ones(len(some), 1)], 1) if name in features
                 else some.new_zeros(len(some), self.dim + 1) for name in self.modalities]
        return Scores(self.fused(torch.cat(parts, 1)), *self.scored(seen))


class Mil(Unimodal):
    """Multiple-instance pooling: gated attention (Ilse et al. 2018) over the patch tokens of all images, as MM-MIL has it over instances."""

    def __init__(self, vit: nn.Module, modalities: tuple[str, ...], classes: int, params: Params):
        super().__init__(vit, modalities, classes, params)
        rest = spare(len(modalities), self.dim, params.hidden) - trainable(read := intervention(self.dim, params.hidden, classes))
        hidden = max(8, round(rest / (2 * self.dim + 3)))
        self.read, self.norms = read, nn.ModuleDict({name: nn.LayerNorm(self.dim) for name in modalities})
        self.content, self.gate, self.weigh = nn.Linear(self.dim, hidden), nn.Linear(self.dim, hidden), nn.Linear(hidden, 1)

    def forward(self, images: Images, references: Images | None = None) -> Scores:
        seen = {name: self.encode(name, values) for name, values in images.items()}
        tokens = torch.cat([self.norms[name](patches) for name, (_, patches) in seen.items()], 1)
        weight = self.weigh(self.content(tokens).tanh() * self.gate(tokens).sigmoid()).softmax(1)
        return Scores(self.read((weight * tokens).sum(1)), *self.scored(seen))


FUSIONS: dict[str, type[Unimodal]] = {"early": Early, "late": Late, "mil": Mil}


def head(dim: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))


def intervention(dim: int, hidden: int, out: int | None = None) -> nn.Module:
    """`MLP(LN(CLS))`."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out or dim))


def spare(count: int, dim: int, hidden: int) -> int:
    """Trainable values that early intervention has besides towers and heads: what the other fusions may spend."""
    return count * (count - 1) * trainable(intervention(dim, hidden)) + trainable(nn.Linear(count * dim, count))
