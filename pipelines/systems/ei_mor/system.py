"""EI + MoR: a case's class from several images, each read in the light of the others (arXiv 2603.17514, CVPR 2026 Findings), and the arms it is
compared with. What is the paper's and what is ours is said in `adapters`, `network` and `losses`; docs/ei-mor.md has what came of it.

The transformer stays frozen and is not stored: a fit holds its adapters, heads and interventions, and the hash of the transformer they belong to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.outputs import write_json
from pipelines.systems.ei_mor.params import Params
from pipelines.systems.protocol import Task
from pipelines.systems.reproducible import reproducible

WEIGHTS, STATE = "weights.safetensors", "ei_mor.json"
#: The second stage's random numbers are not those of the first.
SECOND_STAGE = 1000


class System:
    """`first` are the unimodal encoders, `fusion` what reads them together; `bank`: class tokens of other patients, for the shuffled control."""

    answers = "case"
    uses_tokens = False

    def __init__(self, params: Params):
        self.params = params
        self.first = self.fusion = self.vit = None
        self.state: dict[str, object] = {}
        self.bank: dict[str, object] = {}

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        from pipelines.systems.ei_mor.cases import groups_of
        from pipelines.systems.ei_mor.learning import jointly, references

        cases = [*support, *source]
        self._build(self._modalities(task, cases), len(task.outcomes))
        groups = groups_of(cases, self.state["modalities"], task.outcomes, self.vit, slices=self.params.slices, ways=self.params.views)
        self.first, gaps = self._unimodal(task, groups, cases, seed)
        with reproducible(seed + SECOND_STAGE):
            self.fusion = self._fusion()
            for part in ("towers", "heads", "auxiliary"):
                getattr(self.fusion, part).load_state_dict(getattr(self.first, part).state_dict())
            if self.params.fusion == "early":
                for group in groups:
                    group.references.update(self._shuffled(references(self.first, group)))
            jointly(self.fusion, groups, self.params, gaps)
        self.state["gaps"] = gaps

    def predict(self, task: Task, case: Case) -> np.ndarray:
        import torch

        from pipelines.systems.ei_mor.cases import groups_of
        from pipelines.systems.ei_mor.learning import references

        (group,) = groups_of([case], self.state["modalities"], task.outcomes, self.vit, slices=self.params.slices,
                             ways=min(2, self.params.views))
        with torch.inference_mode():
            if self.params.fusion == "early":
                group.references.update(self._of_another(case) if self.params.shuffled else references(self.first, group))
            seen = [self.fusion(way.images, way.references).joint.softmax(1) for way in map(group.turned, range(group.ways))]
        return torch.stack(seen).mean(0)[0].numpy().astype(np.float32)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        stored = {f"{name}.{key}": value for name in self._parts() for key, value in _learned(getattr(self, name)).items()}
        stored |= {f"bank.{name}": value for name, value in self.bank.items()}
        save_file({name: value.detach().contiguous() for name, value in stored.items()}, folder / WEIGHTS)
        write_json(folder / STATE, self.state)

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        state = json.loads((folder / STATE).read_text())
        self._build(state["modalities"], state["classes"])
        if state["vit"] != self.state["vit"]:
            raise DataError(f"{self.params.vit} is another transformer now than {folder} was trained on; put that one back or train this fit again")
        stored = load_file(folder / WEIGHTS)
        with reproducible(0):
            self.first, self.fusion = self._first(), self._fusion()
        for name in self._parts():
            part = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
            getattr(self, name).load_state_dict(part, strict=False)
            getattr(self, name).eval()
        self.bank = {key.removeprefix("bank."): value for key, value in stored.items() if key.startswith("bank.")}
        self.state = state

    def _parts(self) -> tuple[str, ...]:
        """The networks that a prediction needs; only interventions need the unimodal encoders."""
        return ("first", "fusion") if self.params.fusion == "early" and not self.params.shuffled else ("fusion",)

    def _modalities(self, task: Task, cases: Sequence[Case]) -> list[str]:
        """Those to look at, of those that some case to learn from has."""
        present = [name for name in task.modalities if any(name in case.images for case in cases)]
        wanted = present if self.params.modalities == "all" else self.params.modalities
        if missing := set(wanted) - set(present):
            raise DataError(f"params name modality {min(missing)!r}, which no case to learn from has; they have {', '.join(present)}")
        return wanted

    def _build(self, modalities: Sequence[str], classes: int) -> None:
        """Load the transformer and note what the networks are made for."""
        from pipelines.backbones.vit import load_vit

        self.vit = load_vit(self.params.vit)
        self.state = {"modalities": list(modalities), "classes": classes, "vit": self.vit.fingerprint}

    def _first(self):
        from pipelines.systems.ei_mor.network import Unimodal

        return Unimodal(self.vit, tuple(self.state["modalities"]), self.state["classes"], self.params)

    def _fusion(self):
        from pipelines.systems.ei_mor.network import FUSIONS

        return FUSIONS[self.params.fusion](self.vit, tuple(self.state["modalities"]), self.state["classes"], self.params)

    def _unimodal(self, task: Task, groups, cases: Sequence[Case], seed: int):
        """The first stage, which every fusion of the same adapter shares: a process that fits several arms trains it once."""
        from pipelines.systems.baselines.unet.training import SOURCE_MODELS
        from pipelines.systems.ei_mor.learning import unimodal

        def train():
            with reproducible(seed):
                network = self._first()
                network.gaps = unimodal(network, groups, self.params)
            return network

        settings = self.params.model_dump_json(exclude={"fusion", "shuffled", "joint_epochs", "routing", "whiten"})
        key = (type(self).__module__, settings, self.state["vit"], tuple(self.state["modalities"]), task.outcomes, seed)
        network = SOURCE_MODELS.get(key, cases, train)
        return network.requires_grad_(False), network.gaps

    def _shuffled(self, references: dict) -> dict:
        """For the control: every case gets the next one's references, and they are kept for cases to come."""
        if not self.params.shuffled:
            return references
        self.bank |= {name: values[:, 0] for name, values in references.items()}
        return {name: values.roll(1, 0) for name, values in references.items()}

    def _of_another(self, case: Case) -> dict:
        number = int(hashlib.sha256(case.id.encode()).hexdigest()[:8], 16)
        return {name: values[number % len(values)][None, None].expand(1, 2, -1) for name, values in self.bank.items()}


def _learned(network) -> dict:
    """What of a network is not the frozen transformer's."""
    adapters = (".down", ".up", ".router.weight", ".router.bias")
    return {name: value for name, value in network.state_dict().items() if not name.startswith("towers.") or name.endswith(adapters)}
