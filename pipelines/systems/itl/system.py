"""ITL: incremental-transfer learning over sites that arrive one after another (You et al. 2022, arXiv 2206.01369), and its baselines.

The paper: sites one after another, one site-agnostic encoder, at most two decoder heads, a linear combination of embedding features, a site-level
incremental loss; no data of earlier sites. Its loss, blocks and recipe are not published; those here are ours (`network`, `losses`), and no figure of
the paper is claimed. The network is SEMI's, on the cached tokens of a frozen backbone, and so are its patches, its prediction and its refinement.

`method` of params chooses between ITL and baselines that differ from it in nothing else: `sequential` fine-tuning, `ewc`, `lwf` and `replay`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.outputs import write_json
from pipelines.systems.baselines.identity import case_key
from pipelines.systems.itl.params import Params
from pipelines.systems.protocol import Task
from pipelines.systems.reproducible import reproducible
from pipelines.systems.semi.parts import smallest_parts
from pipelines.systems.semi.system import SEEDS_APART, need_tokens
from pipelines.systems.semi.system import System as Semi

NETWORK, MEMORY, STATE = "weights.safetensors", "memory.safetensors", "itl.json"
#: Views of cases that were predicted last, which the next model will be asked for too; some 60 MB each.
VIEWS_KEPT = 16
_VIEWS: OrderedDict = OrderedDict()


class System(Semi):
    """`networks` holds the one network once a site was learned: a `Mixed` from ITL's second site on, else a `Semi`."""

    def __init__(self, params: Params):
        super().__init__(params)
        self.memory = None
        self.sites = 0  # learned so far

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        """Forget everything and learn one site after another: those of `source` by name, then `support`."""
        self.networks, self.memory, self.sites = [], None, 0
        for site in sorted({case.site for case in source}):
            self.learn_site(task, [case for case in source if case.site == site], seed)
        if support:
            self.learn_site(task, support, seed)

    def learn_site(self, task: Task, support: Sequence[Case], seed: int) -> None:
        """Go on with the next site's cases (`pipelines.systems.incremental`)."""
        from pipelines.systems.itl.learning import learn
        from pipelines.systems.itl.memory import Memory
        from pipelines.systems.semi.batches import PatchSampler

        for case in support:
            need_tokens(case)
        with reproducible(seed):
            sampler = PatchSampler(support, task, self.params)
        self.memory = self.memory or Memory()
        with reproducible(seed + SEEDS_APART):
            self.networks = [learn(self.networks[0] if self.networks else None, self.memory, sampler, support, task)]
        self.smallest = smallest_parts(support, len(task.labels))
        self.sites += 1

    def _of_all(self, task: Task, case: Case) -> np.ndarray:
        """As SEMI's of one network; what of it does not depend on weights is kept for the next model that is asked for the case."""
        return self._of_one(self.networks[0], *_view(task, case, self.params), case.foreground())

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in self.networks[0].state_dict().items()}, folder / NETWORK)
        if kept := self.memory.tensors():
            save_file(kept, folder / MEMORY)
        write_json(folder / STATE, {"sizes": self.networks[0].sizes.as_dict(), "mixed": hasattr(self.networks[0], "old"), "sites": self.sites,
                                    "smallest": self.smallest})

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        from pipelines.systems.itl.memory import Memory
        from pipelines.systems.itl.network import Mixed
        from pipelines.systems.semi.model import Semi as Network
        from pipelines.systems.semi.model import Sizes

        state = json.loads((folder / STATE).read_text())
        with reproducible(0):  # the initial weights are replaced; the caller's random state must not move
            network = (Mixed if state["mixed"] else Network)(Sizes(**state["sizes"]))
        network.load_state_dict(load_file(folder / NETWORK))
        self.networks, self.sites, self.smallest = [network.eval()], state["sites"], state["smallest"]
        self.memory = Memory.restored(load_file(folder / MEMORY) if (folder / MEMORY).is_file() else {})


def _view(task: Task, case: Case, params: Params) -> tuple:
    """The case as the network sees it, and its class vectors; the last ones are remembered."""
    from pipelines.systems.semi.batches import text_tensor
    from pipelines.systems.semi.features import view_of

    key = case_key(case), tuple(sorted((name, str(tokens) if isinstance(tokens, Path) else id(tokens)) for name, tokens in case.tokens.items())), \
        task.modalities, task.backbone.fingerprint, params.grid_stride, params.sigmas, params.asymmetry
    if key not in _VIEWS:
        _VIEWS[key] = case, view_of(case, task, params)  # the case too: while it is here no other array takes the place of one of its
        if len(_VIEWS) > VIEWS_KEPT:
            _VIEWS.popitem(last=False)
    _VIEWS.move_to_end(key)
    return _VIEWS[key][1], text_tensor(case, task, params.text)
