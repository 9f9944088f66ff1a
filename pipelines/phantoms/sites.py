"""The four invented hospitals. They differ as real ones do: field strength, protocol, planes, coil, noise, and how they name a series.

Descriptions range from telling (`t2_tirm_tra_dark-fluid`) to useless (`AX SE 5mm`), where only the timing says what a series is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.phantoms.physics import Timing


@dataclass(frozen=True)
class Series:
    """One MR protocol. `gain` scales the signal to stored values."""

    description: str
    protocol: str
    timing: Timing
    pixel_mm: float
    matrix: int
    slices: int
    thickness_mm: float
    step_mm: float
    gain: float
    snr: float
    scanning_sequence: str
    sequence_name: str


@dataclass(frozen=True)
class Pet:
    """A PET camera. `same_frame`: it shares the MR's coordinates (PET/MR); otherwise the patient lay down a second time."""

    description: str
    model: str
    same_frame: bool
    fwhm_mm: float
    counts_per_suv: float
    pixel_mm: float
    matrix: int
    slices: int
    step_mm: float
    dose_mbq: float
    uptake_min: float


@dataclass(frozen=True)
class Site:
    """One hospital and its scanner."""

    name: str
    institution: str
    address: str
    manufacturer: str
    model: str
    software: str
    serial: str
    station: str
    field_t: float
    tilt_deg: tuple[float, float, float]
    tilt_sd_deg: float
    coil: float
    study_description: str
    patient_id: str  # pattern of the hospital's numbers
    file_name: str  # pattern of exported files
    series: dict[str, Series]
    pet: Pet | None = None
    rescale: bool = False  # stores values with a slope and an intercept
    private: dict[tuple[int, str], list[tuple[int, str, str]]] = field(default_factory=dict)  # (group, creator) -> (element, VR, value)


def _siemens() -> Site:
    geometry = {"pixel_mm": 1.25, "matrix": 184, "slices": 34, "thickness_mm": 4.0, "step_mm": 4.4}
    t1 = Timing("se", 580, 9.1)
    return Site(
        "site-a", "Klinikum Falkenried", "Am Weidenbruch 14, Falkenried", "SIEMENS", "Biograph_mMR", "syngo MR E11", "51217", "MRC51217", 3.0,
        tilt_deg=(-9.0, 1.0, 0.0), tilt_sd_deg=3.0, coil=0.16, study_description="Kopf^Tumor mit KM", patient_id="{:08d}",
        file_name="{patient}.MR.{series:04d}.{instance:04d}.dcm",
        series={
            "T1w": Series("t1_se_tra", "t1_se_tra", t1, gain=1500, snr=38, scanning_sequence="SE", sequence_name="*se2d1", **geometry),
            "T2w": Series("t2_tse_tra", "t2_tse_tra", Timing("se", 6200, 98, flip_deg=150), gain=1100, snr=34, scanning_sequence="SE",
                          sequence_name="*tse2d1_15", **geometry),
            "FLAIR": Series("t2_tirm_tra_dark-fluid", "t2_tirm_tra_dark-fluid", Timing("ir", 9000, 84, 2480, flip_deg=150), gain=2500, snr=26,
                            scanning_sequence="SE\\IR", sequence_name="*tir2d1_16", **geometry),
            "ceT1w": Series("t1_se_tra_KM", "t1_se_tra", t1, gain=1500, snr=38, scanning_sequence="SE", sequence_name="*se2d1", **geometry)},
        pet=Pet("HEAD_FET_20MIN_AC Images", "Biograph_mMR", True, 4.9, 220, 2.09, 128, 44, 4.06, 185, 20),
        private={(0x0029, "SIEMENS CSA HEADER"): [(0x08, "CS", "IMAGE NUM 4"), (0x09, "LO", "20190814")],
                 (0x0051, "SIEMENS MR HEADER"): [(0x0C, "LO", "FoV 230*230"), (0x0F, "LO", "HE1-4"), (0x19, "LO", "{name}")]})


