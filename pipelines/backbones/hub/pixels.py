"""Standardised grey levels to the pixels that a model trained on photographs or radiology figures expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from pipelines.errors import DataError

#: Standardised intensities (median 0, robust sd 1 in the head) shown from black to white. Fixed, so that a grey means the same in every volume;
#: wider above, where contrast agents and oedema lie. What lies further out is clipped.
WINDOW = (-2.5, 4.0)
#: 8-bit white: what `rescale_factor` of a preprocessor file multiplies.
WHITE = 255.0
#: The `resample` codes of a preprocessor file (those of Pillow) that torch has.
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
#: What transformers takes where a preprocessor file is silent.
DEFAULT_RESAMPLE, DEFAULT_RESCALE = 3, 1 / 255


@dataclass(frozen=True)
class Preprocessing:
    """How a checkpoint wants its pixels. `white` is the value of white before mean and sd are applied."""

    mean: tuple[float, float, float]
    sd: tuple[float, float, float]
    white: float
    mode: str

    @classmethod
    def read(cls, content: Mapping, source: object) -> Preprocessing:
        """From the content of a preprocessor_config.json. Its size and crop are not used: slices keep their own size and shape.

        Raises DataError naming `source` where mean, sd or resampling are unusable.
        """
        normalise = content.get("do_normalize", True)
        mean, sd = (content.get("image_mean"), content.get("image_std")) if normalise else ((0.0,) * 3, (1.0,) * 3)
        code = content.get("resample", DEFAULT_RESAMPLE)
        if code not in RESAMPLING:
            raise DataError(f"{source} asks for resampling {code!r}; this version knows 0, 2 and 3 (nearest, bilinear, bicubic)")
        for name, values in (("image_mean", mean), ("image_std", sd)):
            usable = isinstance(values, (list, tuple)) and len(values) == 3 and all(isinstance(value, (int, float)) for value in values)
            if not usable or (name == "image_std" and min(values) <= 0):
                raise DataError(f"{source} has no usable {name} (three numbers, one per channel); restore the file from where the model came")
        scale = content.get("rescale_factor", DEFAULT_RESCALE) if content.get("do_rescale", True) else 1.0
        return cls(tuple(mean), tuple(sd), WHITE * scale, RESAMPLING[code])


def brightness(volume: np.ndarray) -> np.ndarray:
    """Standardised `(S, H, W)` to 0 (black) ... 1 (white), float32.

    Stage 2 writes 0 outside the head, which is also the median inside. So pixels of exactly 0 that hang together with the edge of their slice
    are air and become black; a 0 inside stays grey.
    """
    from scipy import ndimage

    low, high = WINDOW
    shown = np.clip((np.asarray(volume, np.float32) - low) / (high - low), 0, 1)
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    parts, count = ndimage.label(volume == 0, in_plane)
    edges = np.concatenate([parts[:, [0, -1]].ravel(), parts[:, :, [0, -1]].ravel()])
    air = np.zeros(count + 1, bool)
    air[edges] = True
    air[0] = False  # label 0 is everything that is not exactly 0
    shown[air[parts]] = 0
    return shown


def pixels(shown: torch.Tensor, stride: int, patch: int, preprocessing: Preprocessing) -> torch.Tensor:
    """Brightness `(N, H, W)` to `(N, 3, patch * h, patch * w)` with h = ceil(H / stride): one patch for every `stride` x `stride` pixels.

    Filled up with black to whole strides, resampled, spread to three equal channels, normalised.
    """
    height, width = shown.shape[-2:]
    image = functional.pad(shown[:, None], (0, -width % stride, 0, -height % stride))
    if patch != stride:
        size = [length // stride * patch for length in image.shape[-2:]]
        smooth = {} if preprocessing.mode == "nearest" else {"align_corners": False, "antialias": patch < stride}
        image = functional.interpolate(image, size, mode=preprocessing.mode, **smooth).clamp(0, 1)  # bicubic overshoots
    mean, sd = (torch.tensor(values, dtype=image.dtype, device=image.device)[:, None, None] for values in (preprocessing.mean, preprocessing.sd))
    return (image * preprocessing.white - mean) / sd
