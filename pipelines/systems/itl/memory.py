"""What a baseline keeps of earlier sites beside the weights: the Fisher information (EWC), or labelled samples of patients (replay).

Samples grow with the number of sites and are images of patients, which then lie in the model. ITL keeps neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from pipelines.systems.itl.params import Params
from pipelines.systems.semi.batches import PatchSampler, Shot
from pipelines.systems.semi.features import View
from pipelines.systems.semi.learning import Targets, loss_of
from pipelines.systems.semi.model import Semi


@dataclass
class Memory:
    fisher: dict[str, torch.Tensor] = field(default_factory=dict)  # summed over sites, by the weight's name
    shots: list[Shot] = field(default_factory=list)

    def lend(self, sampler: PatchSampler) -> PatchSampler:
        """The sampler with the kept shots as cases of other sites."""
        sampler.shots = [*self.shots, *sampler.shots]
        sampler.lent += len(self.shots)
        return sampler

    def keep(self, sampler: PatchSampler, cases: int) -> None:
        """Keep the first shots of the site that `sampler` has just shown (its own come after those lent)."""
        own = sampler.shots[sampler.lent:]
        self.shots += own[:min(cases, sampler.originals)]

    def targets(self) -> Targets:
        """What the kept shots' regions are contrasted with, for modalities that the new site may not have: their own class vectors."""
        return {int(m): (shot.texts[m], torch.eye(shot.texts.shape[1], dtype=torch.bool))
                for shot in self.shots for m in torch.nonzero(shot.view.present)[:, 0]}

    def measure(self, network: Semi, sampler: PatchSampler, targets: Targets, params: Params) -> None:
        """Add the site's empirical Fisher information: mean squared gradients of the loss over batches.

        The sum over sites with one anchor, the newest weights, is online EWC (Schwarz et al. 2018), of constant size.
        """
        named = {name: value for name, value in network.named_parameters() if value.requires_grad and name != "gate"}
        for _ in range(params.fisher_batches):
            loss = loss_of(network, sampler.batch(), targets, params)
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for (name, value), gradient in zip(named.items(), gradients, strict=True):
                known = self.fisher.setdefault(name, torch.zeros_like(value))
                if gradient is not None:
                    known += gradient.detach() ** 2 / params.fisher_batches

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name, as `restored` reads it."""
        found = {f"fisher.{name}": value for name, value in self.fisher.items()}
        for number, shot in enumerate(self.shots):
            found |= {f"shot.{number}.{name}": value.contiguous() for name, value in _tensors(shot).items()}
        return found

    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor]) -> Memory:
        """What `tensors` wrote."""
        fisher = {name.removeprefix("fisher."): value for name, value in tensors.items() if name.startswith("fisher.")}
        numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("shot.")})
        starts = [f"shot.{number}." for number in numbers]
        return cls(fisher, [_shot({name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)})
                            for start in starts])


def _tensors(shot: Shot) -> dict[str, torch.Tensor]:
    view = shot.view
    box = torch.tensor([[-1 if end is None else end for end in (part.start, part.stop)] for part in view.box])
    return {"present": view.present, "tokens": view.tokens, "raw": view.raw, "mean": view.mean, "sd": view.sd, "box": box, "texts": shot.texts,
            "label": shot.label.to(torch.int16), "classes": shot.classes.to(torch.int16), "head": shot.head,
            **{f"lesion.{number}": where for number, where in enumerate(shot.lesions)}}


def _shot(tensors: Mapping[str, torch.Tensor]) -> Shot:
    box = tuple(slice(*(None if end < 0 else end for end in part)) for part in tensors["box"].tolist())
    view = View(tensors["present"], tensors["tokens"], tensors["raw"], tensors["mean"], tensors["sd"], box)
    count = sum(name.startswith("lesion.") for name in tensors)
    return Shot(view, tensors["texts"], tensors["label"].long(), tensors["classes"].long(), [tensors[f"lesion.{number}"] for number in range(count)],
                tensors["head"])
