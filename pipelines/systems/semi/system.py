"""SEMI 1a, text-anchored alignment: few-shot segmentation on the cached tokens of a frozen vision-language model.

The method's description gives the projectors, the contrast against text at temperature 0.07, linear fusion and an MLP decoder, with the
encoder frozen. Its patch sampling, augmentation in token space, running mean of weights and the choices named in `model` and `losses` are ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.outputs import write_json
from pipelines.systems.filters import inside
from pipelines.systems.protocol import Task
from pipelines.systems.reproducible import WARM_UP, reproducible
from pipelines.systems.semi.params import Params

WEIGHTS, STATE = "weights.safetensors", "semi.json"
#: Voxels decoded at once in prediction; bounds memory.
SLICES_AT_ONCE = 8
#: Slices of each support image on which the projectors are started at the backbone's alignment.
SLICES_ALIGNED = 3


class System:
    """`network` is `semi.model.Semi` once fitted or loaded."""

    uses_tokens = True

    def __init__(self, params: Params):
        self.params = params
        self.network = None

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        import torch

        from pipelines.systems.semi.batches import PatchSampler

        for case in support:
            _need_tokens(case)
        with reproducible(seed):
            sampler = PatchSampler(support, task, self.params)
            network = self._network(task)
            network.trained[:] = sampler.present()
            network.token_mean[:], network.token_sd[:] = sampler.statistics()
            if self.params.backbone_alignment:
                self._start_at_backbone(network, task, support)
            mean = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(self.params.average))
            optimiser = torch.optim.AdamW(network.parameters(), self.params.learning_rate, weight_decay=self.params.weight_decay)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.params.learning_rate, total_steps=self.params.steps, pct_start=WARM_UP)
            targets = self._targets(task, support)
            for _ in range(self.params.steps):
                optimiser.zero_grad(set_to_none=True)
                self._loss(network, sampler.batch(), targets).backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimiser.step()
                schedule.step()
                mean.update_parameters(network)
        self.network = mean.module.eval()

    def _network(self, task: Task):
        from pipelines.systems.semi.features import raw_width
        from pipelines.systems.semi.model import Semi, Sizes

        params = self.params
        return Semi(Sizes(len(task.modalities), len(task.labels), sum(channels for channels, _ in task.backbone.levels.values()),
                          task.backbone.dim, raw_width(params), params.projector_width, params.decoder_width, params.grid_stride, params.tau))

    def _targets(self, task: Task, support: Sequence[Case]):
        """Text vectors and positives of each modality that a shot has, as tensors by the modality's number."""
        import torch

        from pipelines.systems.semi.texts import text_targets

        targets = {}
        for m, modality in enumerate(task.modalities):
            sites = sorted({case.site for case in support if modality in case.images})
            if sites:
                found = text_targets(task, modality, sites, self.params.text)
                targets[m] = torch.from_numpy(found.vectors), torch.from_numpy(found.positive)
        return targets

    def _start_at_backbone(self, network, task: Task, support: Sequence[Case]) -> None:
        import torch

        from pipelines.systems.semi.features import alignment_pairs

        for m, modality in enumerate(task.modalities):
            pairs = [alignment_pairs(case, modality, task, self.params.grid_stride, SLICES_ALIGNED) for case in support if modality in case.tokens]
            if pairs:
                tokens, aligned = (torch.cat(values) for values in zip(*pairs, strict=True))
                network.projectors[m].start_at((tokens.float() - network.token_mean[m]) / network.token_sd[m], aligned)

    def _loss(self, network, batch, targets):
        from pipelines.systems.semi.batches import vary_tokens
        from pipelines.systems.semi.losses import dice_ce, region_infonce

        tokens = vary_tokens(network.standardise(batch.tokens), self.params)
        maps, embeddings = network.regions(tokens.flatten(1, 3), batch.texts, batch.present)
        maps = network.join_slices(maps.unflatten(1, batch.classes.shape[1:]))
        voxels = network.upsample(maps.flatten(0, 1)).flatten(0, 2)
        present = batch.present[:, None].expand(-1, batch.labels[0].numel(), -1).flatten(0, 1)
        loss = dice_ce(network.decode(voxels, batch.raw.flatten(0, 3), present), batch.labels.flatten())
        if self.params.infonce_weight:
            contrast = [region_infonce(z[batch.present[:, m]].flatten(0, -2), batch.classes[batch.present[:, m]].flatten(), *targets[m],
                                       self.params.tau) for m, z in embeddings.items()]
            loss = loss + self.params.infonce_weight * sum(contrast) / len(contrast)
        return loss

    def predict(self, task: Task, case: Case) -> np.ndarray:
        import torch

        from pipelines.systems.semi.batches import text_tensor
        from pipelines.systems.semi.features import view_of

        _need_tokens(case)
        foreground = case.foreground()
        with torch.inference_mode():
            view = view_of(case, task, self.params)
            view = replace(view, present=self.network.usable(view.present))
            maps = self._maps(view, text_tensor(case, task, self.params.text), foreground)
            rows, columns = (slice(part.start, min(part.stop, size)) for part, size in zip(view.box[1:], foreground.shape[1:], strict=True))
            head = torch.from_numpy(foreground[:, rows, columns])
            parts = []
            for chosen in torch.arange(len(head)).split(SLICES_AT_ONCE):
                where = head[chosen].nonzero(as_tuple=True)
                voxels = self.network.upsample(maps[chosen])[where]
                present = view.present.expand(len(voxels), -1)
                parts.append(self.network.decode(voxels, view.raw[chosen][where], present).softmax(1))
        return inside(foreground, torch.cat(parts).numpy())

    def _maps(self, view, texts, foreground: np.ndarray):
        """Decoder input on the token grid `(S, h, w, width)`; only tokens that a voxel of the head looks at are computed."""
        import torch

        from pipelines.systems.semi.features import tokens_near

        near = tokens_near(foreground, view, self.params.grid_stride)
        maps = torch.zeros(*near.shape, self.params.decoder_width)
        tokens = self.network.standardise(view.tokens[near])
        maps[near] = self.network.regions(tokens[None], texts[None], view.present[None])[0][0]
        return self.network.join_slices(maps[None])[0]

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in self.network.state_dict().items()}, folder / WEIGHTS)
        write_json(folder / STATE, self.network.sizes.as_dict())

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        from pipelines.systems.semi.model import Semi, Sizes

        with reproducible(0):  # the initial weights are replaced; the caller's random state must not move
            self.network = Semi(Sizes(**json.loads((folder / STATE).read_text())))
        self.network.load_state_dict(load_file(folder / WEIGHTS))
        self.network.eval()


def _need_tokens(case: Case) -> None:
    if not set(case.images) & set(case.tokens):
        raise DataError(f"{case.id} has no cached tokens for any of its images; run the embed stage on this cohort")
