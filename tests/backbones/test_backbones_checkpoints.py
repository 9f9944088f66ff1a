"""Published models in folders and in the hub's cache: how they are found, fingerprinted, and refused where they are damaged."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import SPACING, TEXTS, volume

from pipelines.backbones import find_backbone, find_folder, load_backbone
from pipelines.backbones.hub import checkpoint, huggingface
from pipelines.backbones.hub.dense import TEXT
from pipelines.errors import DataError, UsageError

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def test_fingerprint_follows_weights_preprocessing_and_code(folders, copy, monkeypatch):
    first = load_backbone(f"transformers:{folders['siglip']}").fingerprint
    assert load_backbone(f"transformers:{copy}").fingerprint == first  # wherever it lies
    (copy / "README.md").write_text("words")
    seen = {first, huggingface.load(str(copy)).fingerprint}
    assert seen == {first}
    tensors = load_file(copy / "model.safetensors")
    tensors["logit_scale"] += 0.5
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    seen.add(huggingface.load(str(copy)).fingerprint)
    content = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(content | {"image_mean": [0.5, 0.5, 0.5]}))
    seen.add(huggingface.load(str(copy)).fingerprint)
    monkeypatch.setattr(checkpoint, "CODE_VERSION", "other")
    assert len(seen | {huggingface.load(str(copy)).fingerprint}) == 4


def test_precision_is_part_of_the_fingerprint_and_can_be_asked_for(folders):
    name = f"transformers:{folders['clip']}"
    exact, rounded = (huggingface.load(str(folders["clip"]), precision) for precision in (torch.float32, torch.bfloat16))
    assert exact.fingerprint != rounded.fingerprint
    image = volume(1, 16, 16)
    for wanted, other in ((exact, rounded), (rounded, exact)):
        found = load_backbone(name, wanted.fingerprint)
        assert found.fingerprint == wanted.fingerprint and found.precision == wanted.precision
        np.testing.assert_array_equal(found.encode_image(image, SPACING)[TEXT], wanted.encode_image(image, SPACING)[TEXT])
        assert (found.encode_image(image, SPACING)[TEXT] != other.encode_image(image, SPACING)[TEXT]).any()
    assert load_backbone(name, "f" * 64).fingerprint == load_backbone(name).fingerprint  # which the caller refuses


def test_weights_in_parts_and_the_newer_preprocessor_file(folders, copy):
    from transformers import AutoModel

    AutoModel.from_pretrained(copy).save_pretrained(copy, max_shard_size="20KB")
    assert not (copy / "model.safetensors").is_file() or (copy / "model.safetensors").unlink() is None
    content = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": content}))
    assert len(checkpoint.weight_files(copy)) > 1
    whole, parts = (huggingface.load(str(folder), torch.float32) for folder in (folders["siglip"], copy))
    assert parts.preprocessing == whole.preprocessing
    np.testing.assert_array_equal(parts.encode_image(volume(1, 16, 16), SPACING)[TEXT], whole.encode_image(volume(1, 16, 16), SPACING)[TEXT])
    next(copy.glob("model-0*")).unlink()
    with pytest.raises(DataError, match=r"does not exist though model\.safetensors\.index\.json lists it"):
        huggingface.load(str(copy))


@pytest.fixture
def requests(monkeypatch, tmp_path):
    """What the hub is asked for, which is here instead; the cache is empty and nothing forbids a download."""
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()


def test_a_missing_model_says_how_to_get_it(requests):
    with pytest.raises(UsageError, match=r"'acme/clip' is no folder.*hf download acme/clip --local-dir models/clip.*transformers:models/clip"):
        load_backbone("transformers:acme/clip")
    for where in ("models/clip", "no such/place/at all", ""):
        with pytest.raises(UsageError, match="hf download <owner/name> --local-dir models/"):
            load_backbone(f"transformers:{where}")
    for where, words in (("models/MedSigLIP", r"accept its terms.*hf download google/medsiglip-448 --local-dir models/MedSigLIP, then"),
                         ("models/pubmed-clip", r"hf download flaviagiammarino/pubmed-clip-vit-base-patch32 --local-dir models/pubmed-clip, then")):
        with pytest.raises(UsageError, match=words):
            load_backbone(f"transformers:{where}")
    assert requests == []


def test_a_load_asks_nobody(folders, requests):
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    for folder in folders.values():
        load_backbone(f"transformers:{folder}").encode_text(TEXTS)
    assert requests == []
    with pytest.raises((LocalEntryNotFoundError, RepositoryNotFoundError)):
        snapshot_download("acme/clip")
    assert any("acme/clip" in path for path in requests)  # so a request would have been noticed


def test_a_hub_id_is_found_in_the_local_cache(folders, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    entry = tmp_path / "models--acme--clip"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("abc")
    shutil.copytree(folders["clip"], entry / "snapshots" / "abc")
    found = load_backbone("transformers:acme/clip")
    assert found.fingerprint == huggingface.load(str(folders["clip"])).fingerprint
    assert find_folder("transformers:acme/clip") == entry / "snapshots" / "abc"
    assert find_folder("transformers:acme/other") is None and find_folder(f"atlas:{tmp_path / 'none'}") is None
    monkeypatch.setenv("SEMIFLOW_BACKBONE", "acme/clip")  # a logged model finds it there too, and its precision with it
    rounded = huggingface.load(str(folders["clip"]), torch.bfloat16)
    for place in ("transformers:acme/clip", "transformers:models/gone"):
        assert find_backbone(place, rounded.fingerprint).precision == torch.bfloat16
    monkeypatch.delenv("SEMIFLOW_BACKBONE")
    assert find_backbone("transformers:acme/clip", found.fingerprint).fingerprint == found.fingerprint
    with pytest.raises(UsageError, match="is not at acme/other; set SEMIFLOW_BACKBONE"):
        find_backbone("transformers:acme/other", found.fingerprint)


def test_a_pickle_is_refused_with_the_command_that_converts_it(copy):
    first = huggingface.load(str(copy)).encode_text(TEXTS)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(DataError, match="is a pickle, which can run code") as refusal:
        huggingface.load(str(copy))
    command = str(refusal.value).partition("convert it once: python ")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True)
    np.testing.assert_array_equal(huggingface.load(str(copy)).encode_text(TEXTS), first)


def test_half_a_model_is_not_filled_with_random_numbers(copy):
    tensors = {name: tensor for name, tensor in load_file(copy / "model.safetensors").items() if not name.startswith("text_model")}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks \d+ of the model's tensors \(first: text_model"):
        huggingface.load(str(copy))


def test_damaged_and_foreign_folders_are_refused(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())

    def refused(kind: type[Exception], words: str) -> None:
        with pytest.raises(kind, match=words) as refusal:
            huggingface.load(str(copy))
        assert "\n" not in str(refusal.value)

    def write(**changes: object) -> None:
        (copy / "config.json").write_text(json.dumps(config | changes))

    write(model_type="blip")
    refused(UsageError, "type 'blip'; 'transformers:' knows clip, siglip, siglip2")
    write(vision_config=config["vision_config"] | {"hidden_size": 64})
    refused(DataError, "do not fit config.json")
    write(vision_config=config["vision_config"] | {"hidden_size": "wide"})
    refused(DataError, "do not fit config.json")
    write(vision_config=config["vision_config"] | {"vision_use_head": False})
    refused(DataError, "has no pooling head")
    write()
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-100])
    refused(DataError, "weights are damaged")
    (copy / "model.safetensors").unlink()
    refused(DataError, r"model\.safetensors does not exist; fetch the model again")
    (copy / "model.safetensors").write_bytes(weights)
    (copy / "tokenizer.json").unlink()
    refused(DataError, "tokenizer of .* is missing or damaged")
    (copy / "preprocessor_config.json").unlink()
    refused(DataError, r"preprocessor_config\.json does not exist")
    (copy / "config.json").write_text("{")
    refused(DataError, r"config\.json cannot be read")
