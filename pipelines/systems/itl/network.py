"""ITL's network: SEMI's, of which the part up to the fused map of tokens is the encoder E, and the decoder the expert head G_m.

The paper (You et al. 2022, arXiv 2206.01369) has a site-agnostic encoder, at most two decoder heads and a linear combination of embedding features;
it says no more of them. Ours: what is what in SEMI's network. E is everything from tokens to the decoder's input on the token grid (projectors,
fusion, skip of tokens); a head is the convolution across slices, the skip of raw intensities and the MLP. The mix is on the token grid, where it
costs a hundredth of what it would cost at voxels, and the source head G_s is the expert head as the earlier sites left it, frozen: it says what
features the earlier sites could read. So whatever the number of sites, there are two encoders and two heads.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from pipelines.systems.semi.batches import Batch
from pipelines.systems.semi.model import Semi, Sizes


class Mixed(Semi):
    """E and G_m are its own parts; `old` holds E_old and G_s, frozen. Decoded is `a * E(x) + (1 - a) * E_old(x)`, `a` per channel."""

    def __init__(self, sizes: Sizes):
        super().__init__(sizes)
        self.gate = nn.Parameter(torch.zeros(sizes.decoder_width))  # a = sigmoid(gate)
        self.old = Semi(sizes).requires_grad_(False)

    @classmethod
    def after(cls, before: Semi, share: float = 0.5) -> Mixed:
        """The network that goes on from `before`: E and E_old are both its encoder, G_m and G_s its head, and `a` begins at `share`."""
        network, carried = cls(before.sizes), folded(before)
        nn.init.constant_(network.gate, math.log(share / (1 - share)))
        network.load_state_dict(carried.state_dict(), strict=False)
        network.old.load_state_dict(carried.state_dict())
        return network

    def mix(self, now: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """`(..., width)` of both encoders."""
        return torch.lerp(old, now, self.gate.sigmoid())

    def regions(self, tokens: torch.Tensor, texts: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """As `Semi.regions`, of the mix; the embeddings are the new encoder's."""
        now, embeddings = super().regions(tokens, texts, present)
        return self.mix(now, self.old_regions(tokens, texts, present)), embeddings

    def new_regions(self, tokens: torch.Tensor, texts: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """E alone, and its embeddings."""
        return super().regions(tokens, texts, present)

    @torch.no_grad()
    def old_regions(self, tokens: torch.Tensor, texts: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """E_old alone; it looks at the modalities that it learned, where there are any."""
        return self.old.regions(tokens, texts, learned(self.old, present))[0]


def learned(network: Semi, present: torch.Tensor) -> torch.Tensor:
    """Of the modalities present `(B, M)` those that `network` was trained on; all of them in a patch where that leaves none."""
    known = present & network.trained
    return torch.where(known.any(1, keepdim=True), known, present)


@torch.no_grad()
def folded(network: Semi) -> Semi:
    """One encoder and one head in place of two encoders, so that no memory grows with the number of sites. A copy.

    What is linear is folded exactly: row c of the layers that make the decoder's input is `a_c` of the new one and `1 - a_c` of the old one. The
    projectors before it are not linear; they are averaged with the mean of `a`, which is close because the new one began as the old one. Ours.
    """
    single = Semi(network.sizes)
    state = {name: value for name, value in network.state_dict().items() if name in single.state_dict()}
    single.load_state_dict(state)
    if isinstance(network, Mixed):
        share = network.gate.sigmoid()
        old = dict(network.old.named_parameters())
        for name, value in single.named_parameters():
            if name.startswith(("projectors.", "fusion")):
                value.lerp_(value if _unknown(name, network.old) else old[name], 1 - share.mean())
            elif name.startswith("from_tokens."):
                value.copy_(value * share[:, None] if _unknown(name, network.old) else torch.lerp(old[name], value, share[:, None]))
            elif name.startswith("from_fused."):
                value.copy_(torch.lerp(old[name], value, share.reshape(-1, *[1] * (value.ndim - 1))))
    return single.eval()


def _unknown(name: str, old: Semi) -> bool:
    """Whether a parameter belongs to a modality that the old encoder never learned."""
    part = name.split(".")[1] if "." in name else ""
    return part.isdigit() and not old.trained[int(part)]


def frozen(network: Semi) -> Semi:
    """A copy that learns nothing more."""
    return copy.deepcopy(network).requires_grad_(False).eval()


def decoded(head: Semi, maps: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Logits `(N, 1 + K)` of a batch's voxels by the head of a network, from decoder input `(B, Z * h * w, width)`."""
    maps = head.join_slices(maps.unflatten(1, batch.classes.shape[1:]))
    present = batch.present[:, None].expand(-1, batch.labels[0].numel(), -1).flatten(0, 1)
    return head.decode(head.upsample(maps.flatten(0, 1)).flatten(0, 2), batch.raw.flatten(0, 3), present)
