"""Probabilities refined by the case's own intensities (transductive): what a class looks like in this very image decides near its border.

A few-shot model knows a lesion from other patients' images; how bright it is in this one it can only guess. But where the model is sure,
it points at examples of this image. So a Gaussian per class is fitted to the intensities of the sure voxels, the voxels round the lesion
are classified by it (quadratic discriminant analysis), both opinions are averaged as log-probabilities, the image's weighing the more the better
it tells the examples apart, and again with the new sure voxels.
The idea is GrabCut's (Rother, Kolmogorov and Blake 2004) without its graph cut and with a network's probabilities in place of a box drawn
by hand; the averaging, its weight, and leaving out what the model has no example of, are ours. No other case is looked at, and no label used.
"""

from __future__ import annotations

import numpy as np

from pipelines.cohort import Case
from pipelines.systems.filters import gaussian

#: A voxel is an example of its class from this probability on.
SURE = 0.8
#: Voxels count as near a lesion up to this distance, in plane, of where the smoothed probability of any label reaches `SUSPECT`.
NEAR_MM = 12.0
SUSPECT = 0.25
#: Classes with fewer examples keep what the model said of them.
FEWEST = 50
#: Share of the image's opinion where it tells all examples apart, and how far its covariances are shrunk towards a sphere.
OWN = 0.6
SHRINKAGE = 0.05
#: Scales of the intensities looked at, pixels.
SIGMAS = (0.0, 1.0, 2.0)
SMALLEST = 1e-3


def refined(probabilities: np.ndarray, case: Case, rounds: int) -> np.ndarray:
    """`(1 + K, S, H, W)` after `rounds` of refinement; inside the head only, and only near what looks like a label."""
    from scipy.special import softmax

    foreground = case.foreground()
    if not rounds or not foreground.any():
        return probabilities
    logs = np.log(np.clip(probabilities[:, foreground].T.astype(np.float64), SMALLEST, 1))
    features, now = _intensities(case, foreground), softmax(logs, axis=1)
    for _ in range(rounds):
        near = _near(now, foreground, case)
        own, share = _own_opinion(features[near], now[near])
        if not share:
            break
        now[near] = softmax((1 - share) * logs[near] + share * np.log(np.clip(own, SMALLEST, 1)), axis=1)
    result = probabilities.copy()
    result[:, foreground] = now.T
    return result


def _intensities(case: Case, foreground: np.ndarray) -> np.ndarray:
    """Every modality at every scale, of the voxels inside the head `(N, F)`."""
    images = [case.image(modality) for modality in sorted(case.images)]
    return np.stack([(gaussian(image, sigma) if sigma else image)[foreground] for image in images for sigma in SIGMAS], axis=1)


def _near(probabilities: np.ndarray, foreground: np.ndarray, case: Case) -> np.ndarray:
    """Which of the voxels inside the head `(N,)` lie near a label."""
    from scipy.ndimage import binary_dilation

    lesion = np.zeros(foreground.shape, np.float32)
    lesion[foreground] = 1 - probabilities[:, 0]
    steps = max(1, round(NEAR_MM / max(case.spacing_mm[1:])))
    suspect = gaussian(lesion, 1.0) > SUSPECT
    return binary_dilation(suspect, np.ones((1, 3, 3)), iterations=steps)[foreground]


def _own_opinion(features: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, float]:
    """Class probabilities `(N, 1 + K)` by the intensities of the sure voxels, and the share they deserve: 0 where fewer than two classes have
    examples, or where intensities tell them apart no better than chance."""
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

    top = probabilities.argmax(1)
    sure = probabilities.max(1) > SURE
    known = np.flatnonzero(np.bincount(top[sure], minlength=probabilities.shape[1]) >= FEWEST)
    if len(known) < 2:
        return probabilities, 0.0
    scaled = (features - features.mean(0)) / (features.std(0) + SMALLEST)
    examples = sure & np.isin(top, known)
    priors = np.sqrt(np.bincount(top[examples])[known])  # half way to equal ones, because how large the lesion is, is the question
    model = QuadraticDiscriminantAnalysis(priors=priors / priors.sum(), reg_param=SHRINKAGE).fit(scaled[examples], top[examples])
    likely = model.predict_proba(scaled)
    right = known[likely[examples].argmax(1)] == top[examples]
    recall = np.mean([right[top[examples] == value].mean() for value in known])
    chance = 1 / len(known)
    own = probabilities.copy()
    own[:, known] = likely * probabilities[:, known].sum(1, keepdims=True)
    return own, OWN * max(0.0, (recall - chance) / (1 - chance))
