"""Small 2.5-D U-Net (Ronneberger et al. 2015; residual units after Kerfoot et al. 2018), DiceCE, strong augmentation.

From scratch on the support; or, under the transfer protocol, trained on the source cases and then fine-tuned on the support at a lower rate
(not at all where there is none). Missing modalities enter as zeros with a flag, and are practised by dropping some in training: early fusion
with modality dropout. The number of steps is fixed by params, never by the clock, so that the same seed gives the same weights on a slower machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.outputs import write_json
from pipelines.systems.baselines.unet.params import Params
from pipelines.systems.filters import head_box, inside
from pipelines.systems.lean import load_monai
from pipelines.systems.protocol import Task
from pipelines.systems.reproducible import reproducible

WEIGHTS, STATE = "weights.safetensors", "network.json"
#: Slices that go through the network at once in prediction; bounds memory.
SLICES_AT_ONCE = 16
#: Axes of a batch along which a slice is mirrored.
MIRRORS = ((), (2,), (3,), (2, 3))


class System:
    """`network` maps modalities, their neighbouring slices and presence flags to label logits."""

    uses_tokens = False

    def __init__(self, params: Params):
        self.params = params
        self.shape: dict[str, int] = {}
        self.trained: list[str] = []  # modalities that some case had; others would enter through untrained weights
        self.network = None

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        params = self.params
        self.trained = [modality for modality in task.modalities if any(modality in case.images for case in (*support, *source))]
        self.shape = {"modalities": len(task.modalities), "classes": 1 + len(task.labels)}
        if not source:
            self.network = self._train(self._initial(seed), task, support, seed, steps=params.steps, rate=params.learning_rate)
            return
        self.network = self._from_source(task, source, seed)
        if support:
            self.network = self._train(self.network, task, support, seed, steps=params.fine_tune_steps, rate=params.fine_tune_rate)

    def _train(self, network, task: Task, cases: Sequence[Case], seed: int, *, steps: int, rate: float):
        from pipelines.systems.baselines.unet.batches import PatchSampler
        from pipelines.systems.baselines.unet.training import train

        with reproducible(seed):
            return train(network, PatchSampler(cases, task.modalities, self.params), self.params, steps, rate)

    def _from_source(self, task: Task, source: Sequence[Case], seed: int):
        from pipelines.systems.baselines.unet.training import SOURCE_MODELS

        params = self.params
        key = (type(self).__module__, params.model_dump_json(), task.modalities, task.labels, seed)
        return SOURCE_MODELS.get(key, source, lambda: self._train(self._initial(seed), task, source, seed,
                                                                  steps=params.source_steps, rate=params.learning_rate))

    def _initial(self, seed: int):
        with reproducible(seed):
            return self._build(**self.shape)

    def _build(self, modalities: int, classes: int):
        load_monai()
        from monai.networks.nets import UNet

        params = self.params
        inputs = modalities * (2 + 2 * params.neighbours)
        return UNet(2, inputs, classes, params.channels, (2,) * (len(params.channels) - 1), num_res_units=params.residual_units)

    def predict(self, task: Task, case: Case) -> np.ndarray:
        import torch
        from torch.nn import functional

        from pipelines.systems.baselines.unet.batches import channels_of, with_context, with_presence

        foreground = case.foreground()
        box = head_box(foreground)
        known = [modality for modality in self.trained if modality in case.images]
        images, present = channels_of(case.only(known) if known else case, task.modalities)
        images = images[:, :, box[1], box[2]]
        height, width = images.shape[-2:]
        multiple = 2 ** (len(self.params.channels) - 1)
        images = functional.pad(images, (0, -width % multiple, 0, -height % multiple))
        parts = []
        with torch.inference_mode():
            for slices in torch.arange(len(images)).split(SLICES_AT_ONCE):
                inputs = with_presence(with_context(images, slices, self.params.neighbours), present.expand(len(slices), -1))
                parts.append(self._probabilities(inputs)[..., :height, :width])
        probabilities = torch.cat(parts).movedim(1, -1).numpy()
        return inside(foreground, probabilities[foreground[box]])

    def _probabilities(self, inputs):
        """Class probabilities `(B, 1 + K, H, W)`, the mean over mirror images."""
        mirrors = MIRRORS if self.params.mirror else MIRRORS[:1]
        return sum(self.network(inputs.flip(axes)).softmax(1).flip(axes) for axes in mirrors) / len(mirrors)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in self.network.state_dict().items()}, folder / WEIGHTS)
        write_json(folder / STATE, {"shape": self.shape, "trained": self.trained})

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        state = json.loads((folder / STATE).read_text())
        self.trained, self.shape = state["trained"], state["shape"]
        self.network = self._initial(0)  # the initial weights are replaced
        self.network.load_state_dict(load_file(folder / WEIGHTS))
        self.network.eval()
