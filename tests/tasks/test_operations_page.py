"""docs/operations.md is acted on at three in the morning: its commands exist, and what it quotes is what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
CODE = "\n".join(path.read_text() for folder in ("flows", "tasks", "pipelines") for path in (ROOT / folder).rglob("*.py"))
MAKEFILE = (ROOT / "Makefile").read_text()


def first_cells(heading: str) -> list[str]:
    """What the first column of the tables under a heading quotes."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [quoted for row in re.findall(r"^\| (.+?) \|", section, re.MULTILINE) for quoted in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([a-z_.]+)", PAGE))))
def test_commands_exist(module):
    assert importlib.util.find_spec(module)


def test_targets_exist():
    assert set(re.findall(r"(?:^|`|&& |[A-Z0-9.=]+ )make ([a-z]+)", PAGE, re.MULTILINE)) <= set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("heading", ["A model is promoted, or not", "A prediction is withheld"])
def test_outcomes_and_reasons_are_the_codes_own(heading):
    for quoted in first_cells(heading):
        for part in filter(None, map(str.strip, quoted.split("..."))):
            assert part in CODE, quoted


def test_drift_has_the_verdicts_of_the_page():
    from pipelines.drift.look import VERDICTS

    assert set(first_cells("Drift")) == set(VERDICTS)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).is_file(), target
