"""SEMI's training patches: where they lie and how their tokens and intensities are varied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pipelines.cohort import Case
from pipelines.systems.protocol import Task
from pipelines.systems.semi.features import View, region_classes, view_of
from pipelines.systems.semi.params import Params
from pipelines.systems.semi.texts import class_vectors
from pipelines.systems.semi.views import another_view

#: Label of a voxel that the loss leaves out.
UNKNOWN = -1


@dataclass(frozen=True)
class Batch:
    """B patches of Z slices; shapes as in `View`, with B in front."""

    tokens: torch.Tensor
    raw: torch.Tensor
    texts: torch.Tensor  # (B, M, C, dim)
    present: torch.Tensor  # (B, M)
    mean: torch.Tensor  # (B, 1, 1, 1, M, D), of the case's tokens
    sd: torch.Tensor
    labels: torch.Tensor  # (B, Z, H, W), below 0 where not known
    classes: torch.Tensor  # (B, Z, h, w)


@dataclass(frozen=True)
class Shot:
    """A labelled case, and where its patches may lie."""

    view: View
    texts: torch.Tensor
    label: torch.Tensor
    classes: torch.Tensor
    lesions: list[torch.Tensor]  # token positions of each label that the case shows
    head: torch.Tensor  # token positions inside the head

    @property
    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(values[None, None, None] for values in (self.view.mean, self.view.sd))


class PatchSampler:
    """Draws patches from support cases. Its randomness is torch's global generator, which the caller seeds."""

    def __init__(self, support: Sequence[Case], task: Task, params: Params, source: Sequence[Case] = ()):
        """`source`: cases of other sites; of them come the patches that `params.target_share` does not reserve for `support`."""
        self.params = params
        varied = support or source
        views = [another_view(varied[number % len(varied)], task, params) for number in range(params.views)]
        self.lent, self.originals = (len(source), len(support)) if support else (0, len(source))
        self.shots = [shot_of(case, task, params) for case in (*(source if support else ()), *varied, *views)]
        self.depth = min(params.depth, *(len(shot.label) for shot in self.shots))

    def present(self) -> torch.Tensor:
        """Modalities that some shot has, `(M,)`."""
        return torch.stack([shot.view.present for shot in self.shots]).any(0)

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and sd of every token channel inside the heads, `(M, D)`; 0 and 1 for a modality that no shot has."""
        present = torch.stack([shot.view.present for shot in self.shots])
        means, squares = [], []
        for shot in self.shots:
            tokens = shot.view.tokens[tuple(shot.head.T)].float()
            means.append(tokens.mean(0))
            squares.append((tokens**2).mean(0))
        share = present.float() / present.sum(0).clamp_min(1)
        mean, square = (torch.einsum("nm,nmd->md", share, torch.stack(values)) for values in (means, squares))
        sd = (square - mean**2).clamp_min(1e-6).sqrt()
        return mean, torch.where(present.any(0)[:, None], sd, 1.0)

    def hide(self, unknown: torch.Tensor) -> None:
        """Leave the voxels `(S, H, W)` of the only case out of the loss."""
        shot = self.shots[0]
        rows, columns = (slice(part.start, part.stop) for part in shot.view.box[1:])
        hidden = unknown[:, rows, columns]
        label = shot.label.clone()
        label[:, :hidden.shape[1], :hidden.shape[2]][hidden] = UNKNOWN
        self.shots[0] = replace(shot, label=label)

    def batch(self) -> Batch:
        patches = [self._patch() for _ in range(self.params.batch)]
        parts = [torch.stack(values) for values in zip(*patches, strict=True)]
        batch = Batch(*parts)
        return replace(batch, raw=self._other_gain(batch.raw.float()), present=self._dropped(batch.present))

    def _patch(self) -> tuple[torch.Tensor, ...]:
        shot = self._some_shot()
        on_lesion = shot.lesions and torch.rand(()) < self.params.on_lesion
        places = shot.lesions[_integer(len(shot.lesions))] if on_lesion else shot.head
        place = places[_integer(len(places))].tolist()
        z, row, column = (self._start(at, length, size) for at, length, size in
                          zip(place, (self.depth, self.params.patch, self.params.patch), shot.classes.shape, strict=True))
        cells = (z, row, column)
        stride = self.params.grid_stride
        voxels = (z, *(slice(part.start * stride, part.stop * stride) for part in (row, column)))
        view = shot.view
        return view.tokens[cells], view.raw[voxels], shot.texts, view.present, *shot.statistics, shot.label[voxels], shot.classes[cells]

    def _some_shot(self) -> Shot:
        """A shot, or with probability 1 / (1 + shots) an augmented copy: the more patients there are, the less copies have to stand in."""
        if self.lent and torch.rand(()) >= self.params.target_share:
            return self.shots[_integer(self.lent)]
        own = self.shots[self.lent:]
        copies = len(own) - self.originals
        if copies and torch.rand(()) < 1 / (1 + self.originals):
            return own[self.originals + _integer(copies)]
        return own[_integer(self.originals)]

    @staticmethod
    def _start(at: int, length: int, size: int) -> slice:
        """A range of `length` that holds `at`, anywhere in it, inside `size`."""
        start = min(max(0, at - _integer(length)), max(0, size - length))
        return slice(start, start + length)

    def _dropped(self, present: torch.Tensor) -> torch.Tensor:
        """Modality dropout; a patch keeps at least one modality."""
        kept = present & (torch.rand(present.shape) >= self.params.modality_dropout)
        return torch.where(kept.any(1, keepdim=True), kept, present)

    def _other_gain(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw features as if the scanner had another gain, and none at all for some patches, so that tokens alone must do as well.

        A shift moves intensities only, not the gradients after them.
        """
        shape = (len(raw), 1, 1, 1, raw.shape[-2], 1)
        gain, shift = (self.params.intensity_jitter * torch.randn(shape) for _ in range(2))
        intensities = 1 + len(self.params.sigmas)
        mask = torch.zeros(raw.shape[-1])
        mask[:intensities] = 1
        kept = torch.rand(len(raw), 1, 1, 1, 1, 1) >= self.params.intensity_dropout
        return (raw * (1 + gain) + shift * mask * (raw[..., :1] != 0)) * kept


