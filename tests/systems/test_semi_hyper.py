"""SEMI 1b against its definition: every Linear is adapted, rotations are rotations, chunks are averaged, and what is new stays unseen."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cohort import dice, tiny_case, tiny_task
from torch import nn

from pipelines.errors import DataError
from pipelines.systems.semi.model import Projector
from pipelines.systems.semi.texts import class_vectors
from pipelines.systems.semi_hyper import meta
from pipelines.systems.semi_hyper.adapters import HyperNetwork, LowRank, adapted, average, clipped_rank, linears, merge, project, random_rotation
from pipelines.systems.semi_hyper.alignment import region_accuracy, retrieval
from pipelines.systems.semi_hyper.pairs import pools_of
from pipelines.systems.semi_hyper.params import Params
from pipelines.systems.semi_hyper.patches import Patches
from pipelines.systems.semi_hyper.system import System

QUICK = {"steps": 12, "batch": 4, "views": 0, "projector_steps": 20, "hyper_steps": 8, "hyper_width": 24, "finetune_steps": 10, "meta_batch": 16,
         "regions": 40, "episodes": 2, "chunk": 24, "source_cases": 2}
SUPPORT = (tiny_case(0), tiny_case(1))
QUERY = tiny_case(2)


def projector(seed: int = 0) -> Projector:
    torch.manual_seed(seed)
    return Projector(width=9, hidden=6, dim=8)


def hypernetwork(of: nn.Module, **changes) -> HyperNetwork:
    """One whose generators are no longer at their start, where B is zero."""
    network = HyperNetwork(of, 9, 8, **({"width": 12, "rank": 4, "alpha": 4.0} | changes))
    for generator in network.generators:
        nn.init.normal_(generator.weight, std=0.3)
        nn.init.normal_(generator.bias, std=0.3)
    return network.requires_grad_(False)


def pairs(count: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(count, 9), torch.randn(count, 8), torch.randn(8)


@pytest.mark.parametrize("of", [projector(), nn.Sequential(nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 8))])
def test_every_linear_gets_its_adapter(of):
    """The public code's loop pairs layers of all kinds with adapters and ends before the later Linear ones."""
    adapters = hypernetwork(of)(*pairs())
    before = copy.deepcopy(of)
    tokens = torch.randn(5, 9)
    expected = project(of, adapters, tokens)
    merge(of, adapters)
    torch.testing.assert_close(of(tokens), expected)
    changed = linears(of)
    assert len(changed) == len(adapters) >= 2
    for name, layer in changed.items():
        own, old = adapters[name], linears(before)[name]
        torch.testing.assert_close(layer.weight, old.weight + (own.a @ own.b).T * own.scale)
        torch.testing.assert_close(layer.bias, old.bias + own.bias)
        assert not torch.equal(layer.weight, old.weight)
        assert not torch.equal(layer.bias, old.bias)
        alone = copy.deepcopy(before)  # and each of them is heard in the output
        linears(alone)[name].load_state_dict(layer.state_dict())
        assert not torch.allclose(alone(tokens), before(tokens), atol=1e-4)


def test_an_adapter_too_few_is_refused():
    of = projector()
    adapters = hypernetwork(of)(*pairs())
    adapters.pop("last")
    with pytest.raises(ValueError, match="last"):
        adapted(of, adapters)


def test_ranks_are_clipped_to_the_layer():
    assert clipped_rank(nn.Linear(9, 6), 32) == 6
    adapters = hypernetwork(projector(), rank=32, alpha=32.0)(*pairs())
    assert {name: tuple(own.a.shape) for name, own in adapters.items()} == {"body.0": (9, 6), "last": (6, 6)}
    assert all(own.scale == 1 for own in adapters.values())


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from(["haar", "graded"]))
def test_rotations_keep_lengths_and_angles(width, seed, kind):
    torch.manual_seed(seed)
    rotation = random_rotation(width, kind)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(width), atol=2e-5, rtol=0)
    vectors = torch.randn(4, width)
    torch.testing.assert_close((vectors @ rotation) @ (vectors @ rotation).T, vectors @ vectors.T, atol=1e-3, rtol=1e-3)
    assert not torch.equal(rotation, random_rotation(width, kind))


def test_training_begins_at_the_shared_projector_with_gradients():
    of, tokens = projector(), torch.randn(5, 9)
    network = HyperNetwork(of, 9, 8, width=12, rank=4, alpha=4.0)
    for adapters in (network(*pairs()), LowRank(of, 4, 4.0).adapters()):
        torch.testing.assert_close(project(of, adapters, tokens), of(tokens))
    project(of, network(*pairs()), tokens).sum().backward()
    assert all(float(generator.weight.grad.abs().sum()) > 0 for generator in network.generators)


