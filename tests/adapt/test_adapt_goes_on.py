"""Adaptation with a system that goes on from the champion: no case of the earlier site is learned from again, and less of it is forgotten."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from tiny_sites import Sites, case

SMALL = {"steps": 80, "batch": 6, "views": 0, "refinement": 0, "modality_dropout": 0.0}


def learned(root, monkeypatch, **params) -> Sites:
    """Site a, then site b, by ITL with these params; site b's challenger is not judged yet."""
    torch.manual_seed(0)  # the backbone's random weights: the same for both methods
    sites = Sites(root)
    content = yaml.safe_load((root / "params.yaml").read_text())
    content["service"]["adapt"] = {"system": "itl", "rehearsal": 2, "params": SMALL | params}
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(root)
    sites.receive("a", [case("a", number) for number in range(5)])
    sites.learn("a")
    sites.promote("a", "b")
    sites.receive("b", [case("b", number) for number in range(5)])
    return sites


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Method -> the verdict on the challenger of site b, and its record."""
    found = {}
    for method in ("itl", "sequential"):
        with pytest.MonkeyPatch.context() as patch:
            sites = learned(tmp_path_factory.mktemp(method), patch, method=method)
            verdict = sites.learn("b", "a")
        found[method] = verdict, json.loads((sites.folders("b").challenger / "fit" / "fit.json").read_text())
    return found


def test_it_starts_from_the_champion_and_sees_no_earlier_case(verdicts):
    for verdict, fit in verdicts.values():
        assert fit["protocol"] == "incremental"
        assert fit["split"]["source"] == []
        assert {name[4] for name in fit["split"]["support"]} == {"b"}
        assert verdict["numbers"]["challenger"] > verdict["numbers"]["champion"]


def test_less_of_the_earlier_site_is_forgotten_than_by_sequential_fine_tuning(verdicts):
    lost = {method: -verdict["numbers"]["earlier"]["a"]["difference"] for method, (verdict, _) in verdicts.items()}
    assert lost["sequential"] > 0.1, "there has to be something to forget"
    assert lost["itl"] < lost["sequential"] / 3
    assert verdicts["itl"][0]["numbers"]["earlier"]["a"]["champion"] == verdicts["sequential"][0]["numbers"]["earlier"]["a"]["champion"]


def test_with_other_params_it_learns_anew(tmp_path, monkeypatch):
    sites = learned(tmp_path, monkeypatch, steps=4)
    content = yaml.safe_load((tmp_path / "params.yaml").read_text())
    content["service"]["adapt"]["params"]["steps"] = 3
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    sites.learn("b", "a")
    fit = json.loads((sites.folders("b").challenger / "fit" / "fit.json").read_text())
    assert fit["protocol"] == "transfer"
    assert {name[4] for name in fit["split"]["source"]} == {"a"}
