"""Tiny cases as the stages before training leave them on disk, with a backbone small enough to encode them in a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import yaml
from tiny_cohort import LABELS, SPACING_MM, tiny_case

from pipelines.cohort import Case, bids_path, write_manifest
from pipelines.outputs import sha256
from pipelines.params import DEFAULT, load_params


def cases_at(**counts: int) -> list[Case]:
    """`counts` cases of each site; all differ."""
    sites = [site for site, count in counts.items() for _ in range(count)]
    return [replace(tiny_case(number, site), subject=f"{site}{number}") for number, site in enumerate(sites)]


def write_resampled(folder: Path, cases: Sequence[Case]) -> None:
    """Cases as the resample stage would leave them."""
    rows = []
    affine = np.diag([*SPACING_MM[1:], SPACING_MM[0], 1])
    for case in cases:
        volumes = [("image", name, "", image) for name, image in case.images.items()]
        volumes += [("label", "dseg", "derivatives/labels", case.dseg), ("mask", "brain", "derivatives/masks", case.brain)]
        for kind, name, parent, array in volumes:
            path = Path(parent) / bids_path(case.subject, "", "anat", name)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            volume = np.moveaxis(array, 0, 2)
            nibabel.save(nibabel.Nifti1Image(volume, affine), folder / path)
            rows.append({"subject": case.subject, "site": case.site, "kind": kind, "modality": name, "path": str(path), "slice_axis": 2,
                         "sha256": sha256(folder / path), "shape": "x".join(map(str, volume.shape)), "spacing_mm": "1.5x1.5x5.0"})
    write_manifest(folder, rows)


def write_stages(folder: Path, cases: Sequence[Case], **sections: dict) -> Path:
    """Write resampled/, prompts/, embeddings/ and a params.yaml, in which `sections` add to the project's. Returns `folder`."""
    from pipelines.backbones import load_backbone
    from pipelines.backbones.atlas.config import AtlasConfig
    from pipelines.backbones.atlas.model import Towers, save_towers
    from pipelines.embed.stage import embed
    from pipelines.prompts.stage import write_prompts

    config = AtlasConfig(widths=(8, 8, 8, 8), fine=8, coarse=8, dim=16, text_buckets=64, text_layers=1, text_heads=2)
    save_towers(folder / "backbone", Towers(config), config)
    content = yaml.safe_load(DEFAULT.read_text())
    content["cohort"] |= {"labels": [{"name": name, "segments": [name], "text": name} for name in LABELS], "targets": "all"}
    content["embed"]["backbone"] = f"atlas:{folder / 'backbone'}"
    for name, section in sections.items():
        content[name] = section if name in ("experiments", "sweep") else content[name] | section
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    params = load_params(folder / "params.yaml")
    write_resampled(folder / "resampled", cases)
    write_prompts(folder / "resampled", folder / "prompts", params)
    embed(folder / "resampled", folder / "prompts", folder / "embeddings", load_backbone(params.embed.backbone))
    return folder


def stage_inputs(folder: Path, params: str = "params.yaml") -> dict:
    """What the train stage and the sweep take from a folder of `write_stages`."""
    return {"source": folder / "resampled", "prompts": folder / "prompts", "embeddings": folder / "embeddings",
            "params": load_params(folder / params)}


def arguments(folder: Path) -> list[str]:
    """The same on a command line."""
    return [f"--{name}={folder / place}" for name, place in
            (("source", "resampled"), ("prompts", "prompts"), ("embeddings", "embeddings"), ("params", "params.yaml"))]
