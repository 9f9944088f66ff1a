"""What every system owes the protocol: it learns, survives a round trip bit for bit, repeats itself, and does with what is there."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_cohort import dice, tiny_case, tiny_task

from pipelines.outputs import sha256
from pipelines.systems import REGISTRY, answers_of, create, params_model

#: Enough training for the tiny cohort.
SMALL_NETWORK = {"steps": 60, "channels": [8, 16], "residual_units": 0, "patch": 32, "learning_rate": 0.01, "average": 0.9}
FEW_VOXELS = {"voxels_per_class": 400, "judged_voxels": 800}
QUICK = {"semi": {"steps": 60, "batch": 8}, "itl": {"steps": 60}, "semi-hyper": {"steps": 60, "batch": 8, "projector_steps": 40, "views": 1},
         "random-forest": {"trees": 15, "voxels_per_class": 400}, "linear-probe": FEW_VOXELS | {"raw": True},
         "unet": SMALL_NETWORK, "hemis": SMALL_NETWORK | {"branch": 8}, "coop": FEW_VOXELS | {"steps": 100},
         "tip-adapter": FEW_VOXELS | {"steps": 30, "keys_per_class": 48, "alphas": [100.0, 300.0], "betas": [5.0, 10.0]}}
#: Dice to reach; the random text space of the tiny backbone holds little of what it sees.
LEARNS = {"coop": 0.2, "tip-adapter": 0.4}
#: Systems that answer whole cases owe other things (test_ei_mor.py).
SEGMENTING = [name for name in sorted(REGISTRY) if answers_of(name) == "voxels"]
SUPPORT = (tiny_case(0), tiny_case(1))
QUERY = tiny_case(2)


def fewer(name: str, steps: int) -> dict[str, int]:
    """As a change of params, for a system that has steps."""
    return {"steps": steps} if "steps" in params_model(name).model_fields else {}


def fitted(name: str, seed: int = 3, support=SUPPORT, **changes):
    system = create(name, params_model(name)(**QUICK.get(name, {}) | changes))
    system.fit(tiny_task(), support, seed)
    return system


@pytest.fixture(scope="module", params=SEGMENTING)
def system(request):
    torch.set_num_threads(1)
    return request.param, fitted(request.param)


def test_it_learns_and_gives_probabilities_on_the_cases_grid(system):
    probabilities = system[1].predict(tiny_task(), QUERY)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (3, *QUERY.label().shape)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert (probabilities >= 0).all()
    assert (probabilities[0][~QUERY.foreground()] == 1).all()
    for value in (1, 2):
        assert dice(probabilities, QUERY, value) > LEARNS.get(system[0], 0.6)


def test_what_was_saved_predicts_the_same_bits(system, tmp_path):
    name, trained = system
    trained.save(tmp_path)
    assert not list(tmp_path.glob("*.pkl"))
    state = torch.get_rng_state()
    again = create(name, trained.params)
    again.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(again.predict(tiny_task(), QUERY), trained.predict(tiny_task(), QUERY))


def test_equal_seeds_make_equal_files_whatever_was_drawn_before(system, tmp_path):
    name, trained = system
    random.random(), np.random.default_rng().random(), torch.rand(7)
    again = fitted(name)
    for label, one in (("first", trained), ("again", again)):
        (tmp_path / label).mkdir()
        one.save(tmp_path / label)
    files = sorted(path.name for path in (tmp_path / "first").iterdir() if path.suffix != ".skops")  # a zip carries the time
    assert files
    assert all(sha256(tmp_path / "first" / file) == sha256(tmp_path / "again" / file) for file in files)
    np.testing.assert_array_equal(again.predict(tiny_task(), QUERY), trained.predict(tiny_task(), QUERY))


@pytest.mark.parametrize("name", SEGMENTING)
def test_another_seed_gives_another_model(name):
    one, other = (fitted(name, seed=seed, **fewer(name, 5)) for seed in (3, 4))
    assert not np.array_equal(one.predict(tiny_task(), QUERY), other.predict(tiny_task(), QUERY))


@pytest.mark.parametrize("left", ["FLAIR", "T1w"])
def test_a_query_without_a_modality_is_predicted(system, left):
    case = replace(QUERY, images={left: QUERY.images[left]}, tokens={left: QUERY.tokens[left]})
    probabilities = system[1].predict(tiny_task(), case)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("name", SEGMENTING)
def test_support_may_lack_modalities_and_labels(name):
    flair = tiny_case(0, modalities=("FLAIR",))
    empty = replace(tiny_case(1), dseg=np.zeros_like(QUERY.label()))
    system = fitted(name, support=(flair, empty), **fewer(name, 20))
    assert np.isfinite(system.predict(tiny_task(), QUERY)).all()


@pytest.mark.parametrize("name", SEGMENTING)
def test_a_single_empty_shot_predicts_background(name):
    empty = replace(tiny_case(1), dseg=np.zeros_like(QUERY.label()))
    system = fitted(name, support=(empty,), **fewer(name, 30))
    assert (system.predict(tiny_task(), QUERY).argmax(0) == 0).mean() > 0.98


@pytest.mark.parametrize("name", ["semi", "unet", "coop"])
@pytest.mark.parametrize("steps", [1, 3, 9, 10])
def test_any_number_of_steps_trains(name, steps):
    system = fitted(name, support=(tiny_case(0),), steps=steps, batch=2)
    assert np.isfinite(system.predict(tiny_task(), QUERY)).all()
