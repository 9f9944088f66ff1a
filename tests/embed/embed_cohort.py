"""A resampled cohort of tiny images and a tiny backbone, as the embed stage finds them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch
import yaml

from pipelines.backbones.atlas.config import AtlasConfig
from pipelines.backbones.atlas.model import Towers, save_towers
from pipelines.cohort import write_manifest
from pipelines.outputs import sha256

ROOT = Path(__file__).parents[2]
SHAPE, AXIS = (18, 22, 3), 2
CONFIG = AtlasConfig(widths=(8, 8, 8, 8), fine=8, coarse=8, dim=16, text_buckets=64, text_layers=1, text_heads=2)


def model(folder: Path, seed: int = 0, **changed: int) -> Path:
    torch.manual_seed(seed)
    config = CONFIG.model_copy(update=changed)
    save_towers(folder, Towers(config), config)
    return folder


def add_images(source: Path, rows: list[dict], subject: str, modalities: tuple[str, ...] = ("FLAIR", "T1w"), *,
               shape: tuple[int, ...] = SHAPE, scale: float = 1.0) -> None:
    """One case as the resample stage writes it, without a manifest."""
    rng = np.random.default_rng(int(subject))
    for kind, modality in [*(("image", name) for name in modalities), ("mask", "brain")]:
        path = Path(f"sub-{subject}") / "anat" / f"sub-{subject}_{modality}.nii.gz"
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        array = scale * rng.standard_normal(shape).astype(np.float32) if kind == "image" else np.ones(shape, np.uint8)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 5, 1])), source / path)
        rows.append({"subject": subject, "session": "", "site": "A", "kind": kind, "modality": modality, "path": path.as_posix(),
                     "sha256": sha256(source / path), "shape": "x".join(map(str, shape)), "spacing_mm": "1.5x1.5x5", "slice_axis": AXIS})


def add_case(source: Path, rows: list[dict], subject: str, *args, **kwargs) -> None:
    """One case and the manifest with it."""
    add_images(source, rows, subject, *args, **kwargs)
    write_manifest(source, rows)


def write_prompts(folder: Path, texts: list[str]) -> None:
    (folder / "prompts.json").write_text(json.dumps({"FLAIR": {"oedema": {"A": texts}}}))


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def write_params(folder: Path, backbone: str) -> Path:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["embed"] = {"backbone": backbone, "jobs": 1}
    content["experiments"] = {}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def command(*words: object, **kwargs) -> subprocess.Popen:
    """`python -m pipelines.embed WORDS` as a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "pipelines.embed", *map(str, words)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **kwargs)