def test_adapters_depend_on_pairs_and_instruction_not_on_the_pairs_order():
    network = hypernetwork(projector())
    regions, texts, instruction = pairs()
    first = network(regions, texts, instruction)["last"].b
    order = torch.randperm(len(regions))
    torch.testing.assert_close(network(regions[order], texts[order], instruction)["last"].b, first)
    for changed in (network(regions + 1, texts, instruction), network(regions, texts + 1, instruction), network(regions, texts, instruction + 1)):
        assert not torch.allclose(changed["last"].b, first)


def test_which_text_belongs_to_which_region_is_heard_only_where_a_pair_is_one_token():
    regions, texts, instruction = pairs()
    other = texts.roll(1, 0)
    joined, apart = (hypernetwork(projector(), tokens=kind) for kind in ("joined", "interleaved"))
    assert not torch.allclose(joined(regions, texts, instruction)["last"].b, joined(regions, other, instruction)["last"].b)
    torch.testing.assert_close(apart(regions, texts, instruction)["last"].b, apart(regions, other, instruction)["last"].b)


def test_the_average_is_the_mean_of_each_part():
    network = hypernetwork(projector())
    one, other = network(*pairs()), network(*pairs())
    mean = average([one, other])
    for name in one:
        for part in ("a", "b", "bias"):
            torch.testing.assert_close(getattr(mean[name], part), (getattr(one[name], part) + getattr(other[name], part)) / 2)
    assert mean["last"].scale == one["last"].scale


def test_chunks_hold_every_pair_once_and_every_class():
    torch.manual_seed(0)
    pool = pools_of(SUPPORT, ["FLAIR"], tiny_task(), Params(), 16)["FLAIR"]
    parts = meta.chunks(pool, 32)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(pool.classes)))
    assert len(parts) == round(len(pool.classes) / 32) > 1
    assert all(len(pool.classes[part].unique()) == 4 for part in parts)


def test_pairs_are_regions_with_their_own_classs_text():
    torch.manual_seed(0)
    task = tiny_task()
    pool = pools_of(SUPPORT, ["T1w", "PET"], task, Params(), 5)["T1w"]
    assert torch.bincount(pool.classes).tolist() == [10, 10, 10, 10]
    vectors = torch.from_numpy(class_vectors(task, "T1w", "A", "prompts"))
    torch.testing.assert_close(pool.paired, vectors[pool.classes])
    assert retrieval(pool.paired, pool.classes, vectors) == 1
    assert retrieval(vectors[(pool.classes + 1) % 4], pool.classes, vectors) == 0


@pytest.fixture(scope="module", params=["generated", "generated-finetuned", "lora", "scratch", "shared", "aligned"])
def fitted(request):
    torch.set_num_threads(1)
    system = System(Params(arm=request.param, new_modality="T1w", **QUICK))
    system.fit(tiny_task(), SUPPORT, seed=3)
    return system


def test_each_arm_predicts_from_the_new_modality_alone(fitted):
    probabilities = fitted.predict(tiny_task(), QUERY.only(["T1w"]))
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert np.isfinite(probabilities).all()
    (share,) = region_accuracy(fitted.networks, QUERY, "T1w", tiny_task(), fitted.params)
    assert 0 <= share <= 1


def test_arms_differ_in_the_new_modalitys_projector_alone(fitted):
    shared = System(Params(arm="shared", new_modality="T1w", **QUICK))
    shared.fit(tiny_task(), SUPPORT, seed=3)
    own, other = (system.networks[0].projectors.state_dict() for system in (fitted, shared))
    flair, t1 = ([name for name in own if name.startswith(f"{m}.")] for m in (0, 1))
    assert all(torch.equal(own[name], other[name]) for name in flair)
    weights = [name for name in t1 if "body.0" in name or "last" in name]
    assert len(weights) == 4  # two Linear layers, each with its bias
    assert all(torch.equal(own[name], other[name]) == (fitted.params.arm == "shared") for name in weights)
    assert torch.equal(fitted.networks[0].token_mean, shared.networks[0].token_mean)


def test_a_saved_fit_predicts_the_same_bits_and_a_second_one_has_the_same_weights(fitted, tmp_path):
    fitted.save(tmp_path)
    loaded = System(fitted.params)
    loaded.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(tiny_task(), QUERY), fitted.predict(tiny_task(), QUERY))
    meta._DONE.clear()
    torch.rand(5)
    again = System(fitted.params)
    again.fit(tiny_task(), SUPPORT, seed=3)
    assert all(torch.equal(value, again.networks[0].state_dict()[name]) for name, value in fitted.networks[0].state_dict().items())


