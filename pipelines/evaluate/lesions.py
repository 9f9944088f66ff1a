"""How many lesions were found, whatever their size: Dice of a patient with one large and five small ones hardly sees the small ones.

A lesion is a connected component (26 neighbours, no smallest size). Convention: a component of one mask is matched when its intersection
over union with all components of the other mask that touch it, taken together, exceeds `MATCH_IOU`. So a lesion predicted in two pieces
counts as found, and a prediction that covers everything finds nothing. Sensitivity is over true lesions, precision over predicted ones, and
lesion-wise F1 is their harmonic mean. Challenges differ in this rule, so compare values only with others by the same one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Intersection over union from which a lesion counts as found; 0.1 is usual for small lesions (MSSEG-2, Commowick et al. 2021).
MATCH_IOU = 0.1


@dataclass(frozen=True)
class Lesions:
    """True and predicted lesions and how many of either are matched."""

    true: int
    predicted: int
    found: int
    right: int

    @property
    def f1(self) -> float:
        """Lesion-wise F1; 0 where nothing is predicted, NaN without a true lesion."""
        if not self.true:
            return math.nan
        sensitivity, precision = self.found / self.true, self.right / self.predicted if self.predicted else 0.0
        return 2 * sensitivity * precision / (sensitivity + precision) if sensitivity + precision else 0.0


def count_lesions(truth: np.ndarray, predicted: np.ndarray) -> Lesions:
    """Compare the components of two boolean volumes `(S, H, W)`."""
    from scipy.ndimage import label

    (truth_of, n_true), (predicted_of, n_predicted) = (label(mask, np.ones((3, 3, 3), bool)) for mask in (truth, predicted))
    either = truth | predicted
    shared = np.zeros((1 + n_true, 1 + n_predicted), np.int64)  # voxels of each pair; row and column 0 are background
    np.add.at(shared, (truth_of[either], predicted_of[either]), 1)
    return Lesions(n_true, n_predicted, _matched(shared), _matched(shared.T))


def _matched(shared: np.ndarray) -> int:
    """How many row components match the column components that touch them."""
    overlap = shared[1:, 1:]
    own, others = shared[1:].sum(1), shared[:, 1:].sum(0)
    together = overlap.sum(1)
    union = own + (overlap > 0) @ others - together
    return int((together > MATCH_IOU * union).sum())
