"""DVC does not see Python imports: each stage's deps must name the code it really imports, or an edit would leave stale results."""

from __future__ import annotations

import re
from pathlib import Path

import grimp
import pytest
import yaml

ROOT = Path(__file__).parents[1]
#: Params are followed by DVC key by key (`params:`), so that editing one experiment does not rerun another.
FOLLOWED_BY_KEY = ("pipelines.params", "pipelines.experiments", "pipelines.section")


def stages() -> dict[str, dict]:
    files = ("dvc.yaml", "conf/sweep.yaml", "conf/continual.yaml", "conf/site.yaml")
    declared = {file: yaml.safe_load((ROOT / file).read_text())["stages"] for file in files}
    prefix = {"conf/site.yaml": "site "}  # a workspace has stages of the same names
    return {prefix.get(file, "") + name: stage.get("do", stage) for file, part in declared.items() for name, stage in part.items()}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    graph = grimp.build_graph("flows", "tasks", "pipelines", cache_dir=None)
    for module in FOLLOWED_BY_KEY:
        graph.remove_module(module)
    return graph


def imported_files(graph: grimp.ImportGraph, module: str) -> set[Path]:
    """Files of the project that running `module` may import, lazily too."""
    start = {module} | ({f"{module}.__main__"} if f"{module}.__main__" in graph.modules else set())
    reached = set().union(*(graph.find_upstream_modules(name) for name in start)) | start
    files = set()
    for name in reached:
        path = ROOT / Path(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.read_text().strip():  # an empty __init__ cannot change a result
            files.add(file.relative_to(ROOT))
    return files


@pytest.mark.parametrize("name", stages())
def test_deps_cover_every_import(graph, name):
    stage = stages()[name]
    module = re.search(r"python -m (\S+)", stage["cmd"]).group(1)
    deps = [Path(dep) for dep in stage["deps"] if "$" not in dep]
    uncovered = [str(file) for file in imported_files(graph, module) if not any(file == dep or dep in file.parents for dep in deps)]
    assert not uncovered, f"stage {name} imports {sorted(uncovered)}, which its deps in dvc.yaml do not name"


@pytest.mark.parametrize("name", stages())
def test_code_deps_exist(name):
    for dep in stages()[name]["deps"]:
        if dep.endswith(".py") or dep.startswith("pipelines/"):
            assert (ROOT / dep).exists(), f"stage {name} depends on {dep}, which is not there"
