from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.cohort import frame, write_manifest
from pipelines.errors import DataError, UsageError
from pipelines.params import DEFAULT, Params, load_params
from pipelines.prompts.bank import BACKGROUND_CLASSES
from pipelines.prompts.facts import facts_of, tesla, vendor
from pipelines.prompts.stage import PLACEHOLDERS, phrase, write_prompts


def image(subject: str, site: str, modality: str, **facts) -> dict:
    return {"subject": subject, "session": "", "site": site, "kind": "image", "modality": modality, "sha256": "0" * 64, "shape": "4x4x4",
            "path": f"sub-{subject}/anat/sub-{subject}_{modality}.nii.gz", "spacing_mm": "1x1x1", "slice_axis": 2, **facts}


SIEMENS = {"manufacturer": "SIEMENS", "field_strength_t": 2.8936, "tr_ms": 9000.0, "te_ms": 120.2, "ti_ms": 2500.0}
ROWS = [
    image("a", "north", "FLAIR", **SIEMENS), image("b", "north", "FLAIR", **SIEMENS),
    image("c", "north", "FLAIR", manufacturer="GE MEDICAL SYSTEMS", field_strength_t=1.5, tr_ms=8000.0),
    image("a", "north", "T1w", manufacturer="SIEMENS", field_strength_t=2.8936),
    image("d", "south", "FLAIR"),
    image("a", "north", "brain") | {"kind": "mask", "path": "mask.nii.gz"},
]