def test_the_meta_training_never_sees_the_new_modality():
    """Other pixels of the new modality change its own projector at most."""
    noise = np.random.default_rng(1)
    changed = [replace(case, tokens={**case.tokens, "T1w": {name: noise.normal(size=level.shape).astype(np.float16)
                                                            for name, level in case.tokens["T1w"].items()}}) for case in SUPPORT]
    first, second = (System(Params(arm="lora", new_modality="T1w", **QUICK)) for _ in range(2))
    for system, cases in ((first, SUPPORT), (second, changed)):
        system.fit(tiny_task(), cases, seed=0)
    of_flair, of_t1 = ([system.networks[0].projectors[m].state_dict() for system in (first, second)] for m in (0, 1))
    assert all(torch.equal(value, of_flair[1][name]) for name, value in of_flair[0].items())
    assert not torch.equal(of_t1[0]["last.weight"], of_t1[1]["last.weight"])


def test_arms_share_one_meta_training_of_the_same_cases():
    task = tiny_task()
    meta._DONE.clear()
    for arm in ("shared", "generated"):
        System(Params(arm=arm, new_modality="T1w", **QUICK)).fit(task, SUPPORT, seed=0)
    (kept,) = meta._DONE.values()
    assert kept.hypernetwork is not None
    projected = kept.projector.last.weight.clone()
    System(Params(arm="generated-finetuned", new_modality="T1w", **QUICK)).fit(task, SUPPORT, seed=0)
    assert torch.equal(kept.projector.last.weight, projected)
    assert len(meta._DONE) == 1
    other = [replace(case, dseg=np.roll(case.label(), 3, axis=1)) for case in SUPPORT]  # the same names, other truth
    System(Params(arm="shared", new_modality="T1w", **QUICK)).fit(task, other, seed=0)
    assert len(meta._DONE) == 2


def test_what_only_the_support_has_is_new_under_transfer():
    source = [tiny_case(5, site="B", modalities=("FLAIR",))]
    task = tiny_task(("A", "B"))
    system = System(Params(arm="lora", **QUICK))
    assert system._new(task, SUPPORT, source) == ["T1w"]
    assert system._new(task, SUPPORT, ()) == []
    system.fit(task, SUPPORT, 0, source)
    assert not torch.equal(system.networks[0].projectors[0].last.weight, system.networks[0].projectors[1].last.weight)


def test_source_alone_trains_too():
    source = [tiny_case(5, site="B"), tiny_case(6, site="B", modalities=("FLAIR",))]
    system = System(Params(new_modality="T1w", **QUICK))
    system.fit(tiny_task(("A", "B")), [], 0, source)
    assert np.isfinite(system.predict(tiny_task(("A", "B")), QUERY)).all()
    assert torch.equal(system.networks[0].projectors[0].last.weight, system.networks[0].projectors[1].last.weight)


def test_with_nothing_new_one_projector_serves_every_modality_and_it_learns():
    system = System(Params(**QUICK | {"steps": 60, "batch": 8}))
    system.fit(tiny_task(), SUPPORT, 0)
    one, other = (system.networks[0].projectors[m].state_dict() for m in (0, 1))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert min(dice(system.predict(tiny_task(), QUERY), QUERY, value) for value in (1, 2)) > 0.6


def test_some_patches_show_the_new_modality_alone():
    torch.manual_seed(0)
    sampler = Patches(SUPPORT, tiny_task(), Params(views=0, new_alone=0.5, modality_dropout=0.0, batch=200), [], ["T1w"])
    present = sampler.batch().present
    assert present[:, 1].all()
    assert 0.35 < float((~present[:, 0]).float().mean()) < 0.65


def test_without_skips_the_decoder_sees_text_space_alone():
    system = System(Params(new_modality="T1w", text_only=True, **QUICK))
    system.fit(tiny_task(), SUPPORT, 0)
    assert not any(parameter.any() for skip in (system.networks[0].from_tokens, system.networks[0].from_raw) for parameter in skip.parameters())


@pytest.mark.parametrize(("params", "support", "message"), [
    ({"new_modality": "PET"}, SUPPORT, r"'PET'.*no modality of this cohort.*FLAIR, T1w"),
    ({"new_modality": "T1w"}, (tiny_case(0, modalities=("T1w",)),), r"other than T1w; give it source cases"),
    ({}, (replace(tiny_case(0), tokens={}),), r"no cached tokens.*embed stage"),
])
def test_what_cannot_be_done_is_refused_with_the_way_out(params, support, message):
    with pytest.raises(DataError, match=message):
        System(Params(**QUICK, **params)).fit(tiny_task(), support, 0)
