"""Canaries: a word of its own in every place of a source that has room for text, and none of them in any byte that comes out.

Each place gets another word, so that a failure names the place.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import RTStructureSetStorage

from pipelines.errors import SemiflowError
from pipelines.ingest.deidentify.stage import deidentify

ROOT = Path(__file__).parents[2]
TEXT_VRS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
#: What a series needs to become an image at all; every other text attribute of the dictionary gets a canary.
NEEDED = {"SOPClassUID", "Modality", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices",
          "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "RescaleType", "NumberOfFrames", "BurnedInAnnotation", "ImageType",
          "RepetitionTime", "EchoTime", "InversionTime", "SpecificCharacterSet", "ModalityLUTType", "StudyInstanceUID", "SeriesInstanceUID",
          "FrameOfReferenceUID", "SOPInstanceUID", "PixelPresentation", "VolumetricProperties", "PatientPosition", "Units", "SegmentationType",
          "ComplexImageComponent"}
SAFE_CREATORS = [(0x0019, "SIEMENS MR HEADER"), (0x0043, "GEMS_PARM_01"), (0x2001, "Philips Imaging DD 001"), (0x2005, "Philips MR Imaging DD 001"),
                 (0x0029, "SIEMENS CSA HEADER"), (0x0065, "Image Private Header")]


WORD = re.compile(rb"ZQ[B-Z]{4}QZ", re.IGNORECASE)


class Canaries:
    """Words that are found nowhere else, and where each was put."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    def word(self, place: str) -> str:
        """Eight letters and digits without a vowel: no word of any vocabulary. Upper case, so that a coded string can hold it."""
        number, letters = len(self.places), ""
        for _ in range(4):
            number, letter = divmod(number, 20)
            letters += "BCDFGHJKLMNPQRSTVWXZ"[letter]
        word = f"ZQ{letters}QZ"
        self.places[word] = place
        return word

    def found(self, streams: dict[str, bytes]) -> list[tuple[str, str]]:
        """(where it was put, where it came out), by any of the usual encodings and in any case."""
        hits = set()
        for name, content in streams.items():
            for text in (content, content.replace(b"\0", b"")):  # UTF-16 of either order is the letters with zeros between them
                hits |= {(self.places[word], name) for found in WORD.findall(text) if (word := found.decode().upper()) in self.places}
        return sorted(hits)


def fill(dataset: Dataset, canaries: Canaries, where: str) -> None:
    """A canary in each text attribute of the standard that the series does not depend on; an existing value keeps its words beside it."""
    for number, (vr, *_rest) in DicomDictionary.items():
        tag = Tag(number)
        keyword = keyword_for_tag(tag)
        if vr not in TEXT_VRS or tag.group < 8 or not keyword or keyword in NEEDED:
            continue
        with contextlib.suppress(Exception):
            dataset[tag] = raw(tag, vr, canaries.word(f"{where} {keyword} {vr}").encode())
    inner = {vr: canaries.word(f"{where} private sequence {vr}") for vr in TEXT_VRS}
    for group, creator in [(0x0009, canaries.word(f"{where} private creator")), *SAFE_CREATORS]:
        block = dataset.private_block(group, creator, create=True)
        for offset, vr in enumerate(("LO", "UN", "LT", "OB"), 0x70):
            word = canaries.word(f"{where} private {creator} {vr}")
            block.add_new(offset, vr, word.encode() if vr in ("UN", "OB") else word)
        item = Dataset()
        for vr, word in inner.items():
            item[Tag(TEXT_TAGS[vr])] = raw(Tag(TEXT_TAGS[vr]), vr, word.encode())
        block.add_new(0x80, "SQ", Sequence([item]))
    for element, creator_index in ((0x0C, 0), (0x0D, 0), (0x0E, 0)):
        group, creator = SAFE_CREATORS[creator_index]
        dataset.private_block(group, creator, create=True).add_new(element, "LO", canaries.word(f"{where} safe private {element:02x}"))


def raw(tag, vr: str, value: bytes):
    """An element whose bytes nobody has checked, as a scanner may write them."""
    value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    return pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)


TEXT_TAGS = {"AE": 0x00080055, "AS": 0x00101010, "CS": 0x00080008, "DA": 0x00080020, "DS": 0x00180050, "DT": 0x0008002A, "IS": 0x00200013,
             "LO": 0x00080070, "LT": 0x00104000, "PN": 0x00100010, "SH": 0x00080050, "ST": 0x00080081, "TM": 0x00080030, "UC": 0x00189367,
             "UI": 0x00080018, "UR": 0x00081190, "UT": 0x0040A160}


