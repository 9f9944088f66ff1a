"""SEMI 1a, text-anchored alignment: few-shot segmentation on the cached tokens of a frozen vision-language model.

The method's description gives the projectors, the contrast against text at temperature 0.07, linear fusion and an MLP decoder, with the
encoder frozen. Its patch sampling, augmentation in token space, running mean of weights, several members, what is done at prediction
and the choices named in `model` and `losses` are ours.
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
from pipelines.systems.refinement import refined
from pipelines.systems.reproducible import reproducible
from pipelines.systems.semi.params import Params
from pipelines.systems.semi.parts import smallest_parts, without_small_parts

WEIGHTS, STATE = "weights.safetensors", "semi.json"
#: Voxels decoded at once in prediction; bounds memory.
SLICES_AT_ONCE = 8
#: Members start from seeds this far apart, so that no member of one fit is a member of another.
SEEDS_APART = 1000


class System:
    """`networks` are `semi.model.Semi`s once fitted or loaded; `smallest` is the least part of each label that the support shows, in voxels."""

    uses_tokens = True

    def __init__(self, params: Params):
        self.params = params
        self.networks: list = []
        self.towers: list[dict] = []  # what each member learned of the encoder; empty while it is frozen
        self.smallest: list[float] = []

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        from pipelines.systems.semi.batches import PatchSampler
        from pipelines.systems.semi.learning import train

        for case in (*support, *source):
            need_tokens(case)
        with reproducible(seed):
            sampler = PatchSampler(support, task, self.params, source)
        self.networks, self.towers = [], []
        for member in range(self.params.members):
            with reproducible(seed + SEEDS_APART * (1 + member)):
                self.networks.append(train(sampler, [*support, *source], task, self.params))
                if self.params.encoder != "frozen":
                    from pipelines.systems.semi.encoder import tune

                    self.towers.append(tune(self.networks[-1], support or source, task, self.params))
        self.smallest = smallest_parts(support or source, len(task.labels))

    def predict(self, task: Task, case: Case) -> np.ndarray:
        need_tokens(case)
        probabilities = self._of_all(task, case)
        if self.params.mirrored:
            probabilities = (probabilities + self._of_all(task, mirrored(case, task))[:, :, ::-1]) / 2
        probabilities = refined(probabilities, case, self.params.refinement)
        if self.params.smallest_part:
            probabilities = without_small_parts(probabilities, [self.params.smallest_part * size for size in self.smallest])
        return probabilities

    def _of_all(self, task: Task, case: Case) -> np.ndarray:
        """The members' mean, `(1 + K, S, H, W)` float32."""
        from pipelines.systems.semi.batches import text_tensor
        from pipelines.systems.semi.features import view_of

        texts = None if self.params.context else text_tensor(case, task, self.params.text)
        views = [view_of(seen, task, self.params) for seen in (self._tuned(task, case) if self.towers else [case])]
        views *= len(self.networks) // len(views)
        members = [self._of_one(network, view, texts, case.foreground()) for network, view in zip(self.networks, views, strict=True)]
        if self.params.self_training:
            from pipelines.systems.semi.self_training import self_trained

            sure = np.mean(members, axis=0)
            with reproducible(0):  # the same case is predicted alike every time
                learned = [self_trained(network, case, sure, task, self.params) for network in self.networks]
            members = [self._of_one(network, view, texts, case.foreground()) for network, view in zip(learned, views, strict=True)]
        return np.mean(members, axis=0, dtype=np.float32) if len(members) > 1 else members[0]

    def _tuned(self, task: Task, case: Case) -> list[Case]:
        """The case as each member's own encoder sees it."""
        from pipelines.systems.semi.encoder import restored

        return [encoded(case, replace(task, backbone=restored(task.backbone, self.params, tower))) for tower in self.towers]

    def _of_one(self, network, view, texts, foreground: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            view = replace(view, present=network.usable(view.present))
            maps = self._maps(network, view, network.texts if texts is None else texts, foreground)
            rows, columns = (slice(part.start, min(part.stop, size)) for part, size in zip(view.box[1:], foreground.shape[1:], strict=True))
            head = torch.from_numpy(foreground[:, rows, columns])
            parts = []
            for chosen in torch.arange(len(head)).split(SLICES_AT_ONCE):
                where = head[chosen].nonzero(as_tuple=True)
                voxels = network.upsample(maps[chosen])[where]
                present = view.present.expand(len(voxels), -1)
                parts.append(network.decode(voxels, view.raw[chosen][where], present).softmax(1))
        return inside(foreground, torch.cat(parts).numpy())

    def _maps(self, network, view, texts, foreground: np.ndarray):
        """Decoder input on the token grid `(S, h, w, width)`; only tokens that a voxel of the head looks at are computed."""
        import torch

        from pipelines.systems.semi.features import tokens_near

        near = tokens_near(foreground, view, self.params.grid_stride)
        maps = torch.zeros(*near.shape, self.params.decoder_width)
        tokens = network.standardise(view.tokens[near], view.mean, view.sd, self.params.own_statistics)
        maps[near] = network.regions(tokens[None], texts[None], view.present[None])[0][0]
        return network.join_slices(maps[None])[0]

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({f"{member}.{name}": value.contiguous() for member, network in enumerate(self.networks)
                   for name, value in network.state_dict().items()}
                  | {f"encoder.{member}.{name}": value.contiguous() for member, tower in enumerate(self.towers) for name, value in tower.items()},
                  folder / WEIGHTS)
        write_json(folder / STATE, {"sizes": self.networks[0].sizes.as_dict(), "members": len(self.networks), "smallest": self.smallest})

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        from pipelines.systems.semi.model import Semi, Sizes

        state, weights = json.loads((folder / STATE).read_text()), load_file(folder / WEIGHTS)
        self.smallest, self.networks = state["smallest"], []
        for member in range(state["members"]):
            with reproducible(0):  # the initial weights are replaced; the caller's random state must not move
                network = Semi(Sizes(**state["sizes"]))
            network.load_state_dict(_below(f"{member}.", weights))
            self.networks.append(network.eval())
        self.towers = [_below(f"encoder.{member}.", weights) for member in range(state["members"])] if self.params.encoder != "frozen" else []


def mirrored(case: Case, task: Task) -> Case:
    """The case with its rows reversed, encoded anew."""
    images = {name: np.ascontiguousarray(case.image(name)[:, ::-1]) for name in case.images}
    return encoded(replace(case, images=images, brain=np.ascontiguousarray(case.foreground()[:, ::-1]).astype(np.uint8), dseg=None), task)


def encoded(case: Case, task: Task) -> Case:
    """The case with tokens made by the task's backbone now, of the images that had any."""
    return replace(case, tokens={name: task.backbone.encode_image(case.image(name), case.spacing_mm) for name in case.tokens if name in case.images})


def _below(start: str, weights: dict) -> dict:
    return {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}


def need_tokens(case: Case) -> None:
    """Raise `DataError` for a case of which nothing was embedded."""
    if not set(case.images) & set(case.tokens):
        raise DataError(f"{case.id} has no cached tokens for any of its images; run the embed stage on this cohort")
