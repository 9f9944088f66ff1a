"""Workspaces of two sites with tiny cases, as the stages before adaptation leave them: site b's FLAIR is darker where site a's is bright."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from tiny_cohort import tiny_case
from tiny_stages import write_resampled, write_stages

from pipelines.adapt.stage import adapt
from pipelines.cohort import Case
from pipelines.judge.stage import judge
from pipelines.outputs import write_json
from pipelines.params import load_params
from pipelines.sites.folders import Folders
from pipelines.sites.lesson import make_lesson
from pipelines.sites.roles import extend, read_roles, write_roles

SYSTEM = {"system": "random-forest", "rehearsal": 2, "params": {"trees": 12, "max_depth": 6, "sigmas": [0.7, 1.6], "voxels_per_class": 300}}
CONTRAST = {"a": 1.0, "b": -1.0}


def case(site: str, number: int) -> Case:
    """Patient `number` of a site; b's scanner shows FLAIR the other way round."""
    tiny = tiny_case(number + 100 * (site == "b"), site)
    return replace(tiny, subject=f"{site}{number}", images=dict(tiny.images) | {"FLAIR": CONTRAST[site] * tiny.images["FLAIR"]}, tokens={})


def wrong(one: Case) -> Case:
    """The same images with the label of another place: far from the lesion, as large, inside the head."""
    return replace(one, dseg=np.roll(one.dseg, (0, 0, 19), (0, 1, 2)) * one.brain)


class Sites:
    """Two workspaces below `root` that share params and a backbone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_stages(root / "first", [case("a", 0)])
        content = yaml.safe_load((root / "first" / "params.yaml").read_text())
        content["service"] |= {"adapt": SYSTEM, "sites": {"a": {}, "b": {}}}
        (root / "params.yaml").write_text(yaml.safe_dump(content))

    @property
    def params(self):
        return load_params(self.root / "params.yaml")

    def folders(self, site: str) -> Folders:
        return Folders(self.root / "sites" / site)

    def receive(self, site: str, cases: Sequence[Case]) -> None:
        """Bring a site's data up to exactly these cases, as ingest to embed would, and give roles to the new ones."""
        from pipelines.backbones import load_backbone
        from pipelines.embed.stage import embed
        from pipelines.prompts.stage import write_prompts

        folders = self.folders(site)
        shutil.rmtree(folders.resampled, ignore_errors=True)
        write_resampled(folders.resampled, cases)
        write_prompts(folders.resampled, folders.prompts, self.params)
        embed(folders.resampled, folders.prompts, folders.embeddings, load_backbone(self.params.embed.backbone))
        write_roles(folders.roles, extend(read_roles(folders.roles), [one.subject for one in cases], self.params.service.roles))

    def learn(self, site: str, *earlier: str) -> dict:
        """Adapt and judge. Returns the verdict."""
        folders = self.folders(site)
        write_json(folders.lesson, make_lesson(site, folders, {name: f"sites/{name}" for name in earlier}, 2, self.root))
        served = folders.champion.is_dir()
        write_json(folders.rival, {"model": "m", "version": 1} if served else {"model": None, "version": None})
        adapt(folders, self.params)
        return judge(folders, self.params)

    def promote(self, site: str, *also: str) -> None:
        """The challenger becomes the champion that serves the site, and `also` others."""
        for name in (site, *also):
            shutil.rmtree(self.folders(name).champion, ignore_errors=True)
            shutil.copytree(self.folders(site).challenger, self.folders(name).champion)
            write_json(self.folders(name).champion / "champion.json", {"model": "m", "version": 1, "source": site, "backbone":
                                                                       self.params.embed.backbone})
