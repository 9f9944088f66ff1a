"""The frozen encoder's exceptions: LoRA on its last blocks (Hu et al., ICLR 2022; by peft), or the whole of it, trained with SEMI's network.

Cached tokens are then of no use: slices go through the encoder at every step, and a case is encoded again when it is predicted. Ours; the
frozen encoder is the method's, and this is there to show what it costs and what it saves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pipelines.backbones.protocol import Backbone
from pipelines.cohort import Case
from pipelines.errors import UsageError
from pipelines.systems.protocol import Task
from pipelines.systems.semi.batches import Batch, Shot, shot_of
from pipelines.systems.semi.features import on_grid
from pipelines.systems.semi.learning import loss_of, optimise, targets_of
from pipelines.systems.semi.model import Semi
from pipelines.systems.semi.params import Params


def image_tower(backbone: Backbone, params: Params) -> torch.nn.Module:
    """A copy of the backbone's image tower of which only what `params.encoder` names learns."""
    if not hasattr(backbone, "image_tower"):
        raise UsageError(f"encoder: {params.encoder} needs a backbone whose image tower can be trained, which {type(backbone).__name__} does not "
                         "offer; use the atlas backbone or encoder: frozen")
    tower = backbone.image_tower()
    if params.encoder == "full":
        return tower.requires_grad_(True)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=params.lora_rank, lora_alpha=params.lora_rank, target_modules=tower.LAST_BLOCKS, init_lora_weights=True)
    return inject_adapter_in_model(config, tower)


def learned(tower: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that are not the frozen backbone's."""
    return {name: value.detach() for name, value in tower.named_parameters() if value.requires_grad}


def restored(backbone: Backbone, params: Params, weights: Mapping[str, torch.Tensor]) -> Backbone:
    """The backbone with a tower of these `learned` weights."""
    tower = image_tower(backbone, params)
    tower.load_state_dict(weights, strict=False)
    return backbone.with_image_tower(tower.eval())


def tune(network: Semi, cases: Sequence[Case], task: Task, params: Params) -> dict[str, torch.Tensor]:
    """Train `network`, in place, and a tower on whole slices of `cases`; returns the tower's `learned` weights."""
    tower = image_tower(task.backbone, params).train()
    shots = [(case, shot_of(case, task, params)) for case in cases]
    targets = targets_of(task, cases, params)
    both = torch.nn.ModuleList([network.train(), tower])
    optimise(both.parameters(), lambda: loss_of(network, _slices(tower, *_one_of(shots), task, params), targets, params),
             steps=params.encoder_steps, rate=params.encoder_rate, decay=params.weight_decay)
    network.eval()
    return learned(tower)


def _one_of(shots: Sequence):
    return shots[int(torch.randint(len(shots), ()))]


def _slices(tower: torch.nn.Module, case: Case, shot: Shot, task: Task, params: Params) -> Batch:
    """Neighbouring slices of a case, more often with a lesion than without, with tokens that have a gradient."""
    depth = min(params.depth, len(shot.label))
    on_lesion = shot.lesions and torch.rand(()) < 0.5 + params.on_lesion / 2
    places = _one_of(shot.lesions) if on_lesion else shot.head
    start = min(max(0, int(_one_of(places)[0]) - int(torch.randint(depth, ()))), len(shot.label) - depth)
    z = slice(start, start + depth)
    view = shot.view
    tokens = view.tokens[None, z].float()  # a copy, as they are kept in half precision
    for m, modality in enumerate(task.modalities):
        if view.present[m]:
            levels = tower.encode(torch.from_numpy(case.image(modality)), z)
            tokens[0, ..., m, :] = on_grid(levels, task, params.grid_stride, view.box).float()
    parts = (view.raw[None, z].float(), shot.texts[None], view.present[None], *(values[None] for values in shot.statistics))
    return Batch(tokens, *parts, shot.label[None, z], shot.classes[None, z])
