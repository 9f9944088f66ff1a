"""Pretraining in miniature: it learns, a killed run resumes to the same weights, and the concepts say what they should."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.backbones.atlas import Atlas, phrases
from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.checkpoint import load_checkpoint, save_checkpoint
from pipelines.backbones.atlas.config import AtlasConfig
from pipelines.backbones.atlas.contrast import grey_levels, render, typical_levels
from pipelines.backbones.atlas.face import SOFT, with_face
from pipelines.backbones.atlas.lesions import paint_lesions
from pipelines.backbones.atlas.phrases import Facets, Prompt
from pipelines.backbones.atlas.pretrain import anatomy_of, app, pretrain_on
from pipelines.backbones.atlas.slices import NEIGHBOURS, PARTS, Anatomy, Uniform, label_slabs
from pipelines.backbones.atlas.training import HARDER, Phase, Recipe, batch, continued, new_state, rate, train
from pipelines.backbones.atlas.volumes import place_map
from pipelines.errors import UsageError
from pipelines.phantoms.anatomy import BOX_MM, Tissue

TINY = AtlasConfig(widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), fine=8, coarse=8, dim=16, text_buckets=128, text_layers=1, text_heads=2)
RECIPE = Recipe(seed=3, heads=1, batch=4, size=48, tokens=512, phrasings=2, text_steps=3, widen_steps=3, warm_up=2, bfloat16=False)


@pytest.fixture(scope="module")
def volumes() -> np.ndarray:
    """Two nested-ball heads, the second with a lesion: the shape of what `label_volumes` gives, in no time."""
    grid = np.indices((96, 110, 90)) - np.array([48, 55, 45])[:, None, None, None]
    radius = np.sqrt((grid**2).sum(0))
    head = np.zeros(radius.shape, np.uint8)
    for reach, label in ((42, c.SCALP), (38, c.SKULL), (34, c.CSF), (32, c.GREY), (27, c.WHITE), (8, c.VENTRICLE)):
        head[radius < reach] = label
    lesion = head.copy()
    lesion[np.sqrt(((grid - np.array([12, 0, 5])[:, None, None, None]) ** 2).sum(0)) < 9] = c.OEDEMA
    return np.stack([head, lesion])


@pytest.fixture(scope="module")
def anatomy(volumes) -> Anatomy:
    return anatomy_of(volumes)


def test_labels_are_the_anatomy_s():
    assert {tissue.value for tissue in Tissue} == set(range(c.SOLID))
    named = {"AIR": c.AIR, "SCALP": c.SCALP, "GREY": c.GREY, "WHITE": c.WHITE, "VENTRICLE": c.VENTRICLE, "GLIOSIS": c.GLIOSIS,
             "NECROSIS": c.NECROSIS, "ENHANCING": c.ENHANCING, "OEDEMA": c.OEDEMA}
    assert all(Tissue[name] == value for name, value in named.items())


def test_every_label_has_a_name_and_every_concept_a_contrary():
    table = c.verdicts()
    assert table.shape == (c.RELATIONS * c.LABELS, len(c.CONCEPTS))
    for row in table:
        label_is_named = (row == c.POSITIVE).any()
        assert label_is_named
    for column in table.T:
        assert (column == c.POSITIVE).any() and (column == c.NEGATIVE).any()


def test_brighter_and_darker_are_opposites():
    brighter, darker = ([concept.name for concept in c.CONCEPTS].index(name) for name in ("brighter", "darker"))
    table = c.verdicts()
    assert table[c.BRIGHTER * c.LABELS + c.OEDEMA, [brighter, darker]].tolist() == [c.POSITIVE, c.NEGATIVE]
    assert table[c.DARKER * c.LABELS + c.OEDEMA, [brighter, darker]].tolist() == [c.NEGATIVE, c.POSITIVE]
    assert table[c.SIMILAR * c.LABELS + c.OEDEMA, [brighter, darker]].tolist() == [c.NEUTRAL, c.NEUTRAL]


def test_phrases_are_filled_and_never_held_out():
    rng = np.random.default_rng(0)
    for concept in c.CONCEPTS:
        said = {phrases.phrase(concept, rng, place=index % 3, modality=index % 4) for index in range(50)}
        assert len(said) > 10
        assert not any("{" in text for text in said)
        assert not {text.lower() for text in concept.held_out} & {text.lower() for text in concept.texts}


def test_a_sentence_is_true_where_all_it_says_is_true():
    glioma = [concept.name for concept in c.CONCEPTS].index("tumour")
    flair, t1, cet1, left, frontal = phrases.modality_index("FLAIR"), phrases.modality_index("T1"), phrases.modality_index("ceT1"), 1, 1
    said = [Prompt(glioma, ""), Prompt(glioma, "", flair), Prompt(glioma, "", t1), Prompt(glioma, "", 0, frontal, left),
            Prompt(glioma, "", flair, 2, left)]
    known = [(flair, frontal, left), (0, frontal, left), (cet1, frontal, 2), (flair, 0, left)]  # an oedema each
    pixels = Facets(torch.full((4,), c.BRIGHTER * c.LABELS + c.OEDEMA), *torch.tensor(known).T)
    yes, no, unsaid = c.POSITIVE, c.NEGATIVE, c.NEUTRAL
    assert phrases.verdict_on(said, pixels).tolist() == [[yes, yes, no, yes, no], [yes, unsaid, unsaid, yes, no], [yes, no, unsaid, no, no],
                                                         [yes, yes, no, unsaid, unsaid]]
    air = Facets(*(torch.zeros(1, dtype=torch.long) for _ in range(4)))
    assert phrases.verdict_on([Prompt(0, "", t1)], air).tolist() == [[yes]]  # air is air on any modality


def test_sentences_name_what_they_ask_for():
    rng = np.random.default_rng(1)
    said = [phrases.write(10, rng, [phrases.modality_index("FLAIR")]) for _ in range(200)]
    assert len({prompt.modality for prompt in said}) > 3 and any(prompt.side for prompt in said) and any(prompt.place for prompt in said)
    for prompt in said:
        sides = {side for side, words in enumerate(phrases.SIDES.values(), 1) if any(word in prompt.text.lower() for word in words)}
        assert sides == ({prompt.side} if prompt.side else set())
        if prompt.modality:
            names = list(phrases.MODALITIES.values())[prompt.modality - 1]
            assert any(name.lower() in prompt.text.lower() for name in names)


def test_places_are_where_anatomy_puts_them():
    places = place_map((128, 156, 119))
    at = lambda x, y, z: list(phrases.PLACES)[places[round((x + 96) / 1.5), round((y + 130) / 1.5), round((z + 72) / 1.5)] - 1]  # noqa: E731
    assert [at(30, 45, 20), at(-30, 45, 20), at(-50, -10, -20), at(10, -90, 5), at(25, -55, 55), at(-20, -60, -40), at(0, -28, -40)] == [
        "frontal", "frontal", "temporal", "occipital", "parietal", "cerebellum", "brain stem"]


def test_slices_are_standardised_images_of_their_labels(anatomy):
    random = Uniform(torch.Generator().manual_seed(0), 48)
    slabs = label_slabs(anatomy, random, 64)
    painted = paint_lesions(slabs, random)
    assert slabs.labels.shape == (48, NEIGHBOURS * PARTS, 64, 64) and slabs.pixel_mm.min() >= 0.9 and slabs.pixel_mm.max() <= 2
    assert (slabs.depth_mm.diff(dim=1) > 0).all() and slabs.depth_mm.mean(1).abs().max() < 1e-4
    assert ((painted.labels != slabs.labels) & (painted.labels < c.NECROSIS)).sum() == 0  # only lesions are painted
    assert {c.SOLID, c.FOCAL, c.INFARCT, c.ENHANCING} <= set(painted.labels.unique().tolist())
    levels = grey_levels(random)
    images = render(painted, levels, random)
    assert images.shape == (48, NEIGHBOURS, 64, 64) and torch.isfinite(images).all()
    inside = [values for image in images if len(values := image[image != 0])]  # below a brain without its head there is nothing
    assert len(inside) > 40
    assert abs(np.median([float(values.median()) for values in inside])) < 0.3
    assert 0.6 < np.median([float((values.quantile(0.75) - values.quantile(0.25)) / 1.349) for values in inside]) < 1.6


def test_a_painted_lesion_shows_and_fades_into_the_tissue(anatomy):
    random = Uniform(torch.Generator().manual_seed(1), 64)
    painted = paint_lesions(label_slabs(anatomy, random, 64), random)
    changed = painted.labels != painted.tissue
    assert painted.share[changed].min() >= 0.5 and painted.share[changed].max() == 1
    assert 0 < ((painted.share > 0) & ~changed).float().mean() < 0.1
    image, level = render(painted, typical_levels("FLAIR", 64), random)[:, NEIGHBOURS // 2], painted.labels[:, PARTS * (NEIGHBOURS // 2)]
    brighter = [float(i[sure].mean() - i[white].mean()) for i, lab, share in zip(image, level, painted.share[:, 2], strict=True)
                if (sure := (lab == c.SOLID) & (share == 1)).sum() > 20 and (white := lab == c.WHITE).sum() > 20]
    assert len(brighter) > 5 and np.mean(np.array(brighter) > 0) > 0.9


def test_sides_follow_the_array(anatomy):
    """Rows run left to right in what the stages store, so few rows are left of many; where rows do not run sideways nothing is said."""
    slabs = label_slabs(anatomy, Uniform(torch.Generator().manual_seed(2), 64), 64)
    rows = torch.arange(64.0)[:, None].expand(64, 64)
    told = [(rows[side == 1].mean(), rows[side == 2].mean()) for side in slabs.side if (side == 1).any() and (side == 2).any()]
    assert len(told) > 20 and all(left < right for left, right in told)
    assert any((side == 0).all() for side in slabs.side)


def test_the_second_part_of_the_run_has_larger_lesions_through_the_cortex(anatomy):
    recipe = replace(RECIPE, batch=96, shares=1, contrasts=1, phases=((0, Phase()), (5, HARDER)))
    assert recipe.phase(4) == Phase() and recipe.phase(5) == HARDER == recipe.phase(6)
    share = []
    for step in (4, 5):
        label = batch(anatomy, recipe, step, 0).facets.row % c.LABELS
        share.append(float((label == c.SOLID).sum() / ((label >= c.CSF) & (label < c.EYE)).sum()))
    assert share[1] > 1.5 * share[0] > 0


def test_invisible_lesions_are_not_taught(anatomy):
    made = batch(anatomy, replace(RECIPE, batch=64, shares=1, contrasts=2), 0, 0)
    assert made.images.shape == (64, NEIGHBOURS, 48, 48) and made.facets.row.shape == (64, 24, 24)
    hidden = made.facets.row[~(made.weight > 0)] % c.LABELS
    assert len(hidden) and set(hidden.tolist()) <= set(c.LESIONS)
    assert set((made.facets.row[~(made.weight > 0)] // c.LABELS).tolist()) == {c.SIMILAR}


def test_training_lowers_the_loss(anatomy):
    state = new_state(RECIPE, TINY)
    train(state, anatomy, RECIPE, 24)
    assert np.mean(state.losses[-4:]) < 0.9 * np.mean(state.losses[:4])


def test_an_interrupted_run_ends_the_same(anatomy, tmp_path):
    whole = new_state(RECIPE, TINY)
    train(whole, anatomy, RECIPE, 6)
    first, path = new_state(RECIPE, TINY), tmp_path / "checkpoint.safetensors"

    class Killed(Exception):
        pass

    def kill_at_three(state) -> None:
        if state.step == 3:
            save_checkpoint(path, state, RECIPE, TINY, 6)
            raise Killed

    with pytest.raises(Killed):
        train(first, anatomy, RECIPE, 6, kill_at_three)
    resumed = load_checkpoint(path, RECIPE, TINY, 6)
    assert resumed.step == 3
    train(resumed, anatomy, RECIPE, 6)
    assert resumed.losses == whole.losses
    for name, tensor in whole.average.state_dict().items():
        torch.testing.assert_close(resumed.average.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_checkpoint_of_another_run_is_not_resumed(anatomy, tmp_path):
    state, path = new_state(RECIPE, TINY), tmp_path / "checkpoint.safetensors"
    train(state, anatomy, RECIPE, 4)
    save_checkpoint(path, state, RECIPE, TINY, 20)
    assert load_checkpoint(path, RECIPE, TINY, 30).step == 4  # the rate was constant: the same run, longer
    assert load_checkpoint(path, RECIPE, TINY, 5) is None  # it would have been falling by now
    assert load_checkpoint(path, replace(RECIPE, seed=4), TINY, 20) is None


def test_the_rate_warms_up_stays_and_falls():
    rates = [rate(replace(RECIPE, warm_up=10), step, 100) for step in range(100)]
    assert rates[0] < rates[5] < rates[9] == rates[70] == RECIPE.rate
    assert rates[70] > rates[85] > rates[99] > 0


def test_the_command_writes_a_loadable_model(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.backbones.atlas.evaluation.label_volumes", lambda *_: volumes)
    monkeypatch.setattr("pipelines.backbones.atlas.evaluation.SLICES", 4)
    out = tmp_path / "models" / "atlas"
    pretrain_on(volumes, out, RECIPE, TINY, steps=2, cache=tmp_path)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["facets_synthetic_accuracy"]) == {"modality", "place", "side"}
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "metrics.json", "weights.safetensors"]
    assert not list(out.parent.glob(".atlas.partial*"))


def test_class_vectors_can_stand_in_for_texts_and_snapshots_be_kept(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.backbones.atlas.pretrain.FIRST_SNAPSHOT", 2)
    config = TINY.model_copy(update={"classes": len(c.CONCEPTS)})
    pretrain_on(volumes, tmp_path / "ids", RECIPE, config, steps=5, cache=tmp_path, snapshots=tmp_path / "snapshots")
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["step-000002", "step-000004"]
    before, after = Atlas.load(tmp_path / "snapshots" / "step-000002"), Atlas.load(tmp_path / "ids")
    assert np.abs(before.class_vectors() - after.class_vectors()).max() > 1e-6


def test_a_run_goes_on_from_a_finished_one(anatomy, volumes, tmp_path):
    config = TINY.model_copy(update={"classes": len(c.CONCEPTS)})
    pretrain_on(volumes, tmp_path / "first", RECIPE, config, steps=4, cache=tmp_path)
    further = replace(RECIPE, first=4)
    pretrain_on(volumes, tmp_path / "second", further, config, steps=7, cache=tmp_path, start=tmp_path / "first")
    metrics = json.loads((tmp_path / "second" / "metrics.json").read_text())
    assert (metrics["first"], metrics["steps"]) == (4, 7)
    before, after = (Atlas.load(tmp_path / name).towers.state_dict() for name in ("first", "second"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    state = continued(further, config, before)
    assert state.step == 4 and all(torch.equal(state.towers.state_dict()[name], value) for name, value in before.items())
    assert rate(further, 4, 100) == pytest.approx(RECIPE.rate / RECIPE.warm_up)  # it begins anew


@pytest.mark.parametrize("seed", [0, 1])
def test_a_face_is_painted_round_the_brain_and_never_into_it(seed):
    shape = tuple(np.ceil((BOX_MM[:, 1] - BOX_MM[:, 0]) / 3.0).astype(int))
    x, y, z = (np.arange(n) * 3.0 + low for n, low in zip(shape, BOX_MM[:, 0], strict=True))
    head = (x[:, None, None] / 75) ** 2 + ((y[None, :, None] + 10) / 95) ** 2 + ((z[None, None] - 10) / 90) ** 2 < 1
    brain = head & (z > -20)
    labels = np.where(brain, c.WHITE, np.where(head, c.SCALP, c.AIR)).astype(np.uint8)
    painted = with_face(labels, np.random.default_rng(seed), 3.0)
    changed = painted != labels
    assert set(np.unique(labels[changed])) <= set(SOFT)
    assert {c.AIR, c.MUCOSA, c.EYE, c.MUSCLE, c.SKULL} <= set(np.unique(painted[changed]))
    low = head & ~brain
    assert 0.2 < changed[low].mean() < 0.95
    np.testing.assert_array_equal(painted, with_face(labels, np.random.default_rng(seed), 3.0))


def test_misuse_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no metrics\.json"):
        app(["--out", str(tmp_path), "--start", str(tmp_path)], exit_on_error=False, result_action="return_value")
    (tmp_path / "metrics.json").write_text('{"steps": 50}')
    with pytest.raises(UsageError, match="has 50 steps already"):
        app(["--out", str(tmp_path), "--start", str(tmp_path), "--steps", "40"], exit_on_error=False, result_action="return_value")
    with pytest.raises(UsageError, match="--steps is 0"):
        app(["--out", str(tmp_path), "--steps", "0"], exit_on_error=False, result_action="return_value")
