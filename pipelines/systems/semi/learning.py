"""How SEMI's networks are trained on the patches of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from pipelines.cohort import Case
from pipelines.systems.prompt_learning import learned_vectors
from pipelines.systems.protocol import Task
from pipelines.systems.reproducible import WARM_UP
from pipelines.systems.semi.batches import Batch, PatchSampler, vary_tokens
from pipelines.systems.semi.features import alignment_pairs, raw_width
from pipelines.systems.semi.losses import dice_ce, region_infonce
from pipelines.systems.semi.model import Semi, Sizes
from pipelines.systems.semi.params import Params
from pipelines.systems.semi.texts import class_names, text_targets

#: Slices of each image on which the projectors are started at the backbone's alignment.
SLICES_ALIGNED = 3
LONGEST_GRADIENT = 5.0

Targets = dict[int, tuple[torch.Tensor, torch.Tensor]]


def new_network(task: Task, params: Params) -> Semi:
    """Untrained, for this task."""
    return Semi(Sizes(len(task.modalities), len(task.labels), sum(channels for channels, _ in task.backbone.levels.values()),
                      task.backbone.dim, raw_width(params), params.projector_width, params.decoder_width, params.grid_stride, params.tau))


def train(sampler: PatchSampler, cases: Sequence[Case], task: Task, params: Params) -> Semi:
    """One network, with the running mean of its weights. Its randomness is torch's global generator, which the caller seeds."""
    network = new_network(task, params)
    network.trained[:] = sampler.present()
    network.token_mean[:], network.token_sd[:] = sampler.statistics()
    if params.backbone_alignment:
        start_at_backbone(network, task, cases, params)
    mean = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(params.average))
    targets, prompts = targets_of(task, cases, params), None
    if params.context:
        prompts = learned_vectors(task, class_names(task), sorted({case.site for case in cases}), words=params.context)
    learned = [*network.parameters(), *(prompts.parameters() if prompts else ())]
    optimise(learned, lambda: loss_of(network, *with_prompts(sampler.batch(), targets, prompts), params), steps=params.steps,
             rate=params.learning_rate, decay=params.weight_decay, after=lambda: mean.update_parameters(network))
    if prompts:
        mean.module.texts.copy_(prompts().detach())
    return mean.module.eval()


def with_prompts(batch: Batch, targets: Targets, prompts: torch.nn.Module | None) -> tuple[Batch, Targets]:
    """The batch and the targets with learned class vectors in place of those of the prompts; as they are where none are learned."""
    if prompts is None:
        return batch, targets
    vectors = prompts()
    return replace(batch, texts=vectors.expand(len(batch.texts), -1, -1, -1)), {m: (vectors[m], torch.eye(vectors.shape[1], dtype=torch.bool))
                                                                               for m in targets}


def optimise(parameters: Iterable[torch.nn.Parameter], loss: Callable[[], torch.Tensor], *, steps: int, rate: float, decay: float,
             after: Callable[[], None] = lambda: None) -> None:
    """AdamW on a one-cycle schedule with clipped gradients; `loss` draws its own batch, `after` is called after every step."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=WARM_UP)
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        loss().backward(inputs=learned)  # a frozen tower gathers no gradients
        torch.nn.utils.clip_grad_norm_(learned, LONGEST_GRADIENT)
        optimiser.step()
        schedule.step()
        after()


def targets_of(task: Task, cases: Sequence[Case], params: Params) -> Targets:
    """Text vectors and positives of each modality that a case has, by the modality's number."""
    targets = {}
    for m, modality in enumerate(task.modalities):
        sites = sorted({case.site for case in cases if modality in case.images})
        if sites:
            found = text_targets(task, modality, sites, params.text)
            targets[m] = torch.from_numpy(found.vectors), torch.from_numpy(found.positive)
    return targets


def start_at_backbone(network: Semi, task: Task, cases: Sequence[Case], params: Params) -> None:
    """Solve every projector's last layer for the backbone's own alignment of some of the cases' tokens."""
    for m, modality in enumerate(task.modalities):
        pairs = [alignment_pairs(case, modality, task, params.grid_stride, SLICES_ALIGNED) for case in cases if modality in case.tokens]
        if pairs:
            tokens, aligned = (torch.cat(values) for values in zip(*pairs, strict=True))
            network.projectors[m].start_at((tokens.float() - network.token_mean[m]) / network.token_sd[m], aligned)


def loss_of(network: Semi, batch: Batch, targets: Targets, params: Params) -> torch.Tensor:
    """DiceCE of the batch's voxels, and the contrast of its regions with text."""
    tokens = vary_tokens(network.standardise(batch.tokens, batch.mean, batch.sd, params.own_statistics), params)
    maps, embeddings = network.regions(tokens.flatten(1, 3), batch.texts, batch.present)
    maps = network.join_slices(maps.unflatten(1, batch.classes.shape[1:]))
    voxels = network.upsample(maps.flatten(0, 1)).flatten(0, 2)
    present = batch.present[:, None].expand(-1, batch.labels[0].numel(), -1).flatten(0, 1)
    known = batch.labels.flatten() >= 0
    logits = network.decode(voxels, batch.raw.flatten(0, 3), present)
    loss = dice_ce(logits, batch.labels.flatten()) if known.all() else dice_ce(logits[known], batch.labels.flatten()[known])
    if params.infonce_weight and targets:
        contrast = [region_infonce(z[batch.present[:, m]].flatten(0, -2), batch.classes[batch.present[:, m]].flatten(), *targets[m], params.tau)
                    for m, z in embeddings.items()]
        loss = loss + params.infonce_weight * sum(contrast) / len(contrast)
    return loss
