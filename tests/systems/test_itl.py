"""ITL against its definition: it begins where the model was, the old encoder never moves, a loaded model goes on alike, nothing grows with sites."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_cohort import dice, tiny_case, tiny_task

from pipelines.systems import create, params_model
from pipelines.systems.incremental import Incremental
from pipelines.systems.itl.losses import distilled, drawn_back
from pipelines.systems.itl.network import Mixed, decoded, frozen
from pipelines.systems.reproducible import reproducible
from pipelines.systems.semi.batches import PatchSampler

QUICK = {"steps": 8, "batch": 3, "refinement": 0, "fisher_batches": 2, "replay_cases": 1}
TASK = tiny_task(("A", "B", "C", "D"))
METHODS = ("itl", "sequential", "ewc", "lwf", "replay")
FEATURES = ("projectors", "fusion", "from_tokens", "from_fused")


def at(site: str, count: int = 2, modalities=("FLAIR", "T1w")):
    """Cases of a site; B's scanner shows both sequences the other way round."""
    cases = [tiny_case(10 * "ABCD".index(site) + number, site, modalities) for number in range(count)]
    return [turned(case) for case in cases] if site == "B" else cases


def turned(case):
    images = {name: -image for name, image in case.images.items()}
    return replace(case, images=images, tokens={name: TASK.backbone.encode_image(image, case.spacing_mm) for name, image in images.items()})


def system(**changes):
    return create("itl", params_model("itl")(**QUICK | changes))


def after(*sites: str, seed: int = 1, **changes):
    one = system(**changes)
    for site in sites:
        one.learn_site(TASK, at(site), seed)
    return one


def state(one) -> dict[str, torch.Tensor]:
    return one.networks[0].state_dict()


def saved(one, folder):
    folder.mkdir()
    one.save(folder)
    return sum(path.stat().st_size for path in folder.iterdir())


def test_only_systems_that_go_on_are_incremental():
    assert isinstance(system(), Incremental)
    assert not isinstance(create("semi", params_model("semi")()), Incremental)


def test_the_next_site_begins_where_the_model_was():
    before = after("A").networks[0]
    network = Mixed.after(before)
    sampler = PatchSampler(at("B"), TASK, system().params)
    with reproducible(0), torch.no_grad():
        batch = sampler.batch()
        tokens = before.standardise(batch.tokens, batch.mean, batch.sd, 1.0).flatten(1, 3)
        expected = decoded(before, before.regions(tokens, batch.texts, batch.present)[0], batch)
        logits = decoded(network, network.regions(tokens, batch.texts, batch.present)[0], batch)
        torch.testing.assert_close(logits, expected)
        assert float(distilled(logits, frozen(before), tokens, batch, 2.0)) == pytest.approx(0, abs=1e-5)
        assert float(distilled(logits + torch.randn_like(logits), frozen(before), tokens, batch, 2.0)) > 0.1


def test_the_old_encoder_and_head_are_the_earlier_ones_and_do_not_learn():
    one = after("A")
    earlier = {name: value.clone() for name, value in state(one).items()}
    one.learn_site(TASK, at("B"), 1)
    now = state(one)
    for name, value in earlier.items():
        assert torch.equal(now[f"old.{name}"], value), name
    assert not torch.equal(now["head.4.weight"], earlier["head.4.weight"])
    assert any(not torch.equal(now[name], value) for name, value in earlier.items() if name.startswith(FEATURES))
    assert float(now["gate"].abs().max()) > 0, "the share of the new encoder is learned"


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_model_goes_on_like_one_that_was_never_saved(method, tmp_path):
    one = after("A", "B", method=method)
    one.save(tmp_path)
    again = system(method=method)
    again.load(tmp_path)
    for other in (one, again):
        other.learn_site(TASK, at("C"), 2)
    assert state(one).keys() == state(again).keys()
    assert all(torch.equal(value, state(again)[name]) for name, value in state(one).items())


@pytest.mark.parametrize(("method", "grows"), [("itl", False), ("ewc", False), ("lwf", False), ("replay", True)])
def test_memory_does_not_grow_with_the_number_of_sites(method, grows, tmp_path):
    two, four = (saved(after(*sites, method=method, steps=2), tmp_path / sites) for sites in ("AB", "ABCD"))
    assert (four > 1.5 * two) if grows else (abs(four - two) < 10)


def test_fitting_learns_the_source_site_after_site_and_then_the_support():
    fitted = system()
    fitted.fit(TASK, at("A"), 1, [*at("C"), *at("B")])
    chain = after("B", "C", "A")
    assert all(torch.equal(value, state(chain)[name]) for name, value in state(fitted).items())
    assert fitted.sites == 3


def test_a_modality_that_no_earlier_site_had_is_begun_and_the_old_encoder_is_not_asked_for_it():
    one = system()
    one.learn_site(TASK, at("A", modalities=("FLAIR",)), 1)
    one.learn_site(TASK, at("C"), 1)
    network = one.networks[0]
    assert network.trained.all()
    assert network.old.trained.tolist() == [True, False]
    assert float(network.token_mean[1].abs().sum()) > 0
    assert np.isfinite(one.predict(TASK, at("C", 3, ("T1w",))[2])).all()


@pytest.mark.parametrize("method", METHODS)
def test_sites_need_not_have_a_modality_in_common(method):
    one = system(method=method)
    for site, modality in (("A", "T1w"), ("C", "FLAIR"), ("D", "T1w")):
        one.learn_site(TASK, at(site, modalities=(modality,)), 1)
    assert np.isfinite(one.predict(TASK, at("D", 3)[2])).all()


def test_ewc_draws_back_where_the_information_is():
    network = after("A", method="ewc").networks[0]
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    fisher = {"fusion": torch.tensor([3.0, 1.0])}
    assert float(drawn_back(network, before, fisher, 2.0).detach()) == 0
    with torch.no_grad():
        network.fusion += torch.tensor([1.0, 0.0])
    assert float(drawn_back(network, before, fisher, 2.0).detach()) == pytest.approx(1.5)


def test_less_is_forgotten_than_by_sequential_fine_tuning_when_the_next_scanner_is_the_opposite():
    def oedema(one, site: str) -> float:
        return float(np.mean([dice(one.predict(TASK, case), case, 2) for case in at(site, 4)[2:]]))

    lost, won = {}, {}
    for method in ("itl", "sequential"):
        one = after("A", method=method, steps=40, batch=6)
        first, unseen = oedema(one, "A"), oedema(one, "B")
        one.learn_site(TASK, at("B"), 1)
        lost[method], won[method] = first - oedema(one, "A"), oedema(one, "B") - unseen
    assert lost["sequential"] > 0.1, "there has to be something to forget"
    assert lost["itl"] < lost["sequential"]
    assert won["itl"] > 0.05, "and it learns something new; less, for it is held to what it knew"
