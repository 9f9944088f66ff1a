"""SEMI 1b: adapters for the projector of a modality never seen, generated from a handful of (region, text) pairs of it.

The idea and the two training stages are Ince et al. 2025 (arXiv 2509.04606), who caption; segmentation is ours, and so is all that `adapters`
and `meta` say of themselves. Fusion, decoder, prediction and files are SEMI 1a's. While the decoder is trained every projector is frozen, so
that the arms differ in the new modality's projector and in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.systems.protocol import Task
from pipelines.systems.reproducible import reproducible
from pipelines.systems.semi.parts import smallest_parts
from pipelines.systems.semi.system import SEEDS_APART, need_tokens
from pipelines.systems.semi.system import System as Semi


class System(Semi):
    """`networks` are `semi.model.Semi`s once fitted or loaded: one projector a modality, those of the known ones alike."""

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        """Meta-train on the known modalities of `source` and `support`, learn the new modality's projector from pairs of `support`, then train
        the decoder on both, the source without the new modality.

        Raises DataError where no case shows a known modality, or params name a new one that the cohort has not.
        """
        self.align(task, support, seed, source)
        (aligned,) = self.networks
        new = self._new(task, support, source)
        with reproducible(seed):  # anew: the decoder's batches are the same for every arm, however much randomness its projector took
            sampler = self._patches(task, support, source, new)
        self.networks = []
        for member in range(self.params.members):
            with reproducible(seed + SEEDS_APART * (1 + member)):
                self.networks.append(self._decoding(aligned, sampler, task))
        self.smallest = smallest_parts(support or source, len(task.labels))

    def align(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        """The first part of `fit`: projectors alone, which put regions beside words; nothing is segmented yet."""
        for case in (*support, *source):
            need_tokens(case)
        with reproducible(seed):
            self.networks = [self._with_projectors(task, support, source, self._new(task, support, source), seed).eval()]

    def _new(self, task: Task, support: Sequence[Case], source: Sequence[Case]) -> list[str]:
        """The modalities that the meta-training must not see."""
        if self.params.new_modality is None:
            having = [{modality for case in cases for modality in case.images} for cases in (support, source)]
            return [modality for modality in task.modalities if source and modality in having[0] - having[1]]
        if self.params.new_modality not in task.modalities:
            raise DataError(f"new_modality {self.params.new_modality!r} of system semi-hyper is no modality of this cohort; it has "
                            f"{', '.join(task.modalities)}")
        return [self.params.new_modality]

    def _with_projectors(self, task: Task, support: Sequence[Case], source: Sequence[Case], new: Sequence[str], seed: int):
        """The network with every projector in place; fusion and decoder as they start."""
        from pipelines.systems.semi.learning import new_network
        from pipelines.systems.semi_hyper.arms import needs_hypernetwork, new_projector
        from pipelines.systems.semi_hyper.meta import meta_train, some_of
        from pipelines.systems.semi_hyper.pairs import pools_of

        known = [modality for modality in task.modalities if modality not in new]
        cases = [*some_of(source, self.params.source_cases), *support]
        few = pools_of(support, new, task, self.params, self.params.pairs)
        meta = meta_train(task, cases, known, self.params, seed, hypernetwork=bool(few) and needs_hypernetwork(self.params))
        if meta is None:
            raise DataError(f"no case given to system semi-hyper shows a modality other than {', '.join(new)}; give it source cases, or support with "
                            "other modalities, to meta-train on")
        network = new_network(task, self.params)
        learned = {modality: new_projector(meta, pool, self.params, partial(self._backbone_pairs, task, support, modality, pool))
                   for modality, pool in few.items()}
        for m, modality in enumerate(task.modalities):
            network.projectors[m].load_state_dict(learned.get(modality, meta.projector).state_dict())
            if found := (few | meta.pools).get(modality):
                network.token_mean[m], network.token_sd[m] = found.mean, found.sd
        return network

    def _backbone_pairs(self, task: Task, cases: Sequence[Case], modality: str, pool):
        from pipelines.systems.semi_hyper.meta import alignment_starts

        return alignment_starts(cases, {modality: pool}, task, self.params)[modality]

    def _patches(self, task: Task, support: Sequence[Case], source: Sequence[Case], new: Sequence[str]):
        from pipelines.systems.semi_hyper.meta import some_of
        from pipelines.systems.semi_hyper.patches import Patches

        known = [modality for modality in task.modalities if modality not in new]
        lent = [case.only(known) for case in some_of(source, self.params.source_cases) if set(known) & set(case.images) & set(case.tokens)]
        return Patches(support, task, self.params, lent, new)

    def _decoding(self, aligned, sampler, task: Task):
        """A network with the projectors of `aligned`, and fusion and decoder trained on the sampler's patches."""
        import torch

        from pipelines.systems.semi.learning import loss_of, new_network, optimise

        params, network = self.params, new_network(task, self.params)
        network.projectors.load_state_dict(aligned.projectors.state_dict())
        network.projectors.requires_grad_(False)
        network.token_mean[:], network.token_sd[:], network.trained[:] = aligned.token_mean, aligned.token_sd, sampler.present()
        if params.text_only:
            for skip in (network.from_tokens, network.from_raw):
                for parameter in skip.requires_grad_(False).parameters():
                    parameter.data.zero_()
        mean = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(params.average))
        optimise(network.parameters(), lambda: loss_of(network, sampler.batch(), {}, params), steps=params.steps, rate=params.learning_rate,
                 decay=params.weight_decay, after=lambda: mean.update_parameters(network))
        return mean.module.eval()