def vary_tokens(tokens: torch.Tensor, params: Params) -> torch.Tensor:
    """Standardised tokens `(B, Z, h, w, M, D)` with another gain and shift of each channel per patch, and noise."""
    shape = (len(tokens), 1, 1, 1, *tokens.shape[-2:])
    gain, shift = (params.token_jitter * torch.randn(shape) for _ in range(2))
    return tokens * (1 + gain) + shift + params.token_noise * torch.randn(tokens.shape)


def text_tensor(case: Case, task: Task, kind: str) -> torch.Tensor:
    """Class vectors of every modality, `(M, C, dim)`; zeros for one that the case has not (its site may have no prompt for it)."""
    known = {m: class_vectors(task, m, case.site, kind) for m in task.modalities if m in case.images}
    empty = torch.zeros(len(task.labels) + 2, task.backbone.dim)
    return torch.stack([torch.from_numpy(known[m]) if m in known else empty for m in task.modalities])


def shot_of(case: Case, task: Task, params: Params) -> Shot:
    """What patches of a labelled case are cut from."""
    view = view_of(case, task, params)
    label, classes = region_classes(case, view.box, len(task.labels), params.grid_stride)
    voxels = [torch.nonzero(label == value + 1) for value in range(len(task.labels))]
    cells = [(where // torch.tensor([1, params.grid_stride, params.grid_stride])).unique(dim=0) for where in voxels if len(where)]
    return Shot(view, text_tensor(case, task, params.text), label, classes, cells, torch.nonzero(classes <= len(task.labels)))


def _integer(below: int) -> int:
    return int(torch.randint(below, ()))