def plant(canaries: Canaries, where: str, description: str):
    """A per-slice function for `make_series`: text everywhere, at the top and two sequences deep, overlays and high bits."""

    def planted(dataset: Dataset, index: int) -> None:
        if index == 0:
            patient = dataset.PatientID
            fill(dataset, canaries, f"{where} top")
            dataset.PatientID = patient
            dataset.SeriesDescription = f"{description} {canaries.word(f'{where} beside words')}"
        nested, deeper = Dataset(), Dataset()
        if index == 0:
            fill(deeper, canaries, f"{where} nested")
        nested.ReferencedImageSequence = [deeper]
        dataset.RequestAttributesSequence = [nested]
        dataset.MRTimingAndRelatedParametersSequence = [nested]
        text = canaries.word(f"{where} overlay {index}").encode()
        dataset.add_new(0x60003000, "OW", text)
        dataset.add_new(0x60004000, "LT", text.decode())
        dataset.add_new(0xFFFCFFFC, "OB", canaries.word(f"{where} padding {index}").encode())
        dataset.preamble = canaries.word(f"{where} preamble {index}").encode().ljust(128)
        dataset.file_meta.SourceApplicationEntityTitle = canaries.word(f"{where} file meta AE {index}")
        dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
        dataset.file_meta.PrivateInformation = canaries.word(f"{where} file meta private {index}").encode()
        dataset.PixelData = dataset.PixelData + canaries.word(f"{where} after pixels {index}").encode()

    return planted


def segmentation(images, canaries: Canaries) -> Dataset:
    """A segmentation object with names wherever one goes."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(canaries.word("SEG algorithm"), codes.DCM.ArtificialIntelligence, canaries.word("SEG version"))
    segment = hd.seg.SegmentDescription(1, f"tumor {canaries.word('SEG label')}", codes.SCT.Tissue, codes.SCT.Neoplasm, "AUTOMATIC", algorithm,
                                        tracking_uid=hd.UID(), tracking_id=canaries.word("SEG tracking"))
    mask = np.zeros((len(images), images[0].Rows, images[0].Columns), np.uint8)
    mask[1:3, 2:5, 2:5] = 1
    seg = hd.seg.Segmentation(
        images, mask, "BINARY", [segment], hd.UID(), 7, hd.UID(), 1, canaries.word("SEG manufacturer"), canaries.word("SEG model"),
        canaries.word("SEG software"), canaries.word("SEG serial"), content_description=canaries.word("SEG description"),
        content_creator_name=canaries.word("SEG creator"), series_description=f"tumor {canaries.word('SEG series')}")
    seg.OperatorsName = canaries.word("SEG operator")
    seg.SegmentSequence[0].SegmentDescription = canaries.word("SEG segment description")
    return seg


def structure_set(image, canaries: Canaries) -> Dataset:
    """Contours with names wherever one goes."""
    rt = Dataset()
    rt.file_meta = pydicom.dataset.FileMetaDataset()
    rt.file_meta.TransferSyntaxUID = image.file_meta.TransferSyntaxUID
    rt.SOPClassUID = rt.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    rt.SOPInstanceUID = rt.file_meta.MediaStorageSOPInstanceUID = "2.25.111"
    for name in ("PatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "FrameOfReferenceUID"):
        rt[name] = image[name]
    rt.Modality, rt.SeriesInstanceUID = "RTSTRUCT", "2.25.112"
    rt.StructureSetLabel, rt.StructureSetName = canaries.word("RT label"), canaries.word("RT name")
    roi, observation, contour, line, reference, series, study = (Dataset() for _ in range(7))
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = 1, f"gtv {canaries.word('RT roi')}", image.FrameOfReferenceUID
    roi.ROIDescription, roi.ROIGenerationAlgorithm = canaries.word("RT roi description"), "MANUAL"
    observation.ReferencedROINumber, observation.ROIInterpreter = 1, canaries.word("RT interpreter")
    observation.ROIObservationLabel, observation.RTROIInterpretedType = canaries.word("RT observation"), "GTV"
    corners = [(-5, -5), (5, -5), (5, 5), (-5, 5)]
    origin = [float(value) for value in image.ImagePositionPatient]
    line.ContourGeometricType, line.NumberOfContourPoints = "CLOSED_PLANAR", len(corners)
    line.ContourData = [value for x, y in corners for value in (origin[0] + 4 + x / 2, origin[1] + 5 + y / 2, origin[2])]
    contour.ReferencedROINumber, contour.ContourSequence = 1, [line]
    series.SeriesInstanceUID, series.ContourImageSequence = image.SeriesInstanceUID, []
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", image.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    reference.FrameOfReferenceUID, reference.RTReferencedStudySequence = image.FrameOfReferenceUID, [study]
    rt.ReferencedFrameOfReferenceSequence, rt.StructureSetROISequence = [reference], [roi]
    rt.RTROIObservationsSequence, rt.ROIContourSequence = [observation], [contour]
    rt.OperatorsName, rt.SeriesDescription = canaries.word("RT operator"), f"gtv {canaries.word('RT series')}"
    return rt


@pytest.fixture(scope="module")
def planted(make_series, tmp_path_factory):
    """A source with good, bad and broken objects, and the canaries in it."""
    canaries = Canaries()
    home = tmp_path_factory.mktemp("canaries") / "in" / canaries.word("folder")
    voxels = np.random.default_rng(0).permutation(6 * 7 * 8).reshape(6, 7, 8)
    # PatientID has no room for spaces in the names of files, so it is a word too.
    patient = canaries.word("PatientID")

    def write(name: str, description: str, array=voxels, **more):
        series = make_series(array, patient=patient, description=description, per_slice=plant(canaries, name, description), **more)
        return series.write(home / canaries.word(f"{name} folder"), [f"{canaries.word(f'{name} file')}.dcm" for _ in array])

    good = write("t1", "t1 se tra")
    write("flair", "flair", tags={"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0})
    write("hole", "t2")[2].unlink()
    write("unknown", "Sonderfall")
    write("burned", "t1 post", tags={"BurnedInAnnotation": "YES"})
    cut = write("cut", "t2 tse")
    cut[0].write_bytes(cut[0].read_bytes()[:400])
    cut[1].write_bytes(cut[1].read_bytes()[:-30])
    bad = write("values", "dwi")
    for path in bad[:2]:
        path.write_bytes(path.read_bytes().replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00LO\x02\x00"))
    images = [pydicom.dcmread(path) for path in good]
    plain = make_series(voxels, patient=patient, description="t1 se tra").datasets()
    segmentation(plain, canaries).save_as(home / f"{canaries.word('SEG file')}.dcm")
    structure_set(images[1], canaries).save_as(home / f"{canaries.word('RT file')}.dcm", enforce_file_format=True)
    word = canaries.word("not DICOM")
    (home / f"{canaries.word('text file')}.txt").write_text(word)
    (home / f"{canaries.word('nifti file')}.nii.gz").write_bytes(gzip.compress(word.encode()))
    (home / f"{canaries.word('zip file')}.zip").write_bytes(b"PK\x03\x04" + word.encode())
    (home / "broken.dcm").write_bytes(canaries.word("broken preamble").encode().ljust(128) + b"DICM" + canaries.word("broken meta").encode() * 40)
    return home.parent, canaries


def streams(folder: Path) -> dict[str, bytes]:
    """All names and bytes below a folder, packed ones also unpacked, tables of databases also as text."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[f"name {name}"] = name.encode()
        if path.is_file():
            content = found[name] = path.read_bytes()
            if content[:2] == b"\x1f\x8b":
                found[f"{name} unpacked"] = gzip.decompress(content)
            if content.startswith(b"SQLite format 3"):
                with contextlib.closing(sqlite3.connect(path)) as base:
                    found[f"{name} dumped"] = "\n".join(base.iterdump()).encode()
    return found


