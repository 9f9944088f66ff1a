"""Small 2.5-D U-Net trained from scratch (Ronneberger et al. 2015; residual units after Kerfoot et al. 2018), DiceCE, strong augmentation.

The number of steps is fixed by params, never by the clock, so that the same seed gives the same weights on a slower machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.outputs import write_json
from pipelines.systems.baselines.unet.params import Params
from pipelines.systems.filters import head_box, inside
from pipelines.systems.lean import load_monai
from pipelines.systems.protocol import Task
from pipelines.systems.reproducible import WARM_UP, reproducible

WEIGHTS, STATE = "weights.safetensors", "unet.json"
#: Slices that go through the network at once in prediction; bounds memory.
SLICES_AT_ONCE = 16


class System:
    """`network` maps modalities, their neighbouring slices and presence flags to label logits."""

    uses_tokens = False

    def __init__(self, params: Params):
        self.params = params
        self.shape: dict[str, int] = {}
        self.trained: list[str] = []  # modalities that the support had; others would enter through untrained weights
        self.network = None

    def fit(self, task: Task, support: Sequence[Case], seed: int) -> None:
        import torch

        load_monai()
        from monai.losses import DiceCELoss

        from pipelines.systems.baselines.unet.batches import PatchSampler

        self.trained = [modality for modality in task.modalities if any(modality in case.images for case in support)]
        with reproducible(seed):
            self._build(len(task.modalities), 1 + len(task.labels))
            sampler = PatchSampler(support, task.modalities, self.params)
            optimiser = torch.optim.AdamW(self.network.parameters(), self.params.learning_rate, weight_decay=self.params.weight_decay)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.params.learning_rate, total_steps=self.params.steps, pct_start=WARM_UP)
            loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
            self.network.train()
            for _ in range(self.params.steps):
                images, labels = sampler.batch()
                optimiser.zero_grad(set_to_none=True)
                loss(self.network(images), labels).backward()
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
                optimiser.step()
                schedule.step()
        self.network.eval()

    def _build(self, modalities: int, classes: int) -> None:
        load_monai()
        from monai.networks.nets import UNet

        params, self.shape = self.params, {"modalities": modalities, "classes": classes}
        inputs = modalities * (2 + 2 * params.neighbours)
        self.network = UNet(2, inputs, classes, params.channels, (2,) * (len(params.channels) - 1), num_res_units=params.residual_units)

    def predict(self, task: Task, case: Case) -> np.ndarray:
        import torch
        from torch.nn import functional

        from pipelines.systems.baselines.unet.batches import channels_of, with_context, with_presence

        foreground = case.foreground()
        box = head_box(foreground)
        known = {modality: image for modality, image in case.images.items() if modality in self.trained}
        images, present = channels_of(replace(case, images=known) if known else case, task.modalities)
        images = images[:, :, box[1], box[2]]
        height, width = images.shape[-2:]
        multiple = 2 ** (len(self.params.channels) - 1)
        images = functional.pad(images, (0, -width % multiple, 0, -height % multiple))
        parts = []
        with torch.inference_mode():
            for slices in torch.arange(len(images)).split(SLICES_AT_ONCE):
                inputs = with_presence(with_context(images, slices, self.params.neighbours), present.expand(len(slices), -1))
                parts.append(self.network(inputs)[..., :height, :width].softmax(1))
        probabilities = torch.cat(parts).movedim(1, -1).numpy()
        return inside(foreground, probabilities[foreground[box]])

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in self.network.state_dict().items()}, folder / WEIGHTS)
        write_json(folder / STATE, {"shape": self.shape, "trained": self.trained})

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        state = json.loads((folder / STATE).read_text())
        self.trained = state["trained"]
        with reproducible(0):  # the initial weights are replaced; the caller's random state must not move
            self._build(**state["shape"])
        self.network.load_state_dict(load_file(folder / WEIGHTS))
        self.network.eval()
