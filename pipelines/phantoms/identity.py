"""Invented people and visits, so that de-identification has something to remove. None of them exists."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np
from pydicom.uid import generate_uid

from pipelines.phantoms.sites import Site

FAMILY = ("Abelroth", "Brindlemoor", "Castellwig", "Dunmarrow", "Eskerling", "Fennwater", "Galdersby", "Hollinquist", "Ibbermann", "Jorvenik",
          "Kestrelby", "Lindqvaal", "Morrowind", "Nettlebeck", "Ostergaven", "Pelgrimsma", "Quenneby", "Rosenfurt", "Sandelmann", "Tessaroy",
          "Uhlenkamp", "Vandermeij", "Wintershal", "Yarborne", "Zellinger", "Tanemori", "Kazehara", "Minasaki")
GIVEN = {"F": ("Alva", "Brunhild", "Clio", "Dorthe", "Emiko", "Fenna", "Greta", "Hanae", "Ilse", "Juna", "Katrijn", "Liv"),
         "M": ("Arvid", "Basil", "Corin", "Daan", "Edvin", "Falk", "Goro", "Hendrik", "Ivo", "Joris", "Kenta", "Lennart")}
PHYSICIAN = ("Marlowe^Petra", "Oakenfeld^Simon", "Teuling^Anke", "Hagiwara^Rei", "Brandtner^Uwe", "Ashgrove^Nell")


@dataclass(frozen=True)
class Visit:
    """One invented patient and the one study they came for. `entropy` makes every UID of the visit."""

    name: str
    patient_id: str
    sex: str
    born: dt.date
    age: int
    weight_kg: float
    height_m: float
    accession: str
    physician: str
    operator: str
    start: dt.datetime
    entropy: tuple[str, ...]

    def uid(self, *what: object) -> str:
        """A UID that depends on the visit and on `what`, and on nothing else."""
        return generate_uid(entropy_srcs=[*self.entropy, *(str(item) for item in what)])

    @property
    def folder(self) -> str:
        """How an export names the patient's folder."""
        return f"{self.patient_id}_{self.name.replace('^', '_')}"


def invent(site: Site, index: int, seed: int, rng: np.random.Generator) -> Visit:
    """The patient `index` of `site`. Equal arguments make the same person."""
    sex = str(rng.choice(["F", "M"]))
    start = dt.datetime(2019, 1, 7, 8) + dt.timedelta(days=int(rng.integers(1500)), minutes=int(rng.integers(540)), seconds=int(rng.integers(60)))
    age = int(np.clip(rng.normal(55, 14), 21, 84))
    number = int(rng.integers(10, 900)) * 1000 + index  # no two patients of a site share a number
    return Visit(
        name=f"{rng.choice(FAMILY)}^{rng.choice(GIVEN[sex])}",
        patient_id=site.patient_id.format(number),
        sex=sex,
        born=start.date() - dt.timedelta(days=int(age * 365.25 + rng.integers(1, 360))),
        age=age,
        weight_kg=round(float(np.clip(rng.normal(76, 12), 46, 120)), 1),
        height_m=round(float(np.clip(rng.normal(1.72, 0.09), 1.5, 2.0)), 2),
        accession=f"{site.name[-1].upper()}{start:%y%m%d}{number % 10_000:04d}",
        physician=str(rng.choice(PHYSICIAN)),
        operator=str(rng.choice(PHYSICIAN)).split("^")[0].lower(),
        start=start,
        entropy=("phantom", str(seed), site.name, str(index)),
    )