def zipped(source: Path, canaries: Canaries, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, Path(canaries.word("zip entry")) / path.relative_to(source))
        archive.comment = canaries.word("zip comment").encode()
    return target


def command(module: str, source: Path, out: Path, key_file: Path, *more: str) -> subprocess.CompletedProcess:
    arguments = [sys.executable, "-m", module, "--source", str(source), "--out", str(out), "--key", str(key_file), "--jobs", "2", *more]
    scratch = out.parent / "scratch"
    scratch.mkdir(exist_ok=True, parents=True)
    return subprocess.run(arguments, capture_output=True, check=False, cwd=ROOT, env={**os.environ, "TMPDIR": str(scratch)})


def test_canaries_sing_where_they_were_put(planted):
    """What the other tests look for is really in the source, in thousands of places."""
    source, canaries = planted
    put = {place for place, _ in canaries.found(streams(source))}
    assert len(put) > 5000
    assert {"PatientID", "SEG label", "RT roi", "t1 preamble 0", "t1 top PatientName PN", "flair nested PatientName PN", "SEG file"} <= put


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_ingest_lets_none_out(planted, key_file, tmp_path, packed):
    source, canaries = planted
    if packed:
        source = zipped(source, canaries, tmp_path / "export.zip")
    done = command("pipelines.ingest", source, tmp_path / "out" / "bids", key_file, "--site", "here")
    assert done.returncode == 0, done.stderr.decode()
    assert list((tmp_path / "out").rglob("*.nii.gz"))
    assert (tmp_path / "out" / "bids" / "quarantine.tsv").read_text().count("\n") > 4
    assert canaries.found({**streams(tmp_path / "out"), "stdout": done.stdout, "stderr": done.stderr}) == []


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_deidentify_lets_none_out(planted, key_file, tmp_path, packed):
    source, canaries = planted
    if packed:
        source = zipped(source, canaries, tmp_path / "export.zip")
    done = command("pipelines.ingest.deidentify", source, tmp_path / "out" / "dicom", key_file)
    assert done.returncode == 0, done.stderr.decode()
    written = [pydicom.dcmread(path, stop_before_pixels=True) for path in (tmp_path / "out").rglob("*.dcm")]
    assert {one.Modality for one in written} == {"MR", "SEG", "RTSTRUCT"}
    assert canaries.found({**streams(tmp_path / "out"), "stdout": done.stdout, "stderr": done.stderr}) == []


