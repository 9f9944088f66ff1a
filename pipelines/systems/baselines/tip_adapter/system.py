"""Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022) for dense prediction: a cache of labelled support features beside the text classifier.

The paper's: `logits = alpha * exp(-beta * (1 - q K^T)) V + q W^T / tau`; alpha and beta searched for; in the variant F the keys are trained.
Ours: positions instead of images; a modality's keys are its own and logits are averaged over the modalities present; V averages over a class's
keys, so that alpha does not depend on how many there are; the search leaves out support cases where the paper has a validation set, and sets the
prior's exponent too; keys may be multi-scale tokens, of which the backbone's text space shows only a projection.
"""

from __future__ import annotations

from itertools import product

from pipelines.systems.baselines.cellwise import CellClassifier
from pipelines.systems.baselines.samples import Samples
from pipelines.systems.baselines.tip_adapter.params import Params
from pipelines.systems.protocol import Task


class System(CellClassifier):
    """`network` is a `cache.Cache`."""

    def __init__(self, params: Params):
        super().__init__(params)
        self.key = params.space

    def _settings(self) -> list[dict[str, float]]:
        return [{"alpha": alpha, "beta": beta} for alpha, beta in product(self.params.alphas, self.params.betas)]

    def _learned(self, task: Task, samples: Samples):
        from pipelines.systems.baselines.tip_adapter.cache import fill, fine_tune

        features, labels, weights = self._tensors(samples)
        cache = fill(features, labels, self.shape, self.params)
        if self.params.fine_tune:
            fine_tune(cache, features, labels, weights, self.params)
        return cache.eval()

    def _logits(self, network, features, setting: dict[str, float]):
        return network(features, **setting)

    def _empty(self, shape: dict[str, int], weights: dict):
        from pipelines.systems.baselines.tip_adapter.cache import Cache

        return Cache(**shape, keys=weights["keys"].shape[1], tau=self.params.tau, centred=self.key == "tokens").eval()
