"""Reason codes are an interface: each one that the code can give is in the documentation, and none that it cannot."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+|localiser")
CALLS = {"Refused": 0, "check_uniform": 1}  # function -> which argument is the code
FROM_MARKS = {f"mixed-{mark}" for mark in ("component", "echo", "inversion", "b-value", "energy")}  # split.CONTRAST


def codes_in(path: Path) -> set[str]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    places = [call.args[CALLS[call.func.id]] for call in calls if call.func.id in CALLS and len(call.args) > CALLS[call.func.id]]
    return {place.value for place in places if isinstance(place, ast.Constant)}


def test_reason_codes_are_documented_and_exist():
    given = set().union(*(codes_in(path) for folder in ("pipelines/ingest", "tasks/pacs") for path in (ROOT / folder).rglob("*.py"))) | FROM_MARKS
    text = (ROOT / "docs" / "ingest.md").read_text()
    documented = {code for code in re.findall(r"`([^`\s]+)`", text[text.index("## Reason codes"):]) if CODE.fullmatch(code)}
    assert given - documented == set()
    assert documented - given == set()
