"""Label volumes to cut training slices from, made once and kept in a cache folder: growing a head takes seconds, cutting a slice does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.backbones.atlas.face import with_face
from pipelines.backbones.atlas.phrases import PLACES
from pipelines.outputs import sha256, staged_file

SPACING_MM = 1.5


def label_volumes(count: int, seed: int, cache: Path, say=print) -> np.ndarray:
    """`(2 * count, X, Y, Z)` uint8: `count` heads, each healthy and with a glioma (`pipelines.phantoms.anatomy.Tissue`, 1.5 mm)."""
    from pipelines.phantoms import anatomy

    version = sha256(Path(anatomy.__file__))[:8]  # heads of another anatomy must not be taken for these
    volumes = []
    for index in range(count):  # faces are painted anew each time: that takes less than growing a head
        path = Path(cache) / f"head-{version}-{seed}-{index:04d}.npz"
        if not path.is_file():
            rng = np.random.default_rng([seed, index])
            healthy = anatomy.head(rng, SPACING_MM)
            with staged_file(path) as temporary:
                np.savez_compressed(temporary, healthy=healthy.labels, lesion=anatomy.lesion(healthy, rng))
            if (index + 1) % 10 == 0:
                say(f"heads: {index + 1} of {count}")
        with np.load(path) as stored:
            volumes += [with_face(stored[kind], np.random.default_rng([seed, index, 1]), SPACING_MM) for kind in ("healthy", "lesion")]
    return np.stack(volumes)


def place_map(shape: tuple[int, int, int]) -> np.ndarray:
    """Which part of the brain every voxel of a label volume would belong to, `(X, Y, Z)` uint8, counted from 1 in the order of `PLACES`.

    Heads are bent by a few millimetres only, so one map serves them all; lobes are rough (nearest centre), and ours.
    """
    from scipy.spatial import KDTree

    from pipelines.phantoms.anatomy import BOX_MM

    centres = [(index + 1, centre) for index, place in enumerate(PLACES.values()) for centre in place]
    axes = [np.arange(n) * SPACING_MM + low for n, low in zip(shape, BOX_MM[:, 0], strict=True)]
    where = np.stack(np.meshgrid(np.abs(axes[0]), axes[1], axes[2], indexing="ij"), axis=-1)
    _, nearest = KDTree([centre for _, centre in centres]).query(where.reshape(-1, 3))
    return np.array([index for index, _ in centres], np.uint8)[nearest].reshape(shape)
