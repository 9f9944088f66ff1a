"""HeMIS-style fusion (Havaei et al., MICCAI 2016): any subset of modalities, each through a branch of its own, meets as a mean and a variance.

The paper's: convolutional branches, the two moments over the modalities present, a network on the moments, and training with modalities left out.
Ours: that last network is the U-Net of the `unet` baseline instead of three convolutions, and augmentation, losses and schedule are its too,
so that the two differ in their fusion alone.
"""

from __future__ import annotations

from pipelines.systems.baselines.unet.system import System as UNet


class System(UNet):
    """`network` is a `network.Hemis`."""

    def _build(self, modalities: int, classes: int):
        from pipelines.systems.baselines.hemis.network import Hemis

        return Hemis(modalities, classes, self.params)
