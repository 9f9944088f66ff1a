"""SEMI's parts against their definitions: the contrast, the fusion, the slices, and where voxels and tokens lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cohort import tiny_case, tiny_task

from pipelines.backbones.atlas import Atlas
from pipelines.errors import DataError, UsageError
from pipelines.systems import create
from pipelines.systems.semi.batches import PatchSampler
from pipelines.systems.semi.features import alignment_pairs, raw_width, region_classes, view_of
from pipelines.systems.semi.losses import dice_ce, region_infonce
from pipelines.systems.semi.model import Semi, Sizes
from pipelines.systems.semi.params import Params
from pipelines.systems.semi.parts import smallest_parts, without_small_parts
from pipelines.systems.semi.texts import class_names, class_vectors, text_targets
from pipelines.systems.semi.views import another_view

REPOSITORY = Path(__file__).parents[2]


def network(modalities: int = 3) -> Semi:
    torch.manual_seed(0)
    return Semi(Sizes(modalities=modalities, labels=2, token_width=5, dim=8, raw_width=4, projector_width=6, decoder_width=7, stride=2, tau=0.07))


def test_the_contrast_is_the_formula_by_hand():
    regions = torch.eye(3)[[0, 1, 1]]
    texts = torch.eye(3)
    positive = torch.tensor([[True, False, False], [False, True, True]])  # class 1 has two phrasings
    tau = 0.5
    own, all_texts = np.exp(1 / tau), np.exp(1 / tau) + 2
    of_class_0 = -np.log(own / all_texts)
    of_class_1 = -(np.log(own / all_texts) + np.log(1 / all_texts)) / 2
    expected = (of_class_0 + of_class_1) / 2  # classes weigh the same, however many regions they have
    assert float(region_infonce(regions, torch.tensor([0, 1, 1]), texts, positive, tau)) == pytest.approx(expected, rel=1e-6)


def test_a_text_that_is_repeated_counts_once_in_the_denominator():
    task = tiny_task(("A", "B"))  # both sites use the same words
    targets = text_targets(task, "FLAIR", ("A", "B"), "prompts")
    assert len(targets.vectors) == 2 * len(class_names(task))
    assert (targets.positive.sum(1) == 2).all()
    assert (targets.positive.sum(0) == 1).all()
    right = torch.from_numpy(targets.vectors[targets.positive[0]].mean(0))[None]
    loss = region_infonce(right / right.norm(), torch.tensor([0]), torch.from_numpy(targets.vectors), torch.from_numpy(targets.positive), 0.07)
    assert float(loss) < np.log(len(targets.vectors))


@pytest.mark.parametrize("kind", ["random-orthonormal", "one-hot"])
def test_controls_replace_language_by_orthonormal_vectors(kind):
    task = tiny_task()
    vectors = class_vectors(task, "FLAIR", "A", kind)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-6)
    np.testing.assert_array_equal(vectors, class_vectors(task, "FLAIR", "A", kind))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_fusion_weights_sum_to_one_over_those_present(present, logits):
    net = network()
    net.fusion.data = torch.tensor(logits)
    weights = net.weights(torch.tensor([present]))[0].detach()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert (weights[~torch.tensor(present)] == 0).all()


def test_a_missing_modality_leaves_no_trace():
    net = network()
    tokens, texts = torch.randn(1, 10, 3, 5), torch.randn(1, 3, 4, 8)
    present = torch.tensor([[True, False, True]])
    maps, embeddings = net.regions(tokens, texts, present)
    changed = tokens.clone()
    changed[..., 1, :] = 1e3
    assert torch.equal(net.regions(changed, texts, present)[0], maps)
    assert sorted(embeddings) == [0, 2]
    raw, voxels = torch.randn(10, 3, 4), torch.randn(10, 7)
    other = raw.clone()
    other[:, 1] = 1e3
    flags = present.expand(10, -1)
    assert torch.equal(net.decode(voxels, raw, flags), net.decode(voxels, other, flags))


def test_slices_are_joined_by_a_convolution_that_starts_as_the_identity():
    net = network()
    maps = torch.randn(2, 5, 3, 4, 7)
    assert torch.equal(net.join_slices(maps), maps)
    torch.nn.init.normal_(net.across_slices.weight)
    columns = maps.permute(0, 2, 3, 4, 1).reshape(-1, 7, 5)
    expected = net.across_slices(columns).reshape(2, 3, 4, 7, 5).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(net.join_slices(maps), expected)


def test_projectors_start_near_the_backbones_own_alignment():
    task, case = tiny_task(), tiny_case(0)
    system = create("semi", Params(steps=20, learning_rate=1e-9, average=0))
    system.fit(task, [case], seed=0)
    tokens, aligned = alignment_pairs(case, "FLAIR", task, 4, 3)
    projected = system.networks[0].projectors[0]((tokens.float() - system.networks[0].token_mean[0]) / system.networks[0].token_sd[0])
    assert float((projected * aligned).sum(-1).mean().detach()) > 0.9


def test_voxels_tokens_and_labels_of_a_crop_lie_together():
    case, params = tiny_case(1), Params()
    view = view_of(case, tiny_task(), params)
    label, classes = region_classes(case, view.box, 2, params.grid_stride)
    assert view.raw.shape[:3] == label.shape
    assert view.raw.shape[3:] == (2, raw_width(params))
    assert view.tokens.shape[:3] == classes.shape
    assert tuple(params.grid_stride * size for size in classes.shape[1:]) == tuple(label.shape[1:])
    assert int((label > 0).sum()) == int((case.label() > 0).sum())
    assert set(classes.unique().tolist()) == {0, 1, 2, 3}
    rows, columns = view.box[1:]
    fine = torch.from_numpy(case.tokens["FLAIR"]["fine"].astype(np.float32))
    averaged = torch.nn.functional.avg_pool2d(fine, 2, ceil_mode=True, count_include_pad=False)
    seen = averaged[:, :, rows.start // 4:rows.stop // 4, columns.start // 4:columns.stop // 4].movedim(1, -1)
    np.testing.assert_allclose(view.tokens[..., 0, :6].float().numpy(), seen.numpy(), atol=1e-3, rtol=1e-3)  # kept in half precision


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_any_token_grid_trains_and_predicts(stride):
    system = create("semi", Params(steps=20, batch=2, grid_stride=stride))
    system.fit(tiny_task(), [tiny_case(0)], seed=0)
    assert np.isfinite(system.predict(tiny_task(), tiny_case(1))).all()


def test_patches_hold_their_lesion_and_stay_inside():
    params = Params(on_lesion=1.0, batch=20)
    torch.manual_seed(0)
    batch = PatchSampler([tiny_case(0), tiny_case(1, modalities=("T1w",))], tiny_task(), params).batch()
    assert (batch.labels.flatten(1) > 0).any(1).all()
    assert batch.present.any(1).all()
    assert batch.tokens.shape == (20, 3, 4, 4, 2, 16)


def test_prediction_does_not_depend_on_which_tokens_were_skipped():
    """Only tokens near the head are computed; computing all of them changes nothing inside it."""
    task, case = tiny_task(), tiny_case(1)
    system = create("semi", Params(steps=20, batch=4))
    system.fit(task, [tiny_case(0)], seed=0)
    whole = replace(case, brain=np.ones_like(case.foreground(), dtype=np.uint8))
    view = view_of(case, task, system.params)
    from pipelines.systems.semi.batches import text_tensor

    texts = text_tensor(case, task, "prompts")
    some = system._maps(system.networks[0], view, texts, case.foreground())
    everything = system._maps(system.networks[0], view, texts, whole.foreground())
    cells = region_classes(case, view.box, 2, system.params.grid_stride)[1] < 3
    torch.testing.assert_close(some[cells], everything[cells], atol=1e-5, rtol=1e-5)


def test_another_view_moves_image_and_label_together():
    torch.manual_seed(1)
    case, params = tiny_case(0), Params(view_slices=5, view_contrast=0.0)
    view = another_view(case, tiny_task(), params)
    label, image = view.label(), view.image("FLAIR")
    assert label.shape == (5, *case.label().shape[1:])
    assert set(np.unique(label)) == {0, 1, 2}
    assert image[label == 1].mean() > image[view.foreground() & (label == 0)].mean() + 1
    assert (image[~view.foreground()] == 0).all()
    assert view.token_levels("FLAIR")["fine"].shape == (5, 6, 23, 19)


def test_a_modality_that_no_shot_had_is_not_used():
    system = create("semi", Params(steps=20, batch=2, views=1))
    system.fit(tiny_task(), [tiny_case(0, modalities=("FLAIR",))], seed=0)
    both = tiny_case(1)
    only = replace(both, images={"FLAIR": both.images["FLAIR"]}, tokens={"FLAIR": both.tokens["FLAIR"]})
    np.testing.assert_array_equal(system.predict(tiny_task(), both), system.predict(tiny_task(), only))


def test_dice_ce_of_a_sure_and_right_answer_is_nothing():
    labels = torch.tensor([0, 1, 2, 2])
    assert float(dice_ce(50 * torch.eye(3)[labels], labels)) == pytest.approx(0, abs=1e-5)
    assert float(dice_ce(50 * torch.eye(3)[(labels + 1) % 3], labels)) > 10


def test_a_case_without_tokens_is_refused_with_the_way_out():
    with pytest.raises(DataError, match=r"no cached tokens.*embed stage"):
        create("semi", Params()).fit(tiny_task(), [replace(tiny_case(0), tokens={})], seed=0)


def test_members_differ_and_their_mean_is_predicted():
    task, case = tiny_task(), tiny_case(1)
    system = create("semi", Params(steps=20, batch=2, views=1, members=2))
    system.fit(task, [tiny_case(0)], seed=0)
    mean = system.predict(task, case)
    system.networks, both = system.networks[:1], system.networks
    first = system.predict(task, case)
    system.networks = both[1:]
    second = system.predict(task, case)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)


def test_other_sites_lend_patches_and_the_target_keeps_its_share():
    target, lent = tiny_case(0), [tiny_case(number, site="B") for number in (1, 2, 3)]
    torch.manual_seed(0)
    sampler = PatchSampler([target], tiny_task(("A", "B")), Params(views=0, target_share=0.75), lent)
    own = sum(sampler._some_shot() is sampler.shots[-1] for _ in range(400))
    assert 260 < own < 340
    alone = PatchSampler([], tiny_task(("A", "B")), Params(views=1), lent)
    assert (alone.lent, alone.originals, len(alone.shots)) == (0, 3, 4)


def test_small_parts_go_and_the_largest_stays():
    truth = np.zeros((4, 20, 20), np.uint8)
    truth[1:3, 2:6, 2:6] = 1
    case = replace(tiny_case(0), dseg=truth, brain=np.ones_like(truth))
    assert smallest_parts([case], 2) == [32.0, 0.0]
    found = np.zeros((3, 4, 20, 20), np.float32)
    found[0] = 1
    for part in (np.s_[1, 2:6, 2:6], np.s_[3, 15:17, 15:17]):
        found[(0, *part)], found[(1, *part)] = 0.1, 0.9
    cleaned = without_small_parts(found, [10, 10])
    assert (cleaned.argmax(0) == 1).sum() == 16
    np.testing.assert_allclose(cleaned.sum(0), 1, atol=1e-6)
    assert (without_small_parts(found, [100, 100]).argmax(0) == 1).sum() == 16  # whatever the limit, something is left
    np.testing.assert_array_equal(without_small_parts(found, [3, 3]), found)


@pytest.mark.parametrize("extra", [{"mirrored": True}, {"self_training": 3}, {"own_statistics": 0.0}, {"smallest_part": 0.5}])
def test_what_is_done_at_prediction_changes_it_and_repeats(extra):
    task, case = tiny_task(), tiny_case(1)
    plain, other = (create("semi", Params(steps=20, batch=4, views=0, **options)) for options in ({}, extra))
    for system in (plain, other):
        system.fit(task, [tiny_case(0)], seed=0)
    found = other.predict(task, case)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(found, other.predict(task, case))
    if "smallest_part" not in extra:
        assert np.abs(found - plain.predict(task, case)).max() > 1e-4


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_an_encoder_that_learns_is_kept_with_the_fit(kind, tmp_path):
    backbone = Atlas.load(REPOSITORY / "models/atlas")
    cases = [with_tokens(tiny_case(number), backbone) for number in (0, 1)]
    texts = tiny_task().prompts.texts()
    vectors = dict(zip(texts, backbone.encode_text(texts), strict=True))
    task = replace(tiny_task(), backbone=backbone, prompts=replace(tiny_task().prompts, vectors=vectors))
    before = cases[0].tokens["FLAIR"]["fine"]
    params = Params(steps=20, batch=2, views=0, encoder=kind, encoder_steps=2, lora_rank=2)
    system = create("semi", params)
    system.fit(task, cases[:1], seed=0)
    learned = system.towers[0]
    assert all("lora_" in name for name in learned) == (kind == "lora")
    assert any(float(value.abs().sum()) > 0 for name, value in learned.items() if "lora_B" in name or kind == "full")
    np.testing.assert_array_equal(with_tokens(cases[0], backbone).tokens["FLAIR"]["fine"], before)  # the backbone itself stays
    system.save(tmp_path)
    again = create("semi", params)
    again.load(tmp_path)
    np.testing.assert_allclose(again.predict(task, cases[1]), system.predict(task, cases[1]), atol=1e-6)


def test_a_backbone_without_a_tower_to_train_is_refused():
    with pytest.raises(UsageError, match="encoder: frozen"):
        create("semi", Params(steps=20, views=0, encoder="lora")).fit(tiny_task(), [tiny_case(0)], seed=0)


def with_tokens(case, backbone):
    return replace(case, tokens={name: backbone.encode_image(case.image(name), case.spacing_mm) for name in case.images})


@pytest.mark.parametrize("through_the_tower", [True, False])
def test_class_vectors_can_be_learned(through_the_tower, tmp_path):
    task, cases = tiny_task(), [tiny_case(0), tiny_case(1)]
    if through_the_tower:
        backbone = Atlas.load(REPOSITORY / "models/atlas")
        cases = [with_tokens(case, backbone) for case in cases]
        texts = task.prompts.texts()
        task = replace(task, backbone=backbone, prompts=replace(task.prompts, vectors=dict(zip(texts, backbone.encode_text(texts), strict=True))))
    params = Params(steps=20, batch=2, views=0, context=2)
    system = create("semi", params)
    system.fit(task, cases[:1], seed=0)
    learned = system.networks[0].texts
    torch.testing.assert_close(learned.norm(dim=-1), torch.ones(learned.shape[:-1]))
    assert (learned[0] - torch.from_numpy(class_vectors(task, task.modalities[0], "A", "prompts"))).abs().max() > 1e-2
    if through_the_tower:
        assert all(parameter.grad is None for parameter in task.backbone.towers.parameters())
    system.save(tmp_path)
    again = create("semi", params)
    again.load(tmp_path)
    np.testing.assert_array_equal(again.predict(task, cases[1]), system.predict(task, cases[1]))
