"""The parts of the baselines: interpolation, sampling, leaving out, the cache of Tip-Adapter, learned contexts, fusion by moments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cohort import LABELS, MODALITIES, TinyBackbone, tiny_case, tiny_task
from torch.nn import functional

from pipelines.backbones.atlas.text import TextEncoder
from pipelines.errors import DataError
from pipelines.systems import create, params_model
from pipelines.systems.baselines import cellwise, samples
from pipelines.systems.baselines.hemis.network import Hemis
from pipelines.systems.baselines.hemis.params import Params as HemisParams
from pipelines.systems.baselines.tip_adapter.cache import Cache
from pipelines.systems.baselines.tokens import Cells, TokenReader, VoxelTokens, bilinear
from pipelines.systems.baselines.unet import training

CLASSES = 1 + len(LABELS)


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), stride=st.sampled_from([1, 2, 4, 8]))
def test_interpolation_is_torchs(height, width, stride):
    grid = np.random.default_rng(height * 10 + width).normal(size=(2, height, width, 3)).astype(np.float32)
    where = np.stack([axis.ravel() for axis in np.meshgrid(np.arange(2), np.arange(height * stride), np.arange(width * stride), indexing="ij")])
    expected = functional.interpolate(torch.from_numpy(grid).movedim(-1, 1), scale_factor=stride, mode="bilinear").movedim(1, -1)
    np.testing.assert_allclose(bilinear(where, grid.shape, stride) @ grid.reshape(-1, 3), expected.reshape(-1, 3), atol=1e-5)


def test_a_cells_centre_has_its_own_token():
    case, task = tiny_case(0), tiny_task()
    cells = Cells.of(case, task)
    at = TokenReader(case, "FLAIR", task).at(cells.centres())
    fine = np.moveaxis(case.token_levels("FLAIR")["fine"], 1, -1)[cells.mask]
    np.testing.assert_allclose(at[:, :fine.shape[1]], fine, atol=1e-6)


def test_cells_reach_every_voxel_of_the_head():
    case, task = tiny_case(0), tiny_task()
    cells = Cells.of(case, task)
    np.testing.assert_allclose(cells.to_voxels(case, np.ones((cells.mask.sum(), 1), np.float32)), 1, rtol=1e-6)


def test_a_missing_modality_has_no_tokens_and_says_so():
    case, task = tiny_case(0).only(["T1w"]), tiny_task()
    features = VoxelTokens(case, task)[np.arange(5)].reshape(5, len(MODALITIES), -1)
    assert (features[:, 0] == 0).all()
    assert (features[:, 1, -1] == 1).all()
    with pytest.raises(DataError, match="no cached tokens"):
        VoxelTokens(replace(case, tokens={}), task)


def _sampled(cases, targets: int, per_class: int = 200):
    return samples.balanced(cases, lambda case: VoxelTokens(case, tiny_task()), np.random.default_rng(0), targets=targets, classes=CLASSES,
                            per_class=per_class)


def test_classes_are_balanced_and_priors_are_those_of_the_head():
    case = tiny_case(0)
    drawn, priors = _sampled([case], 1)
    counts = np.bincount(case.label()[case.foreground()], minlength=CLASSES)
    np.testing.assert_allclose(priors, counts / counts.sum())
    np.testing.assert_array_equal(np.bincount(drawn.labels), np.minimum(counts, 200))
    assert (drawn.weights == 1).all()


def test_the_target_site_has_half_the_say_however_many_source_cases_there_are():
    drawn, priors = _sampled([tiny_case(number, "A" if number < 1 else "B") for number in range(5)], 1)
    for value in range(CLASSES):
        of_class = drawn.labels == value
        np.testing.assert_allclose(drawn.weights[of_class & drawn.target].sum(), drawn.weights[of_class].sum() / 2)
    np.testing.assert_allclose(priors.sum(), 1)


def test_what_is_judged_was_not_learned_from():
    for cases in ([tiny_case(0)], [tiny_case(number) for number in range(3)]):
        lessons, _ = _sampled(cases, len(cases))
        judged = samples.scattered(cases, lambda case: VoxelTokens(case, tiny_task()), np.random.default_rng(0), targets=len(cases), per_case=300)
        parts = list(samples.folds(lessons, judged))
        assert len(parts) > 1
        assert np.sum([left_out for _, left_out in parts], axis=0).tolist() == [1] * len(judged.labels)
        for learned, left_out in parts:
            places = [set(zip(part.case[chosen], part.slices[chosen], strict=True)) for part, chosen in ((lessons, learned), (judged, left_out))]
            assert not places[0] & places[1]


def test_samples_survive_a_file(tmp_path):
    drawn, _ = _sampled([tiny_case(0)], 1)
    samples.save_samples(tmp_path / "samples.safetensors", drawn)
    again = samples.load_samples(tmp_path / "samples.safetensors")
    for name in ("features", "labels", "weights", "case", "slices", "target"):
        np.testing.assert_array_equal(getattr(again, name), getattr(drawn, name))


def test_the_cache_of_tip_adapter_is_the_papers_formula():
    generator = np.random.default_rng(0)
    cache = Cache(1, CLASSES, 4, 6, tau=0.5, centred=False)
    keys, query, text = generator.normal(size=(6, 4)), generator.normal(size=(5, 4)), generator.normal(size=(5, CLASSES))
    labels = np.array([0, 1, 2, 0, 1, 2])
    cache.keys.data[0] = torch.from_numpy(keys).float()
    cache.values[0] = torch.from_numpy(np.eye(CLASSES)[labels] / 2).float()
    features = torch.from_numpy(np.concatenate([query, text, np.ones((5, 1))], axis=1)).float()[:, None]
    cosine = (query / np.linalg.norm(query, axis=1, keepdims=True)) @ (keys / np.linalg.norm(keys, axis=1, keepdims=True)).T
    expected = 3 * np.exp(-6 * (1 - cosine)) @ np.eye(CLASSES)[labels] / 2 + text / 0.5
    np.testing.assert_allclose(cache(features, 3.0, 6.0).detach(), expected, rtol=1e-4)


class ReadingBackbone(TinyBackbone):
    """The tiny backbone with a text tower that contexts can go through."""

    def __init__(self):
        torch.manual_seed(0)
        self.tower = TextEncoder(64, self.dim, 1, 2).eval()

    def encode_text_with_context(self, texts: list[str], context: torch.Tensor) -> torch.Tensor:
        return self.tower(texts, context)


def test_a_context_is_read_before_the_words_and_no_context_changes_nothing():
    tower, texts = ReadingBackbone().tower, ["oedema on FLAIR", "healthy"]
    with torch.no_grad():
        plain = tower(texts)
        assert torch.equal(tower(texts, torch.zeros(2, 0, 16)), plain)
        assert not torch.allclose(tower(texts, torch.ones(2, 3, 16)), plain, atol=1e-3)
        alone = tower([f"{texts[0]} {'word ' * 40}"], torch.ones(1, 20, 16))
    np.testing.assert_allclose(alone.norm(dim=1), 1, rtol=1e-5)


def test_coop_learns_through_a_frozen_text_tower():
    backbone, params = ReadingBackbone(), {"steps": 20, "voxels_per_class": 100, "judged_voxels": 200}
    before = {name: value.clone() for name, value in backbone.tower.state_dict().items()}
    task = replace(tiny_task(), backbone=backbone)
    system = create("coop", params_model("coop")(**params))
    system.fit(task, [tiny_case(0)], 0)
    assert all(torch.equal(value, before[name]) for name, value in backbone.tower.state_dict().items())
    assert all(value.grad is None for value in backbone.tower.parameters())
    assert np.isfinite(system.predict(task, tiny_case(2))).all()


def test_some_modality_is_always_left():
    torch.manual_seed(0)
    features = torch.ones(200, 3, 5)
    features[:100, 1:, -1] = 0
    dropped = cellwise.some_dropped(features, 0.9)
    assert (dropped[..., -1].sum(1) >= 1).all()
    assert (dropped[100:, :, -1].sum(1) < 3).any()


def test_what_a_missing_modality_holds_does_not_matter_to_hemis():
    torch.manual_seed(0)
    network = Hemis(2, CLASSES, HemisParams(channels=(8, 16), residual_units=0, branch=4)).eval()
    inputs = torch.randn(1, 8, 16, 16)
    inputs[:, 6], inputs[:, 7] = 1, 0  # three slices of two modalities, then the flags
    other = inputs.clone()
    other[:, 1:6:2] = 100.0
    with torch.no_grad():
        assert torch.equal(network(inputs), network(other))
        inputs[:, 7] = 1
        assert not torch.allclose(network(inputs), network(other))


def test_the_u_net_sees_a_mirrored_slice_as_the_mirror_of_what_it_sees():
    system = create("unet", params_model("unet")(channels=[8, 16], residual_units=0))
    system.shape = {"modalities": 1, "classes": 2}
    system.network = system._initial(0).eval()
    inputs = torch.randn(2, 4, 16, 24)
    with torch.inference_mode():
        torch.testing.assert_close(system._probabilities(inputs.flip(3)), system._probabilities(inputs).flip(3))


SMALL = {"steps": 10, "channels": [8, 16], "residual_units": 0, "patch": 32, "batch": 4, "average": 0.9, "source_steps": 40, "fine_tune_steps": 3}


def test_the_u_net_is_taught_by_a_source_once_and_fine_tuned_for_each_support(monkeypatch):
    calls, train = [], training.train
    monkeypatch.setattr(training, "train", lambda *arguments: calls.append(arguments[3]) or train(*arguments))
    source, query, task = [tiny_case(number, "B") for number in range(3, 6)], tiny_case(2), tiny_task(("A", "B"))
    maps = []
    for support in ((), (tiny_case(0),), ()):
        system = create("unet", params_model("unet")(**SMALL))
        system.fit(task, support, 0, source)
        maps.append(system.predict(task, query))
    assert calls == [SMALL["source_steps"], SMALL["fine_tune_steps"]]
    np.testing.assert_array_equal(maps[0], maps[2])
    assert not np.array_equal(maps[0], maps[1])


@pytest.mark.parametrize("name", ["random-forest", "linear-probe", "tip-adapter", "coop"])
def test_source_cases_teach_without_support(name):
    changes = {"voxels_per_class": 150, "judged_voxels": 200, "trees": 5, "steps": 60, "strengths": [0.01], "alphas": [300.0], "betas": [5.0]}
    model = params_model(name)
    task, query = tiny_task(("A", "B")), tiny_case(2)
    system = create(name, model(**{key: value for key, value in changes.items() if key in model.model_fields}))
    system.fit(task, (), 0, [tiny_case(3, "B"), tiny_case(4, "B")])
    predicted = system.predict(task, query).argmax(0)
    lesion = query.label() > 0
    assert (predicted[lesion] > 0).mean() > 2 * (predicted[~lesion & query.foreground()] > 0).mean()


def test_a_forest_on_tokens_says_that_it_needs_them():
    assert create("random-forest", params_model("random-forest")(tokens=True)).uses_tokens
    assert not create("random-forest", params_model("random-forest")()).uses_tokens
