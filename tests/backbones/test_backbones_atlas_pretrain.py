"""Pretraining in miniature: it learns, a killed run resumes to the same weights, and the concepts say what they should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.backbones.atlas import concepts as c
from pipelines.backbones.atlas.config import AtlasConfig
from pipelines.backbones.atlas.contrast import grey_levels, render
from pipelines.backbones.atlas.pretrain import app, pretrain_on
from pipelines.backbones.atlas.slices import SLAB, Uniform, label_slabs, paint_lesions
from pipelines.backbones.atlas.training import Recipe, load_checkpoint, new_state, rate, save_checkpoint, train
from pipelines.errors import UsageError
from pipelines.phantoms.anatomy import Tissue

TINY = AtlasConfig(widths=(8, 8, 16, 16), fine=8, coarse=8, dim=16, text_buckets=128, text_layers=1, text_heads=2)
RECIPE = Recipe(seed=3, heads=1, batch=4, size=48, tokens=512, phrasings=1, text_steps=3, warm_up=2, bfloat16=False)


@pytest.fixture(scope="module")
def volumes() -> torch.Tensor:
    """Two nested-ball heads, the second with a lesion: the shape of what `label_volumes` gives, in no time."""
    grid = np.indices((96, 110, 90)) - np.array([48, 55, 45])[:, None, None, None]
    radius = np.sqrt((grid**2).sum(0))
    head = np.zeros(radius.shape, np.uint8)
    for reach, label in ((42, c.SCALP), (38, c.SKULL), (34, c.CSF), (32, c.GREY), (27, c.WHITE), (8, c.VENTRICLE)):
        head[radius < reach] = label
    lesion = head.copy()
    lesion[np.sqrt(((grid - np.array([12, 0, 5])[:, None, None, None]) ** 2).sum(0)) < 9] = c.OEDEMA
    return torch.from_numpy(np.stack([head, lesion]))


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
        assert label_is_named or row.tolist() == table[c.GLIOSIS].tolist()  # gliosis is never taught: neither lesion nor healthy
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
        said = {c.phrase(concept, rng) for _ in range(50)}
        assert len(said) > 10
        assert not any("{" in text for text in said)
        assert not {text.lower() for text in concept.held_out} & {text.lower() for text in concept.texts}


def test_slices_are_standardised_images_of_their_labels(volumes):
    random = Uniform(torch.Generator().manual_seed(0), 32)
    slabs, pixel, _ = label_slabs(volumes, random, 64)
    painted = paint_lesions(slabs, pixel, random)
    assert slabs.shape == (32, SLAB, 64, 64) and pixel.min() >= 1 and pixel.max() <= 2
    assert ((painted != slabs) & (painted < c.NECROSIS)).sum() == 0  # only lesions are painted
    assert {c.SOLID, c.FOCAL} <= set(painted.unique().tolist())
    images = render(painted, grey_levels(random), random)
    assert images.shape == (32, 64, 64) and torch.isfinite(images).all()
    inside = [image[image != 0] for image in images]
    assert abs(np.median([float(values.median()) for values in inside])) < 0.3
    assert 0.6 < np.median([float((values.quantile(0.75) - values.quantile(0.25)) / 1.349) for values in inside]) < 1.6


def test_training_lowers_the_loss(volumes):
    state = new_state(RECIPE, TINY)
    train(state, volumes, RECIPE, 24)
    assert np.mean(state.losses[-4:]) < 0.9 * np.mean(state.losses[:4])


def test_an_interrupted_run_ends_the_same(volumes, tmp_path):
    whole = new_state(RECIPE, TINY)
    train(whole, volumes, RECIPE, 6)
    first, path = new_state(RECIPE, TINY), tmp_path / "checkpoint.safetensors"

    class Killed(Exception):
        pass

    def kill_at_three(state) -> None:
        if state.step == 3:
            save_checkpoint(path, state, RECIPE, TINY, 6)
            raise Killed

    with pytest.raises(Killed):
        train(first, volumes, RECIPE, 6, kill_at_three)
    resumed = load_checkpoint(path, RECIPE, TINY, 6)
    assert resumed.step == 3
    train(resumed, volumes, RECIPE, 6)
    assert resumed.losses == whole.losses
    for name, tensor in whole.average.state_dict().items():
        torch.testing.assert_close(resumed.average.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_checkpoint_of_another_run_is_not_resumed(volumes, tmp_path):
    state, path = new_state(RECIPE, TINY), tmp_path / "checkpoint.safetensors"
    train(state, volumes, RECIPE, 4)
    save_checkpoint(path, state, RECIPE, TINY, 20)
    assert load_checkpoint(path, RECIPE, TINY, 30).step == 4  # the rate was constant: the same run, longer
    assert load_checkpoint(path, RECIPE, TINY, 5) is None  # it would have been falling by now
    assert load_checkpoint(path, replace(RECIPE, seed=4), TINY, 20) is None


def test_the_rate_warms_up_stays_and_falls():
    rates = [rate(replace(RECIPE, warm_up=10), step, 100) for step in range(100)]
    assert rates[0] < rates[5] < rates[9] == rates[70] == RECIPE.rate
    assert rates[70] > rates[85] > rates[99] > 0


def test_the_command_writes_a_loadable_model(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.backbones.atlas.evaluation.label_volumes", lambda *_: volumes.numpy())
    monkeypatch.setattr("pipelines.backbones.atlas.evaluation.SLICES", 4)
    out = tmp_path / "models" / "atlas"
    pretrain_on(volumes, out, RECIPE, TINY, steps=2, cache=tmp_path)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "metrics.json", "weights.safetensors"]
    assert not list(out.parent.glob(".atlas.partial*"))


def test_misuse_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--steps is 0"):
        app(["--out", str(tmp_path), "--steps", "0"], exit_on_error=False, result_action="return_value")
