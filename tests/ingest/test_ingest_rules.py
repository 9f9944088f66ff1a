"""The project's own rules on series as scanners name them, and the refusal of SUV that cannot be trusted."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from pipelines.cohort import read_manifest
from pipelines.errors import Refused
from pipelines.ingest.headers import Header, plain
from pipelines.ingest.rules import classify, known_words
from pipelines.ingest.series import Series
from pipelines.ingest.source import SourceFile
from pipelines.ingest.uptake import suv_factor

BY_NAME = {
    "T1w": ["T1 SPACE sag", "t1_mprage_sag_p2_iso", "AX T1 SE slice", "T1 pre contrast", "T1pre_reg", "t1_se_tra_native", "T1w non-contrast"],
    "ceT1w": ["T1post", "T1 +C", "AX T1 POST GD", "t1_se_tra_KM", "T1CE", "sT1W_3D_TFE_gado", "preop T1 post", "post T1 SPGR"],
    "FLAIR": ["t2_tirm_tra_dark-fluid", "Ax T2 FLAIR"], "T2w": ["T2W_TSE"], "dT1": ["dT1"], "ADC": ["ADC_reg", "ep2d_diff_ADC"],
    "sRCBV": ["sRCBV_reg"], "nRCBV": ["nRCBV_reg"], "nCBF": ["nCBF_reg"],
}
SKIPPED = ["localizer", "3-plane scout", "SWI_Images", "AX DWI b1000", "T2* GRE", "ep2d perfusion", "TOF_3D"]
BY_TIMING = [({"TR": 9000, "TE": 120, "TI": 2500}, "FLAIR"), ({"TR": 4000, "TE": 100}, "T2w"), ({"TR": 500, "TE": 12}, "T1w"),
             ({"TR": 500, "TE": 12, "agent": "Gadovist"}, "ceT1w"), ({"TR": 500, "TE": 12, "agent": "NO"}, "T1w")]


def series(make_series, description: str, times: dict | None = None) -> Series:
    """A series of one file with this description and these times (and contrast agent)."""
    times = times or {}
    tags = {name: times[key] for key, name in (("TR", "RepetitionTime"), ("TE", "EchoTime"), ("TI", "InversionTime"), ("agent", "ContrastBolusAgent"))
            if key in times}
    dataset = make_series(np.zeros((1, 2, 2)), description=description, tags=tags).datasets()[0]
    return Series([Header(SourceFile(None, ("x",)), plain(dataset))])


@pytest.mark.parametrize(("description", "modality"), [(name, modality) for modality, names in BY_NAME.items() for name in names])
def test_descriptions_decide(make_series, params, description, modality):
    assert classify(series(make_series, description), params.ingest.rules).modality == modality


@pytest.mark.parametrize("description", SKIPPED)
def test_series_of_no_use_are_skipped(make_series, params, description):
    assert classify(series(make_series, description), params.ingest.rules).skip


@pytest.mark.parametrize(("times", "modality"), BY_TIMING, ids=str)
def test_timing_decides_where_the_description_says_nothing(make_series, params, times, modality):
    assert classify(series(make_series, "AX SE 5mm", times), params.ingest.rules).modality == modality


def test_unknown_series_is_refused_with_what_was_seen(make_series, params):
    with pytest.raises(Refused) as refused:
        classify(series(make_series, "Smith T3 axial", {"TE": 45}), params.ingest.rules)
    assert refused.value.code == "unknown-modality"
    assert "words '… axial', MR, MR Image Storage, TR none, TE 45 ms" in refused.value.reason
    assert "ingest.rules" in refused.value.remedy


def test_only_known_words_leave_a_description():
    assert known_words("AX T1 (Dr. Smith) for John post") == "ax t1 … post"
    assert known_words("") == ""


def test_activity_becomes_uptake(make_series, voxels, pet_tags, convert, tmp_path):
    make_series(voxels, description="FET", pet=True, tags=pet_tags).write(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out")
    row = read_manifest(tmp_path / "out").iloc[0]
    suv = nibabel.load(tmp_path / "out" / row.path).get_fdata()
    expected = voxels * 2.5 * 70_000 / 50e6  # half of 100 MBq is left after one half-life
    np.testing.assert_allclose(np.sort(suv, axis=None), np.sort(expected, axis=None), rtol=1e-4)
    assert row.modality == "PET"


def agent(tags: dict, **changes) -> dict:
    for name, value in changes.items():
        setattr(tags["RadiopharmaceuticalInformationSequence"][0], name, value)
    return tags


@pytest.mark.parametrize(("change", "words"), [
    (lambda tags: {**tags, "Units": "CNTS"}, "Units are CNTS"), (lambda tags: {**tags, "PatientWeight": None}, "PatientWeight"),
    (lambda tags: {**tags, "CorrectedImage": ["ATTN"]}, "ATTN and DECY"), (lambda tags: {**tags, "DecayCorrection": "NONE"}, "DecayCorrection"),
    (lambda tags: agent(tags, RadionuclideTotalDose=None), "RadionuclideTotalDose"), (lambda tags: agent(tags, RadionuclideHalfLife=0), "HalfLife"),
    (lambda tags: agent(tags, RadiopharmaceuticalStartDateTime="20200102100000"), "half-lives apart"),
    (lambda tags: {**tags, "RadiopharmaceuticalInformationSequence": []}, "0 items"),
], ids=["units", "weight", "corrections", "decay", "dose", "half-life", "times", "agent"])
def test_uptake_that_cannot_be_known_is_refused(make_series, pet_tags, change, words):
    header = Header(SourceFile(None, ("x",)), plain(make_series(np.zeros((1, 2, 2)), pet=True, tags=change(pet_tags)).datasets()[0]))
    with pytest.raises(Refused) as refused:
        suv_factor(Series([header]))
    assert refused.value.code == "pet-suv"
    assert words in refused.value.reason
