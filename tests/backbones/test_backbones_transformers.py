"""Published models as backbones, on small random checkpoints of the real classes: each number is compared with what the library computes."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import FAMILIES, GRID, LENGTH, SPACING, TEXTS, build, tokenizer, volume
from tiny_cohort import tiny_case, tiny_task
from torch.nn import functional

from pipelines.backbones import load_backbone
from pipelines.backbones.hub import huggingface
from pipelines.backbones.hub.dense import BUDGET, STRIDE, affordable, projection
from pipelines.backbones.hub.pixels import WINDOW, Preprocessing, brightness, pixels
from pipelines.backbones.precision import native_precision
from pipelines.cli import run
from pipelines.cohort import write_manifest
from pipelines.embed.__main__ import app
from pipelines.errors import DataError
from pipelines.outputs import sha256
from pipelines.prompts.bank import PromptBank
from pipelines.systems import create, params_model

ROOT = Path(__file__).parents[2]
HAS_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request, folders):
    torch.set_num_threads(1)
    return huggingface.load(str(folders[request.param]), torch.float32)


def library_vision(backbone, image: torch.Tensor):
    """The library's own forward pass of pixels `(N, 3, H, W)`."""
    vision, patch = backbone.tower.vision, backbone.tower.patch
    with torch.inference_mode():
        if backbone.tower.model.config.model_type != "siglip2":
            return vision(image, output_hidden_states=True, interpolate_pos_encoding=True)
        from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches  # the one without torchvision

        patches = torch.stack([torch.from_numpy(convert_image_to_patches(one.numpy(), patch)) for one in image])
        shape = torch.tensor([[image.shape[2] // patch, image.shape[3] // patch]] * len(image))
        return vision(patches, torch.ones(patches.shape[:2], dtype=torch.long), shape, output_hidden_states=True)


@settings(max_examples=6, deadline=None)
@given(slices=st.integers(1, 10), height=st.integers(1, 50), width=st.integers(1, 50))
def test_tokens_cover_any_image(backbone, slices, height, width):
    tokens = backbone.encode_image(volume(slices, height, width), SPACING)
    assert list(tokens) == list(backbone.levels)
    for name, (channels, stride) in backbone.levels.items():
        assert tokens[name].shape == (slices, channels, -(-height // stride), -(-width // stride))
        assert tokens[name].dtype == np.float16 and np.isfinite(tokens[name]).all()
    aligned = backbone.align(tokens)
    assert aligned.shape == (slices, -(-height // STRIDE), -(-width // STRIDE), backbone.dim) and aligned.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(aligned, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(GRID, GRID), (3, 7)])
def test_levels_are_the_librarys_hidden_states(backbone, rows, columns):
    """At the native size and at another; each normalised as what follows reads it (for SigLIP the last is `last_hidden_state` itself)."""
    slices = volume(2, rows * STRIDE, columns * STRIDE)
    ours = backbone.encode_image(slices, SPACING)
    theirs = library_vision(backbone, pixels(torch.from_numpy(brightness(slices)), STRIDE, STRIDE, backbone.preprocessing))
    vision, clip = backbone.tower.vision, backbone.tower.special == 1
    expected = {
        "block1": vision.encoder.layers[1].layer_norm1(theirs.hidden_states[1]),
        "block2": vision.encoder.layers[2].layer_norm1(theirs.hidden_states[2]),
        "block3": vision.post_layernorm(theirs.last_hidden_state) if clip else theirs.last_hidden_state}
    for name, states in expected.items():
        grid = states[:, backbone.tower.special:].detach().reshape(2, rows, columns, -1).permute(0, 3, 1, 2).numpy()
        np.testing.assert_allclose(ours[name].astype(np.float32), grid, atol=4e-3, err_msg=name)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_positions_at_the_native_size_are_the_trained_ones(folders, family):
    tower = huggingface.load(str(folders[family]), torch.float32).tower
    embeddings, image = tower.vision.embeddings, torch.randn(1, 3, GRID * STRIDE, GRID * STRIDE)
    with torch.inference_mode():
        assert torch.equal(embeddings(image, interpolate_pos_encoding=True), embeddings(image))
        larger = embeddings.interpolate_pos_encoding(torch.zeros(1, 6 * 5 + tower.special, 32), 6 * STRIDE, 5 * STRIDE)
        grid = embeddings.position_embedding.weight[tower.special:].unflatten(0, (GRID, GRID)).permute(2, 0, 1)[None]
        expected = functional.interpolate(grid, (6, 5), mode="bicubic", align_corners=False).flatten(2)[0].T
    torch.testing.assert_close(larger[0, tower.special:], expected)
    assert torch.equal(larger[0, :tower.special], embeddings.position_embedding.weight[:tower.special])


def test_clip_text_space_is_the_last_attention_with_every_token_looking_at_itself(folders):
    backbone = huggingface.load(str(folders["clip"]), torch.float32)
    model, last = backbone.tower.model, backbone.tower.vision.encoder.layers[-1]
    before = torch.randn(2, 17, 32)
    with torch.inference_mode():
        mask = torch.full((17, 17), -torch.inf).fill_diagonal_(0)[None, None]
        attended, _ = last.self_attn(last.layer_norm1(before), attention_mask=mask)
        expected = model.visual_projection(backbone.tower.vision.post_layernorm(attended))
        torch.testing.assert_close(backbone.tower.in_text_space(before, None), expected)
        free, _ = last.self_attn(last.layer_norm1(before))
    assert (free - attended).abs().mean() > 1e-3  # so the mask decides


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_siglip_text_space_is_the_pooling_head_on_each_token_alone(folders, family):
    backbone = huggingface.load(str(folders[family]), torch.float32)
    vision, after = backbone.tower.vision, torch.randn(2, 5, 32)
    with torch.inference_mode():
        expected = vision.head(vision.post_layernorm(after).flatten(0, 1)[:, None]).unflatten(0, (2, 5))
        torch.testing.assert_close(backbone.tower.in_text_space(None, after), expected)
        # a one-patch image has nothing to mix: its token is the image feature itself
        slices = volume(1, STRIDE, STRIDE)
        pooled = library_vision(backbone, pixels(torch.from_numpy(brightness(slices)), STRIDE, STRIDE, backbone.preprocessing)).pooler_output
    token = backbone.align(backbone.encode_image(slices, SPACING))[0, 0, 0]
    np.testing.assert_allclose(token, functional.normalize(pooled, dim=-1)[0], atol=2e-3)


def test_text_vectors_are_the_librarys(backbone):
    model, siglip = backbone.tower.model, backbone.tower.special == 0
    encoded = tokenizer()([text.lower() for text in TEXTS], padding="max_length", max_length=LENGTH, return_tensors="pt")
    with torch.inference_mode():
        features = model.get_text_features(encoded["input_ids"], attention_mask=None if siglip else encoded["attention_mask"]).pooler_output
    vectors = backbone.encode_text(TEXTS)
    np.testing.assert_allclose(vectors, functional.normalize(features, dim=-1), atol=1e-5)
    np.testing.assert_allclose(backbone.encode_text(TEXTS[1:2])[0], vectors[1], atol=1e-6)  # whatever stands beside it
    np.testing.assert_allclose(backbone.encode_text(["Oedema ON flair"])[0], vectors[0], atol=1e-6)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    assert backbone.encode_text([]).shape == (0, backbone.dim)


def test_a_long_text_is_cut_and_said_so_once(folders, capsys):
    backbone = huggingface.load(str(folders["siglip"]))
    long = "brain " * 30
    vectors = backbone.encode_text([long, "brain", long + "oedema"])
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    backbone.encode_text([long])
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "2 of 3 texts are longer than the 12 tokens" in said.err and said.out == ""


def test_the_first_siglip_reads_no_punctuation(copy):
    kept = huggingface.load(str(copy)).encode_text(["Oedema, on: FLAIR.", "oedema on flair"])
    assert np.abs(kept[0] - kept[1]).max() > 1e-3
    content = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(content | {"tokenizer_class": "SiglipTokenizer"}))
    dropped = huggingface.load(str(copy)).encode_text(["Oedema, on: FLAIR.", "oedema on flair"])
    np.testing.assert_allclose(dropped, kept[[1, 1]], atol=1e-6)


def test_padding_and_truncation_written_into_the_tokenizer_file_change_nothing(copy):
    """As the SigLIP 2 files have them."""
    before = huggingface.load(str(copy)).encode_text(TEXTS)
    content = json.loads((copy / "tokenizer.json").read_text())
    content["padding"] = {"strategy": {"Fixed": 7}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                          "pad_token": "<pad>"}
    content["truncation"] = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (copy / "tokenizer.json").write_text(json.dumps(content))
    np.testing.assert_allclose(huggingface.load(str(copy)).encode_text(TEXTS), before, atol=1e-6)


def test_slices_do_not_depend_on_their_batch(backbone, monkeypatch):
    slices = volume(5, 20, 27)
    together = backbone.encode_image(slices, SPACING)
    monkeypatch.setattr("pipelines.backbones.hub.dense.SLICES_AT_ONCE", {"cpu": 2, "cuda": 2})
    for name, tokens in backbone.encode_image(slices, SPACING).items():
        np.testing.assert_allclose(tokens, together[name], atol=4e-3, err_msg=name)
    for name, tokens in backbone.encode_image(slices, (1.0, 1.0, 1.0)).items():
        np.testing.assert_array_equal(tokens, backbone.encode_image(slices, SPACING)[name])


def test_native_precision_changes_little(folders, backbone):
    if native_precision() == torch.float32:
        pytest.skip("this machine has no bfloat16 in hardware")
    family = backbone.tower.model.config.model_type
    exact, native = (model.encode_image(volume(2, 32, 32), SPACING) for model in (backbone, load_backbone(f"transformers:{folders[family]}")))
    for name, tokens in exact.items():
        error = np.abs(native[name].astype(np.float32) - tokens).mean() / np.abs(tokens.astype(np.float32)).mean()
        assert 0 < error < 0.03, (name, error)


@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
def test_a_gpu_gives_nearly_the_same(folders, backbone, monkeypatch):
    exact = backbone.encode_image(volume(3, 37, 32), SPACING)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    there = huggingface.load(str(folders[backbone.tower.model.config.model_type]), torch.float32)
    assert there.fingerprint == backbone.fingerprint
    for name, tokens in there.encode_image(volume(3, 37, 32), SPACING).items():
        np.testing.assert_allclose(tokens, exact[name], atol=2e-2, err_msg=name)
    np.testing.assert_allclose(there.encode_text(TEXTS), backbone.encode_text(TEXTS), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_travels_to_a_worker_whole_after_use(folders, family):
    backbone = huggingface.load(str(folders[family]))
    backbone.encode_text(TEXTS)
    backbone.encode_image(volume(1, 20, 30), SPACING)
    there = pickle.loads(pickle.dumps(backbone))
    assert (there.fingerprint, there.levels) == (backbone.fingerprint, backbone.levels)
    for name, tokens in there.encode_image(volume(1, 20, 30), SPACING).items():
        np.testing.assert_array_equal(tokens, backbone.encode_image(volume(1, 20, 30), SPACING)[name])
    np.testing.assert_array_equal(there.encode_text(TEXTS), backbone.encode_text(TEXTS))


def test_a_larger_patch_sees_the_slice_enlarged(folders, tmp_path):
    backbone = huggingface.load(str(build(tmp_path / "patch14", "siglip", patch=14)), torch.float32)
    slices = volume(1, 24, 17)
    tokens = backbone.encode_image(slices, SPACING)
    assert tokens["block3"].shape == (1, 32, 3, 3)
    shown = functional.pad(torch.from_numpy(brightness(slices))[:, None], (0, 7))
    image = functional.interpolate(shown, (42, 42), mode="bicubic", align_corners=False).clamp(0, 1)
    mean, sd = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    theirs = library_vision(backbone, (image.expand(1, 3, 42, 42) - mean) / sd).last_hidden_state
    np.testing.assert_allclose(tokens["block3"][0].reshape(32, 9).T.astype(np.float32), theirs[0].numpy(), atol=4e-3)


def test_grey_levels_are_windowed_and_air_is_black():
    slices = np.full((2, 9, 9), 0.0, np.float32)
    slices[:, 2:7, 2:7] = 1.0
    slices[0, 4, 4], slices[0, 3, 3], slices[0, 3, 4] = 0.0, -9.0, 9.0
    shown, middle = brightness(slices), -WINDOW[0] / (WINDOW[1] - WINDOW[0])
    assert shown[0, 0, 0] == 0 and shown[1, 8, 4] == 0  # air
    assert shown[0, 4, 4] == pytest.approx(middle)  # the median inside the head, though it is 0 as well
    assert (shown[0, 3, 3], shown[0, 3, 4]) == (0, 1)
    np.testing.assert_allclose(brightness(slices[1:])[0], shown[1])  # a slice by itself, not by its volume
    assert (brightness(np.zeros((1, 4, 4), np.float32)) == 0).all()


def test_pixels_follow_the_preprocessor_file():
    content = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 1.0, 2.0], "resample": 2}
    shown = torch.tensor([[[0.0, 0.5], [1.0, 0.25]]])
    image = pixels(shown, 2, 2, Preprocessing.read(content, "file"))
    torch.testing.assert_close(image[0, :, 0, 1], torch.tensor([0.8, 0.3, 0.1]))
    assert pixels(shown, 2, 2, Preprocessing.read(content | {"do_normalize": False}, "file")).max() == 1
    assert pixels(shown, 2, 2, Preprocessing.read({"do_normalize": False, "do_rescale": False}, "file")).max() == 255
    for change, words in (({"image_mean": None}, "no usable image_mean"), ({"image_std": [0, 1, 1]}, "no usable image_std"),
                          ({"image_std": [1, 1]}, "no usable image_std"), ({"resample": 5}, "asks for resampling 5")):
        with pytest.raises(DataError, match=f"file .*{words}|file {words}"):
            Preprocessing.read(content | change, "file")


@settings(max_examples=40, deadline=None)
@given(width=st.sampled_from([192, 384, 768, 1024, 1152, 1536, 1664]), dim=st.sampled_from([256, 512, 640, 768, 1024, 1152, 1536]),
       levels=st.integers(1, 3))
def test_channels_fit_the_size_budget(width, dim, levels):
    channels = affordable(width, dim, levels)
    assert 16 <= channels <= width
    assert levels * channels / STRIDE**2 + dim / (2 * STRIDE)**2 <= BUDGET
    assert (affordable(768, 512, 3), affordable(1152, 1152, 3)) == (104, 48)  # CLIP ViT-B, MedSigLIP


@pytest.mark.parametrize("shape", [(30, 160, 160), (24, 151, 121), (20, 104, 130)])
def test_tokens_of_usual_volumes_fit_the_stage(shape):
    slices, height, width = shape
    levels = [(affordable(768, 512, 3), STRIDE)] * 3 + [(512, 2 * STRIDE)]
    values = sum(slices * channels * -(-height // stride) * -(-width // stride) for channels, stride in levels)
    assert values <= 8 * slices * height * width


def test_projection_keeps_distances_and_small_tokens_stay_whole():
    matrix = projection(768, 128, 4)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(128) * 6, atol=1e-4, rtol=0)
    tokens = torch.randn(40, 768, generator=torch.Generator().manual_seed(0))
    ratio = torch.pdist(tokens @ matrix) / torch.pdist(tokens)
    assert ratio.min() > 0.75 and ratio.max() < 1.25
    assert torch.equal(matrix, projection(768, 128, 4)) and projection(128, 128, 4) is None


def test_wide_tokens_are_projected(folders, backbone):
    whole = backbone.encode_image(volume(1, 32, 32), SPACING)
    narrow = huggingface.load(str(folders[backbone.tower.model.config.model_type]), torch.float32)
    narrow._projections = [projection(32, 8, number) for number in narrow.blocks]
    for number, matrix in zip(narrow.blocks, narrow._projections, strict=True):
        expected = np.einsum("nchw,ck->nkhw", whole[f"block{number}"].astype(np.float32), matrix.numpy())
        np.testing.assert_allclose(narrow.encode_image(volume(1, 32, 32), SPACING)[f"block{number}"], expected, atol=2e-2)

@pytest.fixture
def resampled(folders, tmp_path) -> Path:
    """Two cases as the stages before write them, and params for one and for two jobs."""
    rows = []
    for number, (subject, modality) in enumerate((subject, modality) for subject in ("01", "02") for modality in ("FLAIR", "T1w")):
        path = Path(f"sub-{subject}") / "anat" / f"sub-{subject}_{modality}.nii.gz"
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume(18, 22, 3, seed=number), np.diag([1.5, 1.5, 5, 1])), tmp_path / path)
        rows.append({"subject": subject, "session": "", "site": "A", "kind": "image", "modality": modality, "path": path.as_posix(),
                     "sha256": sha256(tmp_path / path), "shape": "18x22x3", "spacing_mm": "1.5x1.5x5", "slice_axis": 2})
    write_manifest(tmp_path, rows)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "prompts.json").write_text(json.dumps({"FLAIR": {"oedema": {"A": TEXTS}}}))
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for jobs in (1, 2):
        content["embed"] |= {"backbone": f"transformers:{folders['clip']}", "jobs": jobs}
        (tmp_path / f"params{jobs}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_the_embed_stage_runs_whatever_the_jobs(resampled, capsys):
    contents = []
    for jobs in (1, 2):
        out = resampled / f"embeddings{jobs}"
        arguments = ["--source", resampled, "--prompts", resampled / "prompts", "--out", out, "--params", resampled / f"params{jobs}.yaml"]
        with pytest.raises(SystemExit) as end:
            run(app, [str(word) for word in arguments])
        assert end.value.code == 0
        contents.append({path.relative_to(out).as_posix(): sha256(path) for path in out.rglob("*") if path.is_file()})
    assert capsys.readouterr().out.count("embedded 4 new, 0 reused; 3 new texts") == 2
    assert contents[0] == contents[1] and len([name for name in contents[0] if name.startswith("images/")]) == 4


def test_semi_trains_on_its_tokens(folders):
    backbone = huggingface.load(str(folders["clip"]))
    task = tiny_task()
    texts = task.prompts.texts()
    task = replace(task, backbone=backbone, prompts=PromptBank(task.prompts.phrasings, dict(zip(texts, backbone.encode_text(texts), strict=True))))
    cases = [replace(case, tokens={name: backbone.encode_image(image, case.spacing_mm) for name, image in case.images.items()})
             for case in (tiny_case(0), tiny_case(1), tiny_case(2))]
    system = create("semi", params_model("semi")(steps=20, batch=4, views=1))
    system.fit(task, cases[:2], seed=0)
    probabilities = system.predict(task, cases[2])
    assert probabilities.shape == (3, *cases[2].label().shape)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    foreground = cases[2].foreground()
    lesion = cases[2].label() > 0
    assert probabilities[1:].sum(0)[lesion].mean() > probabilities[1:].sum(0)[foreground & ~lesion].mean()