def test_shifted_dates_let_none_out(planted, params, key_file, tmp_path, capfd):
    source, canaries = planted
    shifting = params.model_copy(update={"ingest": params.ingest.model_copy(update={
        "deidentify": params.ingest.deidentify.model_copy(update={"dates": "shift"})})})
    deidentify(source, tmp_path / "out", shifting, key_file=key_file, jobs=1)
    assert canaries.found({**streams(tmp_path / "out"), "printed": "".join(capfd.readouterr()).encode()}) == []


@pytest.mark.parametrize("module", ["pipelines.ingest", "pipelines.ingest.deidentify"])
def test_failures_let_none_out(planted, key_file, tmp_path, module):
    """A source of which nothing can be used: the error is a sentence, and nobody's name is in it."""
    source, canaries = planted
    (tmp_path / "in").mkdir()
    for number, path in enumerate(path for path in source.rglob("*") if path.is_file() and canaries.places.get(path.stem, "").startswith("burned")):
        (tmp_path / "in" / f"{canaries.word('copy')}{number}.dcm").write_bytes(path.read_bytes()[:5000 if module == "pipelines.ingest" else None])
    done = command(module, tmp_path / "in", tmp_path / "out" / "bids", key_file, *(["--site", "here"] if module == "pipelines.ingest" else []))
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert canaries.found({**streams(tmp_path / "out"), "stdout": done.stdout, "stderr": done.stderr}) == []


def test_tracked_runs_hold_none(planted, convert, tmp_path):
    """What an ingest leaves goes on to MLflow (tables as artifacts, numbers as params): neither its database nor its artifacts hold a canary."""
    mlflow = pytest.importorskip("mlflow")
    source, canaries = planted
    summary = convert(source, tmp_path / "bids")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow' / 'runs.db'}") if (tmp_path / "mlflow").mkdir() is None else None
    experiment = client.create_experiment("canaries", artifact_location=(tmp_path / "mlflow" / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    client.log_param(run, "summary", str(summary))
    for path in sorted((tmp_path / "bids").glob("*.*")):
        client.log_artifact(run, str(path))
    client.set_terminated(run)
    held = streams(tmp_path / "mlflow")
    assert any(name.endswith("dumped") for name in held)
    assert any(name.endswith("quarantine.tsv") for name in held)
    assert canaries.found(held) == []


@pytest.mark.slow
def test_prefect_holds_none_of_a_failing_run(planted, params, key_file, tmp_path, monkeypatch):
    """A task whose ingest fails leaves states and logs in Prefect's database: its home holds no canary."""
    source, canaries = planted
    code = (
        "import sys\nfrom pathlib import Path\nimport tasks\n"
        "from prefect import flow, task\nfrom prefect.testing.utilities import prefect_test_harness\n"
        "from pipelines.ingest.stage import ingest\nfrom pipelines.params import load_params\n"
        "@task\ndef fail(source, out, key):\n    ingest(source, out, load_params(None), site='here', key_file=key, jobs=1)\n"
        "@flow(log_prints=True)\ndef run():\n    fail(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))\n"
        "run()\n")
    lone = tmp_path / "in" / canaries.word("prefect folder")
    lone.mkdir(parents=True)
    broken = next(path for path in source.rglob("*.dcm") if canaries.places.get(path.stem, "").startswith("burned"))
    (lone / f"{canaries.word('prefect file')}.dcm").write_bytes(broken.read_bytes())
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), str(key_file)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=False, cwd=ROOT,
                          env={**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
                               "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"})
    held = streams(tmp_path / "prefect")
    assert done.returncode != 0
    assert any(name.endswith("dumped") for name in held)
    assert any(b"nothing in" in content for content in held.values())
    assert canaries.found({**held, "stdout": done.stdout, "stderr": done.stderr}) == []


def test_errors_of_this_process_are_sentences(planted, params, key_file, tmp_path):
    _, canaries = planted
    (tmp_path / "in").mkdir()
    with pytest.raises(SemiflowError) as error:
        deidentify(tmp_path / "in", tmp_path / "out", params, key_file=key_file)
    assert canaries.found({"error": str(error.value).encode()}) == []