def _ge() -> Site:
    geometry = {"pixel_mm": 1.72, "matrix": 140, "slices": 24, "thickness_mm": 5.0, "step_mm": 6.0}
    t1 = Timing("se", 450, 14)
    return Site(
        "site-b", "Harrow Vale General Hospital", "2 Infirmary Lane, Harrow Vale", "GE MEDICAL SYSTEMS", "Signa HDxt",
        "24\\LX\\MR Software release:HD16.0", "HVGH15T2", "hvmr02", 1.5,
        tilt_deg=(2.0, 0.0, 0.0), tilt_sd_deg=2.0, coil=0.09, study_description="BRAIN W/WO", patient_id="HV{:06d}",
        file_name="i{index:07d}.MRDC.{instance}.dcm",
        series={
            "T1w": Series("AX SE 5mm", "BRAIN TUMOR/1", t1, gain=4200, snr=20, scanning_sequence="SE", sequence_name="se", **geometry),
            "T2w": Series("AX FSE 5mm", "BRAIN TUMOR/1", Timing("se", 4300, 104), gain=3300, snr=22, scanning_sequence="SE",
                          sequence_name="fse", **geometry),
            "FLAIR": Series("AX IR 5mm", "BRAIN TUMOR/1", Timing("ir", 8800, 120, 2250), gain=9000, snr=17, scanning_sequence="SE\\IR",
                            sequence_name="fseir", **geometry),
            "ceT1w": Series("AX SE 5mm", "BRAIN TUMOR/1", t1, gain=4200, snr=20, scanning_sequence="SE", sequence_name="se", **geometry)},
        private={(0x0009, "GEMS_IDEN_01"): [(0x01, "LO", "GE_GENESIS_FF"), (0x04, "SH", "SIGNA")],
                 (0x0025, "GEMS_SERS_01"): [(0x1A, "LO", "{name}")]})


def _philips() -> Site:
    geometry = {"pixel_mm": 1.45, "matrix": 160, "slices": 44, "thickness_mm": 3.0, "step_mm": 3.3}
    t1 = Timing("gre", 230, 2.3, flip_deg=75)
    return Site(
        "site-c", "Universitair Centrum Meerdijk", "Singelkade 101, Meerdijk", "Philips Medical Systems", "Achieva", "5.3.1\\5.3.1.3",
        "17482", "ACH-2", 3.0,
        tilt_deg=(12.0, 0.0, 1.5), tilt_sd_deg=4.0, coil=0.22, study_description="MR Hersenen tumorprotocol", patient_id="{:07d}",
        file_name="IM_{index:04d}.dcm", rescale=True,
        series={
            "T1w": Series("T1W_FFE", "WIP T1W_FFE SENSE", t1, gain=2400, snr=30, scanning_sequence="GR", sequence_name="FFE", **geometry),
            "T2w": Series("T2W_TSE_tra", "WIP T2W_TSE SENSE", Timing("se", 3000, 80), gain=1500, snr=32, scanning_sequence="SE",
                          sequence_name="TSE", **geometry),
            "FLAIR": Series("FLAIR_longTR", "WIP FLAIR_longTR", Timing("ir", 11000, 125, 2800), gain=4200, snr=22, scanning_sequence="IR",
                            sequence_name="TIR", **geometry),
            "ceT1w": Series("T1W_FFE_GD", "WIP T1W_FFE SENSE", t1, gain=2400, snr=30, scanning_sequence="GR", sequence_name="FFE", **geometry)},
        pet=Pet("FET Brain 20-40 [AC]", "Ingenuity TF PET/CT", False, 6.2, 120, 2.0, 128, 40, 4.0, 200, 20),
        private={(0x2001, "Philips Imaging DD 001"): [(0x0B, "CS", "TRANSVERSAL"), (0x22, "LO", "{physician}")],
                 (0x2005, "Philips MR Imaging DD 001"): [(0x35, "CS", "PIXEL")]})


def _canon() -> Site:
    geometry = {"pixel_mm": 1.8, "matrix": 128, "slices": 23, "thickness_mm": 6.0, "step_mm": 6.5}
    t1 = Timing("gre", 190, 5.5, flip_deg=80)
    return Site(
        "site-d", "Kitahama Memorial Hospital", "3-8-1 Aoshio, Kitahama", "CANON_MEC", "Vantage Titan", "V4.50", "2CB1632147", "KMH-MR1", 1.5,
        tilt_deg=(-18.0, -1.0, 0.0), tilt_sd_deg=3.0, coil=0.12, study_description="Head routine + contrast", patient_id="{:010d}",
        file_name="{series:03d}_{instance:04d}.dcm",
        series={
            "T1w": Series("FE T1 AX", "Brain/tumor", t1, gain=5200, snr=18, scanning_sequence="GR", sequence_name="FE_slt", **geometry),
            "T2w": Series("FASE AX 6mm", "Brain/tumor", Timing("se", 5000, 90), gain=4000, snr=24, scanning_sequence="SE",
                          sequence_name="FSE", **geometry),
            "FLAIR": Series("FLAIR AX", "Brain/tumor", Timing("ir", 8000, 105, 2100), gain=9500, snr=19, scanning_sequence="SE\\IR",
                            sequence_name="FSE+5_IR", **geometry),
            "ceT1w": Series("FE T1 AX CE", "Brain/tumor", t1, gain=5200, snr=18, scanning_sequence="GR", sequence_name="FE_slt", **geometry)},
        private={(0x700D, "TOSHIBA_MEC_MR3"): [(0x00, "CS", "2D"), (0x19, "LO", "{name}")]})


SITES: dict[str, Site] = {site.name: site for site in (_siemens(), _ge(), _philips(), _canon())}
