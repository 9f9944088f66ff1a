"""What is minimised at the next site: ITL's site-level loss, and what the baselines add to the loss of the first site.

The paper names a site-level incremental loss and does not give it. Ours (temperature T, weights l1, l2, l3 of params):
`DiceCE(G_m(f), y) + l1 * T^2 * KL(old model / T || G_m(f) / T) + l2 * DiceCE(G_s(f), y) + l3 * mean (E(x) - E_old(x))^2`, and SEMI's contrast of
regions with text as at the first site. The old model is the one that served before, with the mix that it served with.
With `anchor` of params EWC's penalty is added, which is ours: distillation at the new site holds what the model says there, and where the new site
looks unlike the earlier ones that says little about those.

EWC: `lambda / 2 * sum_i F_i (w_i - w*_i)^2` (Kirkpatrick et al. 2017), LwF: `weight * T^2 * KL` (Li and Hoiem 2017).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from pipelines.systems.itl.network import Mixed, decoded, learned
from pipelines.systems.itl.params import Params
from pipelines.systems.semi.batches import Batch, vary_tokens
from pipelines.systems.semi.learning import Targets
from pipelines.systems.semi.losses import dice_ce, region_infonce
from pipelines.systems.semi.model import Semi


def site_loss(network: Mixed, before: Semi, batch: Batch, targets: Targets, params: Params) -> torch.Tensor:
    """ITL's loss on a batch of the new site. `before`: the network that served until now, frozen."""
    tokens, labels = _seen(network, batch, params), batch.labels.flatten()
    new, embeddings = network.new_regions(tokens, batch.texts, batch.present)
    old = network.old_regions(tokens, batch.texts, batch.present)
    mixed = network.mix(new, old)
    logits = decoded(network, mixed, batch)
    known = (batch.present & network.old.trained).any(1)  # patches of which the old encoder can say anything
    loss = dice_ce(logits, labels) + params.infonce_weight * contrast(embeddings, batch, targets, params)
    loss = loss + params.distillation * distilled(logits, before, tokens, batch, params.temperature,
                                                         rightly=params.distilled == "right")
    if params.source_head:
        loss = loss + params.source_head * dice_ce(decoded(network.old, mixed, batch), labels)
    if params.closeness and known.any():
        loss = loss + params.closeness * functional.mse_loss(new[known], old[known])
    return loss


def lwf_loss(network: Semi, before: Semi, batch: Batch, targets: Targets, params: Params) -> torch.Tensor:
    """The first site's loss and the distillation of the network as it was."""
    tokens = _seen(network, batch, params)
    maps, embeddings = network.regions(tokens, batch.texts, batch.present)
    logits = decoded(network, maps, batch)
    loss = dice_ce(logits, batch.labels.flatten()) + params.infonce_weight * contrast(embeddings, batch, targets, params)
    return loss + params.distillation * distilled(logits, before, tokens, batch, params.temperature)


def distilled(logits: torch.Tensor, before: Semi, tokens: torch.Tensor, batch: Batch, temperature: float, *, rightly: bool = False) -> torch.Tensor:
    """`T^2 * KL(before || logits)` (Hinton et al. 2015), a mean over the voxels of patches that show a modality `before` has learned.

    `rightly`: only over voxels that `before` gives their true label. Ours: where it is wrong at the new site, holding on to it is no virtue.
    """
    known = (batch.present & before.trained).any(1)
    if not known.any():
        return logits.new_zeros(())
    with torch.no_grad():
        maps, _ = before.regions(tokens, batch.texts, learned(before, batch.present))
        target = functional.log_softmax(decoded(before, maps, batch) / temperature, dim=1)
    divergence = functional.kl_div(functional.log_softmax(logits / temperature, dim=1), target, reduction="none", log_target=True).sum(1)
    counted = known.repeat_interleave(batch.labels[0].numel())
    if rightly:
        counted = counted & (target.argmax(1) == batch.labels.flatten())
    return temperature**2 * (divergence * counted).sum() / counted.sum().clamp_min(1)


def contrast(embeddings: Mapping[int, torch.Tensor], batch: Batch, targets: Targets, params: Params) -> torch.Tensor | float:
    """SEMI's contrast of regions with text, mean over the modalities."""
    parts = [region_infonce(z[batch.present[:, m]].flatten(0, -2), batch.classes[batch.present[:, m]].flatten(), *targets[m], params.tau)
             for m, z in embeddings.items()]
    return sum(parts) / len(parts) if params.infonce_weight else 0.0


def drawn_back(network: Semi, before: Mapping[str, torch.Tensor], fisher: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """EWC's penalty for leaving the weights `before` (by name) where the Fisher information is large; it is scaled to a mean of 1."""
    mean = sum(float(value.sum()) for value in fisher.values()) / sum(value.numel() for value in fisher.values())
    now = dict(network.named_parameters())
    distance = sum((value * (now[name] - before[name]) ** 2).sum() for name, value in fisher.items() if name in now)
    return strength / 2 * distance / max(mean, 1e-12)


def _seen(network: Semi, batch: Batch, params: Params) -> torch.Tensor:
    """The batch's tokens `(B, Z * h * w, M, D)`, standardised and varied: the same for every encoder that looks at them."""
    return vary_tokens(network.standardise(batch.tokens, batch.mean, batch.sd, params.own_statistics), params).flatten(1, 3)
