"""SEMI's trained part: projectors into text space, linear fusion, and the decoder to voxel logits.

From the method's description: a projector Linear-LayerNorm-GELU-Linear per modality into the text space of a frozen model, linear fusion
over the modalities present, an MLP decoder that sees text-similarity maps; only these are trained. Ours: the projector starts at the
backbone's own alignment, the depthwise convolution across slices that starts as the identity, the multi-scale tokens and the
raw-intensity skip beside the fused embedding, and decoding at full resolution.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional

#: Regularisation of the projector's start, relative to unit-variance features.
RIDGE = 1e-3
#: Similarities divided by tau reach +-14; divided by this too they enter the decoder at about the size of the other inputs.
SIMILARITY_SD = 4.0


@dataclass(frozen=True)
class Sizes:
    """The shape of the trained part; with its weights, all that a saved fit needs."""

    modalities: int
    labels: int
    token_width: int
    dim: int
    raw_width: int
    projector_width: int
    decoder_width: int
    stride: int
    tau: float

    def as_dict(self) -> dict:
        return asdict(self)


class Projector(nn.Module):
    """Tokens of one modality to unit vectors in text space."""

    def __init__(self, width: int, hidden: int, dim: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU())
        self.last = nn.Linear(hidden, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.last(self.body(tokens)), dim=-1)

    @torch.no_grad()
    def start_at(self, tokens: torch.Tensor, aligned: torch.Tensor) -> None:
        """Solve the last layer (ridge regression) so that training starts near the backbone's own alignment of `tokens`."""
        hidden = functional.pad(self.body(tokens), (0, 1), value=1.0).double()
        gram = hidden.T @ hidden + RIDGE * len(hidden) * torch.eye(hidden.shape[1], dtype=torch.double)
        solution = torch.linalg.solve(gram, hidden.T @ aligned.double()).float()
        self.last.weight.copy_(solution[:-1].T)
        self.last.bias.copy_(solution[-1])


class Semi(nn.Module):
    """The trained part. Channels last throughout; B patches (or one case), Z slices of h x w tokens."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width, modalities = sizes.decoder_width, range(sizes.modalities)
        self.sizes = sizes
        self.register_buffer("trained", torch.ones(sizes.modalities, dtype=torch.bool))  # modalities that the support had
        self.register_buffer("token_mean", torch.zeros(sizes.modalities, sizes.token_width))
        self.register_buffer("token_sd", torch.ones(sizes.modalities, sizes.token_width))
        self.register_buffer("texts", torch.zeros(sizes.modalities, sizes.labels + 2, sizes.dim))  # learned class vectors, where there are any
        self.projectors = nn.ModuleList(Projector(sizes.token_width, sizes.projector_width, sizes.dim) for _ in modalities)
        self.fusion = nn.Parameter(torch.zeros(sizes.modalities))
        self.from_tokens = nn.ModuleList(nn.Linear(sizes.token_width, width, bias=False) for _ in modalities)
        self.from_fused = nn.Linear(sizes.dim + sizes.labels + 2, width)
        self.across_slices = nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False)
        nn.init.zeros_(self.across_slices.weight)
        self.across_slices.weight.data[:, :, 1] = 1
        self.from_raw = nn.Linear(sizes.modalities * (sizes.raw_width + 1), width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1 + sizes.labels))

    def standardise(self, tokens: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor, own: float) -> torch.Tensor:
        """Tokens `(..., M, D)` in units of the support's mean and sd, or a share `own` of the way to those of their case."""
        if own:
            return (tokens.float() - torch.lerp(self.token_mean, mean, own)) / torch.lerp(self.token_sd, sd, own)
        return (tokens.float() - self.token_mean) / self.token_sd

    def usable(self, present: torch.Tensor) -> torch.Tensor:
        """Of the modalities present `(M,)` those that the support had too; all of them where that leaves none."""
        return present & self.trained if (present & self.trained).any() else present

    def weights(self, present: torch.Tensor) -> torch.Tensor:
        """Fusion weights `(B, M)`: learned, 0 for a missing modality, summing to 1 over those present `(B, M)`."""
        return self.fusion.expand(present.shape).masked_fill(~present, -torch.inf).softmax(-1)

    def regions(self, tokens: torch.Tensor, texts: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Decoder input of each token `(B, N, width)`, and each modality's embeddings `(B, N, dim)`.

        tokens: `(B, N, M, D)` standardised; texts: `(B, M, C, dim)`; present: `(B, M)` boolean. A modality that no patch has is not computed.
        """
        weights, embeddings, fused, similarity, direct = self.weights(present), {}, 0.0, 0.0, 0.0
        for m in torch.nonzero(present.any(0))[:, 0].tolist():
            embeddings[m] = z = self.projectors[m](tokens[..., m, :])
            share = weights[:, m, None, None]
            fused = fused + share * z
            similarity = similarity + share * (z @ texts[:, m].mT)
            direct = direct + share * self.from_tokens[m](tokens[..., m, :])
        return self.from_fused(torch.cat([fused, similarity / (SIMILARITY_SD * self.sizes.tau)], dim=-1)) + direct, embeddings

    def join_slices(self, maps: torch.Tensor) -> torch.Tensor:
        """Depthwise convolution along Z of `(B, Z, h, w, width)`."""
        taps = self.across_slices.weight[:, 0]
        padded = functional.pad(maps, (0, 0, 0, 0, 0, 0, 1, 1))
        return sum(padded[:, tap:tap + maps.shape[1]] * taps[:, tap] for tap in range(taps.shape[1]))

    def upsample(self, maps: torch.Tensor) -> torch.Tensor:
        """`(N, h, w, width)` to `(N, H, W, width)`."""
        return functional.interpolate(maps.movedim(-1, 1), scale_factor=self.sizes.stride, mode="bilinear", align_corners=False).movedim(1, -1)

    def decode(self, maps: torch.Tensor, raw: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Logits `(N, 1 + K)` of voxels from upsampled maps `(N, width)`, raw features `(N, M, R)` and presence `(N, M)`."""
        flags = present[..., None].to(maps.dtype)
        return self.head(maps + self.from_raw(torch.cat([raw.to(maps.dtype) * flags, flags], dim=-1).flatten(1)))
