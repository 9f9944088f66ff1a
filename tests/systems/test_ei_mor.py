"""EI + MoR: its adapters on two transformers, its loss by hand, its arms at equal size, and what it makes of missing modalities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_cohort import tiny_case, tiny_task
from torch.nn import functional

from pipelines.backbones.vit.config import VitConfig
from pipelines.backbones.vit.load import save_vit
from pipelines.backbones.vit.model import Vit
from pipelines.errors import DataError
from pipelines.outputs import sha256
from pipelines.systems import answers_of, create, params_model
from pipelines.systems.ei_mor.adapters import LoRA, MoR, attach, tower, trainable
from pipelines.systems.ei_mor.cases import ways_of
from pipelines.systems.ei_mor.losses import total
from pipelines.systems.ei_mor.network import FUSIONS, Early, Scores, Whitening
from pipelines.systems.ei_mor.params import Params

SIZES = VitConfig(stem="convolutions", size=32, patch=8, dim=24, depth=2, heads=3)
OURS = VitConfig(stem="convolutions")  # the stem has no adapters
TASK = replace(tiny_task(), outcomes=("low", "high"))


def small_vit(config: VitConfig = SIZES) -> Vit:
    torch.manual_seed(0)
    vit = Vit(config)
    torch.nn.init.normal_(vit.cls, std=0.5)
    return vit.requires_grad_(False).eval()


def published_vit():
    from transformers import ViTConfig, ViTModel

    from pipelines.backbones.vit.published import PublishedVit

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8)
    return PublishedVit(ViTModel(config, add_pooling_layer=False)).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    save_vit(folder, small_vit(), SIZES)
    return folder


def bright(number: int, outcome: str | None):
    """A case whose images have a bright half where the outcome is "high"."""
    case = tiny_case(number)
    half = case.foreground() & (np.arange(case.dseg.shape[1]) < 22)[:, None]
    images = {name: (image + 4.0 * half * (outcome == "high")).astype(np.float32) for name, image in case.images.items()}
    return replace(case, images=images, outcome=outcome)


CASES = tuple(bright(number, ("low", "high")[number % 2]) for number in range(12))


def fitted(vit_folder, cases=CASES, seed=3, **changes):
    settings = {"vit": f"vit:{vit_folder}", "epochs": 3, "joint_epochs": 12, "hidden": 32, "slices": 2, "batch": 6, "rate": 5e-3, "held_out": 0.2}
    system = create("ei-mor", params_model("ei-mor")(**settings | changes))
    system.fit(TASK, cases, seed)
    return system


@pytest.mark.parametrize("make", [small_vit, published_vit], ids=["ours", "transformers"])
@pytest.mark.parametrize("adapter", ["mor", "lora"])
def test_an_adapted_transformer_begins_as_itself_and_learns_in_its_adapters_alone(make, adapter):
    vit = make()
    slices, further = vit.embed(torch.randn(3, vit.size, vit.size)), torch.randn(3, 2, vit.dim)
    adapted = tower(vit, adapter)
    assert torch.equal(vit(slices), adapted(slices))
    assert adapted(slices, further).shape[1] == vit(slices).shape[1] + 2
    learning = [name for name, part in adapted.named_parameters() if part.requires_grad]
    assert len(learning) == 4 * (4 if adapter == "mor" else 2)  # fc1 and fc2 of two blocks
    assert not any(".base." in name for name in learning)
    with torch.no_grad():
        for module in adapted.modules():
            if isinstance(module, MoR | LoRA):
                module.up.normal_()
    assert not torch.allclose(vit(slices), adapted(slices))


def test_mor_is_the_formula_with_a_bypass():
    torch.manual_seed(1)
    layer = MoR(torch.nn.Linear(10, 7))
    torch.nn.init.normal_(layer.up)
    x, weight = torch.randn(5, 10), None
    weight = layer.router(x).softmax(1)
    expected, start = layer.base(x), 0
    for slot, (rank, alpha) in enumerate(zip((2, 4, 8), (4, 8, 16), strict=True), start=1):
        part = slice(start, start + rank)
        expected = expected + weight[:, slot, None] * alpha / rank * (x @ layer.down[part].T @ layer.up[:, part].T)
        start += rank
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        layer.router.bias[0] = 100.0  # all on the bypass
    torch.testing.assert_close(layer(x), layer.base(x))


@pytest.mark.parametrize("config", [SIZES, OURS, OURS.model_copy(update={"dim": 192, "mlp": 2})], ids=["tiny", "ours", "wide"])
def test_lora_and_the_other_fusions_have_as_many_trainable_values(config):
    vit = Vit(config)
    counts = {}
    for adapter in ("mor", "lora"):
        for name, fusion in FUSIONS.items():
            counts[adapter, name] = trainable(fusion(vit, ("MR", "PET"), 2, Params(adapter=adapter)))
    assert max(counts.values()) / min(counts.values()) < 1.02, counts
    adapters = [trainable(tower(vit, adapter)) for adapter in ("mor", "lora")]
    assert max(adapters) / min(adapters) < 1.02


def test_no_layer_of_that_name_is_said():
    with pytest.raises(ValueError, match="no linear layer is called nowhere"):
        attach(small_vit(), ["nowhere"])


def test_the_loss_takes_one_softmax_everywhere():
    torch.manual_seed(2)
    own = {"MR": torch.randn(6, 3), "PET": torch.randn(6, 3)}
    auxiliary = {"MR": torch.randn(6, 3), "PET": torch.randn(6, 3)}
    scores, truth = Scores(torch.randn(6, 3), own, auxiliary, torch.randn(6, 2)), torch.tensor([0, 1, 2, 0, 1, 2])

    def nll(logits, index):  # by hand, from logits
        return -(logits - logits.logsumexp(1, keepdim=True))[torch.arange(6), index]

    gaps = {"MR": 1.0, "PET": 3.0}
    best = (3 * nll(own["PET"], truth) < nll(own["MR"], truth)).long()
    expected = (nll(scores.joint, truth) + sum(nll(each, truth) for each in own.values()) + 0.3 * sum(nll(each, truth) for each in auxiliary.values())
                + 0.1 * nll(scores.router, best)).mean()
    torch.testing.assert_close(total(scores, truth, gaps, 0.3, 0.1), expected)


def test_an_image_is_seen_in_ways_that_all_images_of_a_case_share():
    torch.manual_seed(5)
    slices, mask = torch.randn(2, 32, 32), torch.zeros(2, 32, 32)
    mask[:, 4:12, 6:20] = 1.0
    ways = ways_of(slices, "sub-1", 8)
    assert torch.equal(ways[0], slices) and torch.equal(ways[1], slices.flip(-2))
    assert all(torch.equal(one, other) for one, other in zip(ways, ways_of(slices, "sub-1", 8), strict=True))
    assert not torch.equal(ways[5], ways_of(slices, "sub-2", 8)[5])
    for seen, where in zip(ways_of(slices + 9 * mask, "sub-1", 8), ways_of(mask, "sub-1", 8), strict=True):
        assert seen[where > 0.99].mean() > 7, "what is bright in one image lies where the mask of the same case lies"
        assert 0.7 * mask.sum() < where.sum() < 1.35 * mask.sum()


def test_whitened_class_tokens_differ_alike_in_every_direction_that_is_not_noise():
    torch.manual_seed(6)
    tokens = 5 + torch.randn(400, 6) * torch.tensor([10.0, 3.0, 1.0, 1e-3, 1e-3, 1e-3]) @ torch.linalg.qr(torch.randn(6, 6))[0]
    whitening = Whitening(6, 0.1)
    assert torch.equal(whitening(tokens), tokens)
    whitening.learn(tokens)
    told = whitening(tokens)
    torch.testing.assert_close(told.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    spread = torch.linalg.svdvals(told / 20)
    torch.testing.assert_close(spread[:3], torch.tensor([10 / 11, 3 / 4, 1 / 2]), atol=0.05, rtol=0)
    assert spread[3] < 2e-3


def test_the_router_sees_scores_and_features_detached():
    torch.manual_seed(3)
    network = Early(small_vit(), ("MR", "PET"), 2, Params(hidden=16))
    images = {name: torch.randn(4, 1, 17, SIZES.dim) for name in ("MR", "PET")}
    references = {name: torch.randn(4, SIZES.dim) for name in images}
    scores = network(images, references)
    torch.testing.assert_close(scores.joint, (scores.router.softmax(1)[..., None] * torch.stack(list(scores.own.values()), 1)).sum(1))
    functional.cross_entropy(scores.joint, torch.tensor([0, 1, 0, 1])).backward()
    reached = {name.split(".")[0] for name, part in network.named_parameters() if part.grad is not None and part.grad.any()}
    assert reached == {"router"}


def test_an_absent_modality_has_no_part_in_router_or_interventions():
    torch.manual_seed(4)
    network = Early(small_vit(), ("MR", "PET", "CT"), 2, Params(hidden=16)).eval()
    images = {name: torch.randn(4, 1, 17, SIZES.dim) for name in ("MR", "PET")}
    references = {name: torch.randn(4, SIZES.dim) for name in images}
    before = network(images, references)
    assert before.router.shape == (4, 2)
    with torch.no_grad():
        for name, part in network.named_parameters():
            if "CT" in name:
                part.normal_()
    after = network(images, references)
    torch.testing.assert_close(before.joint, after.joint)


@pytest.mark.parametrize("changes", [{}, {"fusion": "late", "adapter": "lora"}, {"fusion": "mil"}, {"shuffled": True}, {"modalities": ["FLAIR"]},
                                     {"whiten": None, "views": 1}], ids=["early", "late", "mil", "shuffled", "unimodal", "as-written"])
def test_every_arm_learns_and_reads_back(vit_folder, tmp_path, changes):
    system = fitted(vit_folder, **changes)
    new = [bright(number, None) for number in (20, 21)]
    high = [bright(number, "high") for number in (22, 23)]
    said = {case.id: system.predict(TASK, case) for case in (*new, *high)}
    for probabilities in said.values():
        assert probabilities.shape == (2,) and probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(), 1, atol=1e-6)
    assert min(said[case.id][1] for case in high) > max(said[case.id][1] for case in new)
    system.save(tmp_path)
    again = create("ei-mor", system.params)
    again.load(tmp_path)
    np.testing.assert_array_equal(again.predict(TASK, high[0]), said[high[0].id])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 400_000  # the transformer is not among it


def test_missing_modalities_and_equal_seeds(vit_folder, tmp_path):
    cases = [case.only(["T1w"]) if number in (0, 5) else case for number, case in enumerate(CASES)]
    for label in ("one", "two"):
        torch.rand(3)
        (tmp_path / label).mkdir()
        system = fitted(vit_folder, cases, epochs=1, joint_epochs=1)
        system.save(tmp_path / label)
    assert sha256(tmp_path / "one" / "weights.safetensors") == sha256(tmp_path / "two" / "weights.safetensors")
    for left in ("FLAIR", "T1w"):
        assert np.isfinite(system.predict(TASK, CASES[1].only([left]))).all()
    with pytest.raises(DataError, match="has none of the modalities"):
        system.predict(TASK, CASES[1].only([]))


def test_another_transformer_than_the_fit_was_made_with_is_refused(vit_folder, tmp_path):
    system = fitted(vit_folder, epochs=1, joint_epochs=1)
    system.save(tmp_path)
    other = small_vit()
    with torch.no_grad():
        other.norm.weight.add_(1.0)
    save_vit(tmp_path / "other", other, SIZES)
    with pytest.raises(DataError, match="is another transformer now"):
        create("ei-mor", system.params.model_copy(update={"vit": f"vit:{tmp_path / 'other'}"})).load(tmp_path)


def test_params_that_contradict_each_other():
    assert answers_of("ei-mor") == answers_of("case-probe") == "case"
    assert answers_of("semi") == "voxels"
    with pytest.raises(ValueError, match="only fusion: early has"):
        Params(fusion="late", shuffled=True)
    with pytest.raises(ValueError, match="one alpha a rank"):
        Params(ranks=[2, 4], alphas=[4.0])


@pytest.mark.parametrize("features", ["tokens", "vit"])
def test_the_probe_learns_imputes_and_reads_back(vit_folder, tmp_path, features):
    system = create("case-probe", params_model("case-probe")(features=features, vit=f"vit:{vit_folder}", slices=2))
    encoded = [{name: TASK.backbone.encode_image(image, case.spacing_mm) for name, image in case.images.items()} for case in CASES]
    cases = [replace(case, tokens=tokens) for case, tokens in zip(CASES, encoded, strict=True)]
    system.fit(TASK, [], 0, [cases[0].only(["T1w"]), *cases[1:]])
    right = [system.predict(TASK, case).argmax() == ("low", "high").index(case.outcome) for case in cases]
    assert np.mean(right) > 0.8
    system.save(tmp_path)
    again = create("case-probe", system.params)
    again.load(tmp_path)
    np.testing.assert_array_equal(again.predict(TASK, cases[3].only(["FLAIR"])), system.predict(TASK, cases[3].only(["FLAIR"])))


def test_the_probe_of_one_class_says_that_class():
    system = create("case-probe", params_model("case-probe")())
    system.fit(TASK, [case for case in CASES if case.outcome == "low"], 0)
    np.testing.assert_array_equal(system.predict(TASK, CASES[1]), [1, 0])
