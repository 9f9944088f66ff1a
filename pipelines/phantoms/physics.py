"""What a scanner measures in a tissue: relaxation and density, contrast agent, signal equations, tracer uptake.

Sources. T1 and T2 of white matter, grey matter, blood and muscle: Stanisz et al., MRM 54:507 (2005). Fat and marrow: de Bazelaire et al.,
Radiology 230:652 (2004). CSF T1: Rooney et al., MRM 57:308 (2007). Proton density relative to CSF: BrainWeb, Kwan et al., IEEE TMI
18:1085 (1999). Tumour and oedema: within the ranges of Just and Thelen, Radiology 169:779 (1988), lengthened at 3 T as the tissue they
grow in. Relaxivity of gadopentetate in plasma: Rohrer et al., Invest Radiol 40:715 (2005). FET uptake relative to healthy brain: the
joint EANM/EANO/RANO guideline, Law et al., EJNMMI 46:540 (2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from pipelines.phantoms.anatomy import TUMOUR, Head, Tissue, smooth_noise

#: tissue -> (T1 at 1.5 T, T1 at 3 T, T2 at 1.5 T, T2 at 3 T) in ms, proton density (CSF = 1).
RELAXATION: dict[Tissue, tuple[float, float, float, float, float]] = {
    Tissue.AIR: (1000, 1000, 100, 100, 0.0),
    Tissue.SCALP: (343, 382, 58, 68, 1.0),
    Tissue.SKULL: (500, 500, 1, 1, 0.1),
    Tissue.CSF: (4200, 4200, 1800, 1800, 1.0),
    Tissue.GREY: (1124, 1820, 95, 99, 0.86),
    Tissue.WHITE: (884, 1084, 72, 69, 0.77),
    Tissue.VENTRICLE: (4300, 4300, 1900, 1900, 1.0),
    Tissue.EYE: (4000, 4000, 1200, 1200, 1.0),
    Tissue.MUSCLE: (1008, 1412, 44, 50, 1.0),
    Tissue.MARROW: (549, 586, 49, 49, 0.8),
    Tissue.VESSEL: (1441, 1932, 290, 275, 0.35),  # little signal: blood flows out of the slice
    Tissue.GLIOSIS: (1250, 1600, 140, 130, 0.87),
    Tissue.NECROSIS: (2300, 2600, 260, 240, 0.95),
    Tissue.ENHANCING: (1350, 1750, 125, 115, 0.87),
    Tissue.OEDEMA: (1450, 1750, 185, 165, 0.90),
}
#: field strength (T) -> relaxivity r1 and r2 of the contrast agent, 1/(mmol/l * s).
RELAXIVITY = {1.5: (4.1, 4.6), 3.0: (3.7, 5.2)}
#: tissue -> concentration of contrast agent (mmol/l) minutes after a single dose. The brain's barrier keeps it out; tumours: see `draw_biology`.
AGENT_MM = {Tissue.VESSEL: 0.9, Tissue.MUSCLE: 0.12, Tissue.MARROW: 0.06, Tissue.SCALP: 0.02, Tissue.NECROSIS: 0.03, Tissue.OEDEMA: 0.005}
#: tissue -> FET uptake as standardised uptake value; the enhancing part is drawn per subject.
FET_SUV = {Tissue.SCALP: 0.6, Tissue.SKULL: 0.4, Tissue.CSF: 0.5, Tissue.GREY: 1.15, Tissue.WHITE: 0.85, Tissue.VENTRICLE: 0.4, Tissue.EYE: 0.5,
           Tissue.MUSCLE: 1.2, Tissue.MARROW: 0.9, Tissue.VESSEL: 1.9, Tissue.GLIOSIS: 0.85, Tissue.NECROSIS: 0.9, Tissue.OEDEMA: 1.05}
#: relative variation inside a tissue: (features of 9 mm, features of 4 mm).
TEXTURE = {"brain": (0.025, 0.02), "tumour": (0.14, 0.08), "rest": (0.10, 0.08)}
HALF_LIFE_F18_S = 6586.2


@dataclass(frozen=True)
class Timing:
    """What a technologist sets: spin echo, inversion recovery or spoiled gradient echo, and its times."""

    kind: Literal["se", "ir", "gre"]
    tr_ms: float
    te_ms: float
    ti_ms: float = 0.0
    flip_deg: float = 90.0


@dataclass(frozen=True)
class Biology:
    """What differs between subjects besides shape."""

    agent_mm: float  # contrast agent in the enhancing part
    oedema: float  # 0 is healthy tissue, 1 fully oedematous
    oedema_reach_mm: float  # over which it fades
    fet_suv: float  # uptake of the enhancing part
    tissue_scale: np.ndarray  # (tissues, 3) relative change of T1, T2, density


@dataclass(frozen=True)
class Maps:
    """Relaxation times (ms), proton density and contrast agent (mmol/l) of every voxel, before and without regard to any sequence."""

    t1_ms: np.ndarray
    t2_ms: np.ndarray
    density: np.ndarray
    agent_mm: np.ndarray
    field_t: float

    def with_agent(self) -> Maps:
        """The same tissue after injection: rates rise by relaxivity times concentration."""
        r1, r2 = RELAXIVITY[self.field_t]
        t1 = 1 / (1 / self.t1_ms + r1 * self.agent_mm / 1000)
        t2 = 1 / (1 / self.t2_ms + r2 * self.agent_mm / 1000)
        return Maps(t1, t2, self.density, self.agent_mm, self.field_t)


def draw_biology(rng: np.random.Generator) -> Biology:
    """One tumour in four takes up almost no contrast agent; uptake of tracer does not follow that of the agent."""
    faint = rng.random() < 0.25
    return Biology(agent_mm=rng.uniform(0.02, 0.12) if faint else rng.uniform(0.22, 0.8), oedema=rng.uniform(0.55, 1.0),
                   oedema_reach_mm=rng.uniform(12, 40), fet_suv=rng.uniform(1.6, 4.2), tissue_scale=1 + rng.normal(0, 0.025, (len(Tissue), 3)))


def tissue_maps(healthy: Head, labels: np.ndarray, biology: Biology, field_t: float, rng: np.random.Generator) -> Maps:
    """Relaxation, density and contrast agent of every voxel of `labels`; `healthy` says what the tumour grew over."""
    strong, spacing_mm = field_t > 2, healthy.spacing_mm
    table = np.array([[row[strong], row[2 + strong], row[4]] for row in (RELAXATION[t] for t in Tissue)], np.float32)
    table *= biology.tissue_scale.astype(np.float32)
    agent = np.array([AGENT_MM.get(t, 0.0) for t in Tissue], np.float32)
    agent[Tissue.ENHANCING] = biology.agent_mm
    coarse, fine = (smooth_noise(rng, labels.shape, spacing_mm, scale) for scale in (9, 4))
    texture = 1 + _texture_table(0)[labels] * coarse + _texture_table(1)[labels] * fine
    t1, t2, density = (table[:, i][labels] for i in range(3))
    box = tumour_box(labels, round(4 / spacing_mm))
    share = oedema_share(labels[box], biology, coarse[box], spacing_mm)
    for values, column in ((t1, 0), (t2, 1), (density, 2)):
        under = table[:, column][healthy.labels[box]]
        values[box] = np.where(labels[box] == Tissue.OEDEMA, under + share * (values[box] - under), values[box])
    uneven = np.exp(0.5 * smooth_noise(rng, labels.shape, spacing_mm, 6))
    concentration = agent[labels] * np.where(np.isin(labels, TUMOUR), uneven, 1)
    return Maps(t1 * texture, t2 * np.clip(texture, 0.5, None), density * np.clip(1 + (texture - 1) / 3, 0.6, 1.3), concentration, field_t)


def oedema_share(labels: np.ndarray, biology: Biology, noise: np.ndarray, spacing_mm: float) -> np.ndarray:
    """How oedematous a voxel is, 0 to 1: strongest beside the core, patchy, fading with distance."""
    core = np.isin(labels, (Tissue.NECROSIS, Tissue.ENHANCING))
    distance = ndimage.distance_transform_edt(~core, sampling=spacing_mm)
    return np.clip(biology.oedema * (0.5 + 0.5 * np.exp(-distance / biology.oedema_reach_mm)) * (1 + 0.25 * noise), 0.35, 1.0).astype(np.float32)


def tumour_box(labels: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """The smallest box around the tumour, `margin` voxels wider."""
    found = ndimage.find_objects((labels >= Tissue.NECROSIS).astype(np.uint8))
    if not found:
        return tuple(slice(0, 0) for _ in labels.shape)
    return tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in found[0])


def _texture_table(scale: int) -> np.ndarray:
    kind = {Tissue.GREY: "brain", Tissue.WHITE: "brain", Tissue.CSF: "brain", Tissue.VENTRICLE: "brain", Tissue.EYE: "brain",
            Tissue.NECROSIS: "tumour", Tissue.ENHANCING: "tumour", Tissue.OEDEMA: "tumour"}
    return np.array([TEXTURE[kind.get(tissue, "rest")][scale] for tissue in Tissue], np.float32)


def spin_echo(maps: Maps, tr_ms: float, te_ms: float) -> np.ndarray:
    """M0 (1 - exp(-TR/T1)) exp(-TE/T2), for TE much shorter than TR."""
    return maps.density * (1 - np.exp(-tr_ms / maps.t1_ms)) * np.exp(-te_ms / maps.t2_ms)


def inversion_recovery(maps: Maps, tr_ms: float, te_ms: float, ti_ms: float) -> np.ndarray:
    """Magnitude of an inversion-prepared spin echo, M0 |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2); FLAIR when TI nulls CSF."""
    return maps.density * np.abs(1 - 2 * np.exp(-ti_ms / maps.t1_ms) + np.exp(-tr_ms / maps.t1_ms)) * np.exp(-te_ms / maps.t2_ms)


def null_ti_ms(t1_ms: float, tr_ms: float) -> float:
    """The inversion time at which tissue of `t1_ms` gives no signal: T1 (ln 2 - ln(1 + exp(-TR/T1)))."""
    return float(t1_ms * (np.log(2) - np.log1p(np.exp(-tr_ms / t1_ms))))


def gradient_echo(maps: Maps, tr_ms: float, te_ms: float, flip_deg: float) -> np.ndarray:
    """Spoiled gradient echo (Ernst): M0 sin a (1 - E1) / (1 - E1 cos a) exp(-TE/T2*), with T2* taken as half of T2."""
    angle, e1 = np.deg2rad(flip_deg), np.exp(-tr_ms / maps.t1_ms)
    return maps.density * np.sin(angle) * (1 - e1) / (1 - e1 * np.cos(angle)) * np.exp(-2 * te_ms / maps.t2_ms)


def signal(maps: Maps, timing: Timing) -> np.ndarray:
    """The signal of one sequence, by its kind."""
    if timing.kind == "se":
        return spin_echo(maps, timing.tr_ms, timing.te_ms)
    if timing.kind == "ir":
        return inversion_recovery(maps, timing.tr_ms, timing.te_ms, timing.ti_ms)
    return gradient_echo(maps, timing.tr_ms, timing.te_ms, timing.flip_deg)


def fet_uptake(labels: np.ndarray, biology: Biology, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Tracer uptake of every voxel as SUV, uneven within the tumour."""
    table = np.array([FET_SUV.get(tissue, 0.02) for tissue in Tissue], np.float32)
    table[Tissue.ENHANCING] = biology.fet_suv
    uneven = np.exp(0.3 * smooth_noise(rng, labels.shape, spacing_mm, 10))
    even = 1 + 0.06 * smooth_noise(rng, labels.shape, spacing_mm, 15)
    return table[labels] * np.where(labels == Tissue.ENHANCING, uneven, even)


def pet_image(suv: np.ndarray, voxel_mm: tuple[float, float, float], fwhm_mm: float, counts_per_suv: float, rng: np.random.Generator) -> np.ndarray:
    """Uptake as a PET camera shows it: blurred by the point-spread function, counted (Poisson), filtered as reconstructions are; SUV."""
    to_sigma = 1 / (2 * np.sqrt(2 * np.log(2)))
    seen = ndimage.gaussian_filter(suv, [fwhm_mm * to_sigma / mm for mm in voxel_mm])
    counted = rng.poisson(np.maximum(seen, 0) * counts_per_suv) / counts_per_suv
    return ndimage.gaussian_filter(counted, [3.0 * to_sigma / mm for mm in voxel_mm])


def decay_factor(seconds: float, half_life_s: float = HALF_LIFE_F18_S) -> float:
    """The share of activity left after `seconds`."""
    return float(2.0 ** (-seconds / half_life_s))


def suv_scale(weight_kg: float, dose_bq: float, seconds_since_injection: float) -> float:
    """Bq/ml for one SUV (body weight): decayed dose over grams of body, 1 g being 1 ml."""
    return dose_bq * decay_factor(seconds_since_injection) / (weight_kg * 1000)
