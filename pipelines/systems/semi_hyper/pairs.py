"""(Region, text) pairs: what the shared projector, the hypernetwork and a new modality's projector learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pipelines.cohort import Case
from pipelines.systems.protocol import Task
from pipelines.systems.semi.batches import vary_tokens
from pipelines.systems.semi.features import region_classes, view_of
from pipelines.systems.semi.losses import region_infonce
from pipelines.systems.semi.texts import class_vectors, text_targets
from pipelines.systems.semi_hyper.params import Params


@dataclass(frozen=True)
class Pool:
    """Regions of one modality over several cases, with what they are to be aligned with."""

    regions: torch.Tensor  # (N, D) standardised by `mean` and `sd`
    classes: torch.Tensor  # (N,) in the order of `class_names`
    paired: torch.Tensor  # (N, dim) the text vector of each region's class on this modality at its site
    texts: torch.Tensor  # (T, dim) distinct texts of the modality
    positive: torch.Tensor  # (C, T) which of them name a class
    instruction: torch.Tensor  # (dim,) text vector of the modality's name
    mean: torch.Tensor  # (D,) of all tokens inside the heads
    sd: torch.Tensor  # (D,)

    def draw(self, count: int) -> torch.Tensor:
        """Numbers of about `count` regions, classes in equal shares (as far as they go round). Torch's global generator."""
        present = self.classes.unique()
        share = max(1, -(-count // len(present)))
        drawn = [of_class[torch.randperm(len(of_class))[:share]] for of_class in (torch.nonzero(self.classes == name)[:, 0] for name in present)]
        mixed = torch.cat(drawn)
        return mixed[torch.randperm(len(mixed))]

    def contrast(self, projected: torch.Tensor, chosen: torch.Tensor, tau: float) -> torch.Tensor:
        """SEMI's contrast of the projected regions `chosen` against all texts of the modality."""
        return region_infonce(projected, self.classes[chosen], self.texts, self.positive, tau)

    def varied(self, chosen: torch.Tensor, params: Params) -> torch.Tensor:
        """The regions `chosen`, each with another gain, shift and noise, as SEMI varies its patches."""
        return vary_tokens(self.regions[chosen][:, None, None, None, None], params).flatten(1)


def pool_of(cases: Sequence[Case], modality: str, task: Task, params: Params, per_class: int) -> Pool:
    """At most `per_class` regions of each class from each case's image. Torch's global generator decides which.

    Mean and standard deviation are of all tokens inside the heads, labelled or not. `cases` is not empty, and each has the modality.
    """
    parts, moments = [], []
    for case in cases:
        tokens, classes = image_regions(case, modality, task, params)
        inside = tokens[classes <= len(task.labels)].float()
        moments.append((inside.mean(0), (inside**2).mean(0)))
        chosen = _some_of_each(classes, per_class)
        vectors = torch.from_numpy(class_vectors(task, modality, case.site, params.text))
        parts.append((tokens[chosen].float(), classes[chosen], vectors[classes[chosen]]))
    regions, found, paired = (torch.cat(values) for values in zip(*parts, strict=True))
    mean, square = (torch.stack(values).mean(0) for values in zip(*moments, strict=True))
    sd = (square - mean**2).clamp_min(1e-6).sqrt()
    targets = text_targets(task, modality, sorted({case.site for case in cases}), params.text)
    return Pool((regions - mean) / sd, found, paired, torch.from_numpy(targets.vectors), torch.from_numpy(targets.positive),
                _instruction(task, modality, params), mean, sd)


def pools_of(cases: Sequence[Case], modalities: Sequence[str], task: Task, params: Params, per_class: int) -> dict[str, Pool]:
    """The pool of each modality that some case has."""
    having = {modality: [case for case in cases if modality in case.images and modality in case.tokens] for modality in modalities}
    return {modality: pool_of(with_it, modality, task, params, per_class) for modality, with_it in having.items() if with_it}


def image_regions(case: Case, modality: str, task: Task, params: Params) -> tuple[torch.Tensor, torch.Tensor]:
    """All tokens of one image inside the crop round the head, `(N, D)` half precision, and their classes `(N,)`."""
    alone = replace(task, modalities=(modality,))
    view = view_of(case, alone, params.model_copy(update={"sigmas": (), "asymmetry": False}))  # no filtered intensities: nobody looks at them here
    _, classes = region_classes(case, view.box, len(task.labels), params.grid_stride)
    return view.tokens.flatten(0, 3), classes.flatten()


def _some_of_each(classes: torch.Tensor, count: int) -> torch.Tensor:
    of_each = (torch.nonzero(classes == name)[:, 0] for name in classes.unique())
    return torch.cat([numbers[torch.randperm(len(numbers))[:count]] for numbers in of_each])


def _instruction(task: Task, modality: str, params: Params) -> torch.Tensor:
    """The text vector of the modality's name; nothing where the control takes language away."""
    if params.text != "prompts":
        return torch.zeros(task.backbone.dim)
    return torch.from_numpy(task.backbone.encode_text([modality])[0]).float()
