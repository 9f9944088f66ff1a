"""A data set with a value of the right kind in any element, and the tool that de-identifies it."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest

from pipelines.ingest.deidentify import deidentifier
from pipelines.ingest.pseudonyms import Pseudonyms
from pipelines.params import Deidentify

KEY = b"a key that is known to the tests only"


@pytest.fixture(scope="session")
def pseudonyms() -> Pseudonyms:
    return Pseudonyms(KEY)


@pytest.fixture
def image(make_series):
    """One slice of an MR series."""
    return make_series(np.arange(56).reshape(1, 7, 8)).datasets()[0]


@pytest.fixture(scope="session")
def apply(pseudonyms):
    """De-identify, write, and read again."""

    def call(dataset, dates="remove", device="keep", words=frozenset()):
        cleaned = deidentifier(pseudonyms, Deidentify(dates=dates, device=device), words)(dataset)
        return read_again(cleaned)

    return call


def written(dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read_again(dataset):
    return pydicom.dcmread(io.BytesIO(written(dataset)))
