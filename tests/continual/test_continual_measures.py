"""The measures of a matrix R, on matrices whose values are plain to see."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipelines.continual.measures import described, differences, matrices, measures, table
from pipelines.params import load_params

SETTINGS = load_params().evaluate
#: After each of three sites, Dice on each: the first falls from 0.9 by way of 0.8 to 0.5, the second from 0.7 to 0.6.
R = np.array([[0.9, 0.3, 0.1], [0.8, 0.7, 0.2], [0.5, 0.6, 0.8]])


def rows(matrix: np.ndarray, order: str = "b>a>c", seed: int = 0, method: str = "m") -> pd.DataFrame:
    sites = order.split(">")
    found = [{"method": method, "order": order, "seed": seed, "after_site": sites[i], "on_site": sites[j], "dice": matrix[i, j]}
             for i in range(len(sites)) for j in range(len(sites))]
    return pd.DataFrame(found).sample(frac=1, random_state=1)


def test_every_measure_is_what_its_paper_says():
    found = measures(R, untrained=[0.0, 0.1, 0.0])
    assert found == pytest.approx({"acc": 1.9 / 3, "newest": 0.75, "forgetting": (0.4 + 0.1) / 2, "bwt": (-0.4 - 0.1) / 2, "fwt": (0.2 + 0.2) / 2,
                                   "unseen": 0.25})


def test_what_is_forgotten_is_counted_from_the_best_there_ever_was():
    better_later = np.array([[0.5, 0.0, 0.0], [0.9, 0.5, 0.0], [0.6, 0.5, 0.5]])
    assert measures(better_later)["forgetting"] == pytest.approx(0.15)
    assert measures(better_later)["bwt"] == pytest.approx(0.05)
    assert np.isnan(measures(better_later)["fwt"])


def test_the_matrix_is_in_the_order_of_the_sites():
    (matrix,) = matrices(rows(R)).values()
    np.testing.assert_array_equal(matrix.to_numpy(), R)
    assert list(matrix.columns) == ["b", "a", "c"]


def test_methods_are_compared_chain_by_chain():
    chains = [("a>b>c", 0), ("a>b>c", 1), ("c>b>a", 0), ("c>b>a", 1)]
    level = [0.0, 0.05, 0.1, 0.15]
    own, other = (pd.concat([rows(np.clip(R + add + gap, 0, 1), order, seed) for (order, seed), add in zip(chains, level, strict=True)])
                  for gap in (0.02, 0.0))
    tables = {"own": table(own), "other": table(other)}
    found = described(tables, ["other"], SETTINGS)["own"]
    assert found["chains"] == 4
    assert found["minus"]["other"]["acc"]["mean"] == pytest.approx(0.02)
    assert found["minus"]["other"]["acc"]["low"] == pytest.approx(0.02), "paired, the chains' own levels do not count"
    assert found["measures"]["acc"]["low"] < found["measures"]["acc"]["high"]
    assert "fwt" not in found["measures"]
    assert differences(tables["own"], tables["other"].iloc[:2], SETTINGS)["acc"]["mean"] == pytest.approx(0.02)