def params_with(tmp_path: Path, templates: dict | None = None, labels: list | None = None, disease: str = "glioma") -> Params:
    content = yaml.safe_load(DEFAULT.read_text())
    content["cohort"] |= {"disease": disease, "labels": labels or [{"name": "core", "segments": ["1"], "text": "tumour core"}]}
    content["prompts"]["templates"] = templates or {
        "label": ["{class} on {modality}", "{class} of a {disease}, {modality}, {scanner}", "{modality} with {sequence}: {class}"],
        "healthy": ["{class}, {modality}"], "outside": ["{class}"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    return load_params(tmp_path / "params.yaml")


def images() -> pd.DataFrame:
    table = frame(ROWS)
    return table[table.kind == "image"]


def test_templates_are_filled_with_every_name_of_the_modality_and_the_sites_facts(tmp_path):
    phrasings = phrase(images(), params_with(tmp_path))
    assert phrasings["FLAIR"]["core"]["north"] == [
        "tumour core on FLAIR", "tumour core on fluid-attenuated T2",
        "tumour core of a glioma, FLAIR, 3 T Siemens", "tumour core of a glioma, fluid-attenuated T2, 3 T Siemens",
        "FLAIR with TR 9000 ms, TE 120 ms, TI 2500 ms: tumour core", "fluid-attenuated T2 with TR 9000 ms, TE 120 ms, TI 2500 ms: tumour core"]


def test_a_phrase_with_an_unknown_fact_is_dropped(tmp_path):
    phrasings = phrase(images(), params_with(tmp_path))
    assert phrasings["FLAIR"]["core"]["south"] == ["tumour core on FLAIR", "tumour core on fluid-attenuated T2"]
    assert "tumour core of a glioma, T1, 3 T Siemens" in phrasings["T1w"]["core"]["north"]
    assert not any("with TR" in text for text in phrasings["T1w"]["core"]["north"])


def test_every_modality_has_every_class_at_every_site_without_repetitions(tmp_path):
    phrasings = phrase(images(), params_with(tmp_path))
    assert set(phrasings) == {"FLAIR", "T1w"}
    for classes in phrasings.values():
        assert set(classes) == {"core", *BACKGROUND_CLASSES}
        for sites in classes.values():
            assert set(sites) == {"north", "south"}
            assert all(texts and len(texts) == len(set(texts)) for texts in sites.values())
    assert phrasings["FLAIR"]["outside"]["north"] == ["background outside the head"]  # one text: the template names no modality


def test_articles_fit_what_follows(tmp_path):
    templates = {"label": ["a {modality} image showing {class}"], "healthy": ["a {class}"], "outside": ["{class}"]}
    labels = [{"name": "core", "segments": ["1"], "text": "oedema"}]
    phrasings = phrase(frame([image("a", "north", "ADC"), image("a", "north", "FLAIR")]), params_with(tmp_path, templates, labels))
    assert phrasings["ADC"]["core"]["north"][0] == "an ADC image showing oedema"
    assert phrasings["FLAIR"]["core"]["north"][0] == "a FLAIR image showing oedema"


def test_the_projects_own_templates_fit(tmp_path):
    phrasings = phrase(images(), load_params(DEFAULT))
    assert set(phrasings["FLAIR"]) == {"tumour-core", "oedema", "healthy", "outside"}
    assert not any("{" in text for classes in phrasings.values() for sites in classes.values() for texts in sites.values() for text in texts)


def test_a_modality_absent_at_a_site_has_the_scanner_of_the_others_and_no_sequence():
    table = frame([image("a", "north", "FLAIR", **SIEMENS), image("b", "south", "T1w")])
    facts = facts_of(table, "north", "T1w")
    assert facts.scanner == "3 T Siemens" and facts.sequence == ""


@pytest.mark.parametrize(("name", "short"), [
    ("SIEMENS", "Siemens"), ("Siemens Healthineers", "Siemens"), ("GE MEDICAL SYSTEMS", "GE"), ("Philips Medical Systems", "Philips"),
    ("TOSHIBA", "Toshiba"), ("Other", ""), ("", "")])
def test_vendors_are_called_as_people_call_them(name, short):
    assert vendor(name) == short


@pytest.mark.parametrize(("value", "text"), [(2.8936, "3 T"), (1.494, "1.5 T"), (0.55, "0.55 T"), (7.0, "7 T"), (pd.NA, ""), (0.0, "")])
def test_field_strengths_are_the_nominal_ones(value, text):
    assert tesla(value) == text


@pytest.mark.parametrize(("templates", "message"), [
    ({"label": ["{class} at {hospital}"], "healthy": ["h"], "outside": ["o"]}, r"\{class\} at \{hospital\}.*\{hospital\}; those that exist"),
    ({"label": ["{class"], "healthy": ["h"], "outside": ["o"]}, "cannot be read"),
    ({"label": ["{}"], "healthy": ["h"], "outside": ["o"]}, r"placeholder \{\}"),
    ({"label": ["l"], "healthy": ["h"]}, "no template for 'outside'"),
    ({"label": ["l"], "healthy": ["h"], "outside": []}, "no template for 'outside'"),
    ({"label": ["l"], "healthy": ["h"], "outside": ["o"], "lesion": ["x"]}, "'lesion', which is no kind"),
    ({"label": ["{class}, {sequence}"], "healthy": ["h"], "outside": ["o"]}, "needs a fact"),
])
def test_templates_that_cannot_be_filled_are_refused(tmp_path, templates, message):
    with pytest.raises(UsageError, match=message):
        phrase(images(), params_with(tmp_path, templates))


def test_the_error_names_every_placeholder_there_is(tmp_path):
    with pytest.raises(UsageError) as caught:
        phrase(images(), params_with(tmp_path, {"label": ["{what}"], "healthy": ["h"], "outside": ["o"]}))
    assert all(f"{{{name}}}" in str(caught.value) for name in PLACEHOLDERS)


@pytest.mark.parametrize("names", [("healthy",), ("core", "core")])
def test_class_names_have_to_differ(tmp_path, names):
    with pytest.raises(UsageError, match=f"{names[0]!r}, which another class"):
        phrase(images(), params_with(tmp_path, labels=[{"name": name, "segments": ["1"], "text": "x"} for name in names]))


def test_an_unknown_modality_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"'SWI', which ingest\.modalities"):
        phrase(frame([image("a", "north", "SWI")]), params_with(tmp_path))


def test_files_are_the_same_every_time_and_agree(tmp_path):
    (tmp_path / "in").mkdir()
    write_manifest(tmp_path / "in", ROWS)
    for name in ("one", "two"):
        write_prompts(tmp_path / "in", tmp_path / name, params_with(tmp_path))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["prompts.json", "prompts.tsv"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    phrasings = json.loads((tmp_path / "one" / "prompts.json").read_text())
    flat = {(m, c, s, text) for m, classes in phrasings.items() for c, sites in classes.items() for s, texts in sites.items() for text in texts}
    assert flat == set(pd.read_csv(tmp_path / "one" / "prompts.tsv", sep="\t").itertuples(index=False, name=None))


def test_nothing_to_describe_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        write_prompts(tmp_path / "nowhere", tmp_path / "out", params_with(tmp_path))
    (tmp_path / "in").mkdir()
    write_manifest(tmp_path / "in", ROWS[-1:])
    with pytest.raises(DataError, match="has no image"):
        write_prompts(tmp_path / "in", tmp_path / "out", params_with(tmp_path))


def test_command_line(tmp_path):
    (tmp_path / "in").mkdir()
    write_manifest(tmp_path / "in", ROWS)
    params_with(tmp_path)
    command = [sys.executable, "-m", "pipelines.prompts", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"),
               "--params", str(tmp_path / "params.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "2 modalities, 3 classes, 2 sites" in done.stdout
    wrong = subprocess.run([*command[:4], str(tmp_path / "nowhere"), *command[5:]], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ")
