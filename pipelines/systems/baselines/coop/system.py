"""CoOp (Zhou et al., IJCV 2022) for dense prediction: the words before a class's name are learned, both towers stay frozen.

The paper's: context vectors in the text tower's input, random at first, one set for all classes or one for each, and the similarity to an image as
logit. Ours: positions instead of images, contexts per modality, DiceCE on balanced positions, a scale for each modality and an offset for each
class (without which no threshold could be learned), and the prior's exponent chosen by leaving out support cases. The context goes through the
text tower where the backbone has `encode_text_with_context` (Atlas); elsewhere the class vectors themselves are learned from the prompts' start.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.cohort import Case
from pipelines.systems.baselines.cellwise import BACKGROUND, CellClassifier, some_dropped
from pipelines.systems.baselines.samples import Samples
from pipelines.systems.protocol import Task
from pipelines.systems.reproducible import WARM_UP


class System(CellClassifier):
    """`network` is a `prompts.Classifier`."""

    sites: Sequence[str] = ()  # whose phrasings are learned from

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        self.sites = sorted({case.site for case in support or source})
        super().fit(task, support, seed, source)

    def _learned(self, task: Task, samples: Samples):
        import torch

        from pipelines.systems.baselines.coop.prompts import Classifier
        from pipelines.systems.prompt_learning import learned_vectors
        from pipelines.systems.semi.losses import dice_ce

        params = self.params
        features, labels, weights = self._tensors(samples)
        network = Classifier(**self.shape, tau=params.tau)
        prompts = learned_vectors(task, (BACKGROUND, *task.labels), self.sites, words=params.context, class_specific=params.class_specific)
        learned = [*prompts.parameters(), *network.parameters()]
        optimiser = torch.optim.AdamW(learned, params.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, params.learning_rate, total_steps=params.steps, pct_start=WARM_UP)
        for _ in range(params.steps):
            chosen = torch.multinomial(weights, params.batch, replacement=True)
            loss = dice_ce(network(some_dropped(features[chosen], params.modality_dropout), prompts()), labels[chosen])
            optimiser.zero_grad(set_to_none=True)
            loss.backward(inputs=learned)  # the towers gather no gradients
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            network.vectors.copy_(prompts())
        return network.eval()

    def _logits(self, network, features, setting: dict[str, float]):
        return network(features)

    def _empty(self, shape: dict[str, int], weights: dict):
        from pipelines.systems.baselines.coop.prompts import Classifier

        return Classifier(**shape, tau=self.params.tau).eval()
