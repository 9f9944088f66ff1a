"""A prompt bank from disk: vectors that belong to other texts, are damaged or are missing are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.errors import DataError
from pipelines.prompts.bank import PromptBank
from pipelines.prompts.vectors import read_vectors, write_vectors

TEXTS = ["an oedema", "normal brain"]
MATRIX = np.eye(2, 4, dtype=np.float32)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps({"FLAIR": {"oedema": {"A": ["an oedema"]}, "healthy": {"A": ["normal brain"]}}}))
    write_vectors(tmp_path, "abc", TEXTS, MATRIX)
    return tmp_path


def test_what_was_written_is_read(folder):
    fingerprint, vectors = read_vectors(folder)
    assert fingerprint == "abc" and list(vectors) == TEXTS
    np.testing.assert_array_equal(PromptBank.load(folder, folder).embedding("FLAIR", "healthy", "A"), MATRIX[1])


def swap(folder):
    (folder / "text.json").write_text(json.dumps(TEXTS[::-1]))


def turn(folder):
    content = bytearray((folder / "text.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "text.safetensors").write_bytes(content)


def cut(folder):
    (folder / "text.safetensors").write_bytes((folder / "text.safetensors").read_bytes()[:-3])


def unproven(folder):
    save_file({"embeddings": MATRIX}, folder / "text.safetensors")


@pytest.mark.parametrize("damage", [swap, turn, cut, unproven])
def test_vectors_that_are_not_of_these_texts_are_refused(folder, damage):
    damage(folder)
    with pytest.raises(DataError, match=r"text\.safetensors is damaged or holds vectors of other texts than text\.json lists; run the embed stage"):
        PromptBank.load(folder, folder)


def test_every_text_needs_a_vector(folder):
    write_vectors(folder, "abc", TEXTS[:1], MATRIX[:1])
    with pytest.raises(DataError, match=r"no vector of 1 texts of .*prompts\.json \(first: 'normal brain'\); run the embed stage again"):
        PromptBank.load(folder, folder)


@pytest.mark.parametrize(("name", "words"), [("text.json", "run the embed stage first"), ("text.safetensors", "run the embed stage first"),
                                             ("prompts.json", "run the prompts stage first")])
def test_missing_files_are_named(folder, name, words):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name} does not exist; {words}"):
        PromptBank.load(folder, folder)


def test_what_is_no_bank_is_refused(folder):
    (folder / "prompts.json").write_text("[1]")
    with pytest.raises(DataError, match="is no prompt bank"):
        PromptBank.load(folder, folder)
