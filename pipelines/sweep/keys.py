"""A fit's key: a hash of everything its numbers depend on, so that a finished fit is found again exactly as long as it still holds.

What is followed: the system and its params, the draw with the images' checksums, the prompts, the backbone, the settings of measuring, the versions
of the libraries that compute, and the code that this fit imports (not that of other systems). Code is compared as syntax: a comment changes
nothing. What is not: where and when it ran, the arm's name and role, and the registry of systems.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from pipelines.cohort import case_id, read_manifest
from pipelines.outputs import sha256
from pipelines.params import Params
from pipelines.sweep.matrix import Fit
from pipelines.systems import params_model
from pipelines.systems.protocol import Task

ROOT = Path(__file__).parents[2]
#: Their results may differ in the last digits from version to version.
LIBRARIES = ("monai", "numpy", "scikit-learn", "scipy", "torch")
#: What every fit runs, whatever the system.
COMMON = ("pipelines.sweep.work",)
#: Followed by value instead: the params and draws themselves are in the key, and so is the system's package.
BY_VALUE = {"pipelines.params", "pipelines.experiments", "pipelines.section", "pipelines.sites.params", "pipelines.systems", "pipelines.sweep.matrix",
            "pipelines.train.split"}
#: Columns of the manifest that decide what a case's arrays are.
IMAGE_FACTS = ["site", "kind", "modality", "sha256", "spacing_mm", "slice_axis"]


@dataclass(frozen=True)
class Keys:
    """What all fits of a sweep share, read once."""

    shared: Mapping[str, object]
    images: Mapping[str, str]  # case id -> hash of its images' checksums

    @classmethod
    def read(cls, source: Path, prompts: Path, task: Task, params: Params) -> Keys:
        """`source` and `prompts`: the folders of the resample and the prompts stage."""
        measuring = params.evaluate.model_dump(mode="json", exclude={"bootstrap", "confidence", "headline"})  # those are the report's
        shared = {"cohort": params.cohort.name, "labels": task.labels, "modalities": task.modalities, "evaluate": measuring,
                  "prompts": sha256(Path(prompts) / "prompts.json"), "backbone": task.backbone.fingerprint, "precision": params.embed.precision,
                  "libraries": {name: version(name) for name in LIBRARIES}}
        images = {case_id(*names): _digest(rows[IMAGE_FACTS].astype(str).sort_values(IMAGE_FACTS).to_numpy().tolist())
                  for names, rows in read_manifest(source).groupby(["subject", "session"])}
        return cls(shared, images)

    def of(self, fit: Fit) -> str:
        """The key of one fit, 16 hexadecimal digits."""
        job = fit.job
        split = {name: [(case, self.images[case]) for case in ids] for name, ids in job.split.ids().items()}
        package = params_model(job.system).__module__.rpartition(".")[0]
        return _digest({**self.shared, "system": package, "params": job.params, "protocol": job.protocol, "shots": job.shots, "site": job.site,
                        "seed": job.seed, "split": split, "calibration_from": job.split.calibration_from, "overlays": fit.overlays,
                        "subsets": fit.subsets, **({"shuffled": fit.shuffled} if fit.shuffled else {}), "code": code_hash(package)})[:16]


@cache
def code_hash(package: str, common: tuple[str, ...] = COMMON) -> str:
    """A hash of the code that fitting and measuring a system of `package` may run; `common`: modules that do so."""
    found: set[str] = set()
    waiting = [*common, f"{package}.system", f"{package}.params"]
    while waiting:
        if (module := waiting.pop()) not in found:
            found.add(module)
            waiting += sorted(imports(module) - BY_VALUE - found)
    return _digest({module: ast.dump(_tree(module)) for module in sorted(found)})


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of the project that `module` imports, those inside functions too."""
    return frozenset(name for name in _named(_tree(module)) if name.split(".")[0] == "pipelines" and _file(name).is_file())


def _named(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # a name may be a module, too


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _tree(module: str) -> ast.AST:
    return ast.parse(_file(module).read_text())


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
