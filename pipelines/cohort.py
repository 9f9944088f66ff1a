"""The cohort on disk: a manifest with one row per image, label or mask, and the cases made of its rows.

Every stage reads `manifest.tsv` and writes one; a row that cannot be processed moves to `quarantine.tsv` with a reason.
Paths in a manifest are relative to the folder it lies in, and names follow BIDS.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipelines.errors import DataError
from pipelines.outputs import staged_file

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.tsv"
QUARANTINE = "quarantine.tsv"
PARTICIPANTS = "participants.tsv"

#: column -> pandas dtype. Header facts that a series does not carry are empty.
COLUMNS = {
    "subject": "str",  # pseudonym, without "sub-"
    "session": "str",  # without "ses-"; empty where the source has none
    "site": "str",
    "kind": "str",  # image | label | mask
    "modality": "str",  # params' name of the modality; "dseg" for labels, "brain" for masks
    "path": "str",
    "sha256": "str",  # of the file
    "shape": "str",  # "256x256x25", voxels along the array's axes
    "spacing_mm": "str",  # "0.9375x0.9375x6.5", same axes
    "slice_axis": "Int64",  # array axis across slices
    "frame_of_reference": "str",  # remapped; images with equal values share world coordinates
    "manufacturer": "str",
    "scanner": "str",  # ManufacturerModelName
    "field_strength_t": "Float64",
    "tr_ms": "Float64",
    "te_ms": "Float64",
    "ti_ms": "Float64",
    "slice_thickness_mm": "Float64",
    "rule": "str",  # which rule decided the modality
    "source_kind": "str",  # dicom | nifti
    "note": "str",  # what a stage did that is worth knowing ("registered to FLAIR, shift 1.2 mm")
}
KINDS = ("image", "label", "mask")
QUARANTINE_COLUMNS = {"subject": "str", "session": "str", "item": "str", "code": "str", "reason": "str", "remedy": "str"}


def manifest_schema():
    """The pandera schema of a manifest (imported here, because pandera takes a second)."""
    import pandera.pandas as pa

    checks = {"kind": pa.Check.isin(KINDS), "subject": pa.Check.str_matches(r"^[A-Za-z0-9]+$"),
              "session": pa.Check.str_matches(r"^[A-Za-z0-9]*$"), "sha256": pa.Check.str_matches(r"^[0-9a-f]{64}$"),
              "shape": pa.Check.str_matches(r"^\d+(x\d+){2}$"), "slice_axis": pa.Check.isin([0, 1, 2])}
    columns = {name: pa.Column(dtype, checks.get(name), nullable=dtype in ("Int64", "Float64")) for name, dtype in COLUMNS.items()}
    return pa.DataFrameSchema(columns, strict=True, unique=["path"])


def frame(rows: Sequence[Mapping[str, object]], columns: Mapping[str, str] = COLUMNS) -> pd.DataFrame:
    """Rows as a table with exactly `columns`, missing text empty, missing numbers NA."""
    import pandas as pd

    table = pd.DataFrame(list(rows), columns=list(columns))
    for name, dtype in columns.items():
        table[name] = table[name].fillna("").astype("str") if dtype == "str" else table[name].astype(dtype)
    return table


def write_manifest(folder: Path, rows: Sequence[Mapping[str, object]] | pd.DataFrame) -> None:
    """Validate and write `folder/manifest.tsv`, sorted, so that equal cohorts make equal bytes."""
    table = frame(rows) if isinstance(rows, Sequence) else rows
    table = table.sort_values(["subject", "session", "kind", "modality", "path"]).reset_index(drop=True)
    _write_table(Path(folder) / MANIFEST, manifest_schema().validate(table))


def write_quarantine(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `folder/quarantine.tsv`: what was not processed, why, and what a person can do. Written even when empty."""
    table = frame(rows, QUARANTINE_COLUMNS).sort_values(["subject", "session", "item"])
    _write_table(Path(folder) / QUARANTINE, table)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with staged_file(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False)


def read_manifest(folder: Path) -> pd.DataFrame:
    """Read and validate `folder/manifest.tsv`."""
    return manifest_schema().validate(_read_table(Path(folder) / MANIFEST, COLUMNS))


def read_quarantine(folder: Path) -> pd.DataFrame:
    """Read `folder/quarantine.tsv`."""
    return _read_table(Path(folder) / QUARANTINE, QUARANTINE_COLUMNS)


def _read_table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path} does not exist; run the stage that makes it first")
    import pandas as pd

    table = pd.read_csv(path, sep="\t", dtype=dict(columns), keep_default_na=False,
                        na_values={name: [""] for name, dtype in columns.items() if dtype != "str"})
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; it was not written by this version")
    return table[list(columns)]


def case_id(subject: str, session: str) -> str:
    """The name of a case (one subject at one session), as BIDS spells it."""
    return f"sub-{subject}" + (f"_ses-{session}" if session else "")


def bids_path(subject: str, session: str, datatype: str, suffix: str, entities: Mapping[str, str] | None = None) -> Path:
    """The BIDS path of an image, without derivatives folder, ending `.nii.gz`."""
    folder = Path(f"sub-{subject}") / (f"ses-{session}" if session else "") / datatype
    middle = "".join(f"_{key}-{value}" for key, value in (entities or {}).items())
    return folder / f"{case_id(subject, session)}{middle}_{suffix}.nii.gz"


Volume = Path | np.ndarray
#: What is known of a case, and what a system says of one: a label of every voxel, or one outcome of the whole.
Answers = Literal["voxels", "case"]


@dataclass(frozen=True)
class Case:
    """One subject at one session on one grid, ready for a system. Arrays are `(slices, rows, columns)`, slices along the thick axis.

    Volumes and tokens are read when asked for, or are given as arrays (a study to predict that was never written to disk).
    """

    subject: str
    session: str
    site: str
    spacing_mm: tuple[float, float, float]  # between slices, rows, columns
    slice_axis: int  # of the NIfTI array, moved to the front here
    images: Mapping[str, Volume]  # modality -> standardised intensities, 0 outside the head, about 0 +- 1 inside
    brain: Volume  # foreground mask
    dseg: Volume | None = None  # target labels, 0 background, i + 1 for the i-th of params' cohort.labels
    tokens: Mapping[str, Path | Mapping[str, np.ndarray]] = field(default_factory=dict)  # modality -> level -> (slices, C, h, w)
    outcome: str | None = None  # the class of the whole case, one of params' cohort.outcome.values

    @property
    def id(self) -> str:
        return case_id(self.subject, self.session)

    def known(self, answers: Answers) -> bool:
        """Whether the truth is known, so that the case can teach and be judged."""
        return (self.dseg if answers == "voxels" else self.outcome) is not None

    def only(self, modalities: Collection[str]) -> Case:
        """The same case as if nothing but these modalities had been acquired."""
        kept = {name: {modality: value for modality, value in getattr(self, name).items() if modality in modalities} for name in ("images", "tokens")}
        return replace(self, **kept)

    def image(self, modality: str) -> np.ndarray:
        """Intensities `(S, H, W)`, float32."""
        return self._volume(self.images[modality]).astype(np.float32)

    def foreground(self) -> np.ndarray:
        """Boolean mask `(S, H, W)` of the head or brain: where metrics of calibration look."""
        return self._volume(self.brain) > 0

    def label(self) -> np.ndarray:
        """Target label `(S, H, W)`, uint8."""
        if self.dseg is None:
            raise DataError(f"{self.id} has no label; only cases with one can be support, calibration or query")
        return self._volume(self.dseg).astype(np.uint8)

    def token_levels(self, modality: str) -> dict[str, np.ndarray]:
        """The frozen encoder's dense tokens of one image: level name -> `(S, C, h, w)` float16."""
        source = self.tokens[modality]
        if isinstance(source, Path):
            from safetensors.numpy import load_file

            return load_file(source)
        return dict(source)

    def _volume(self, source: Volume) -> np.ndarray:
        if isinstance(source, Path):
            import nibabel

            return np.ascontiguousarray(np.moveaxis(np.asarray(nibabel.load(source).dataobj), self.slice_axis, 0))
        return source


def cases_of(folder: Path, tokens: Mapping[str, Path] | None = None, outcomes: Mapping[str, str] | None = None) -> list[Case]:
    """The cases of a resampled cohort, sorted by id.

    `tokens` maps the sha256 of an image file to its token file (see `pipelines.embed.cache`), `outcomes` a subject to its class.
    """
    folder, cases = Path(folder), []
    for (subject, session), rows in read_manifest(folder).groupby(["subject", "session"], sort=True):
        images, others = rows[rows.kind == "image"], {row.kind: folder / row.path for row in rows.itertuples() if row.kind != "image"}
        if images.empty or "mask" not in others:
            continue  # a case of which every image went to quarantine
        first = images.iloc[0]
        axis = int(first.slice_axis)
        spacing = [float(value) for value in first.spacing_mm.split("x")]
        spacing.insert(0, spacing.pop(axis))
        cases.append(Case(
            subject=subject, session=session, site=first.site, spacing_mm=tuple(spacing), slice_axis=axis,
            images={row.modality: folder / row.path for row in images.itertuples()},
            brain=others["mask"], dseg=others.get("label"),
            tokens={row.modality: tokens[row.sha256] for row in images.itertuples() if row.sha256 in tokens} if tokens else {},
            outcome=(outcomes or {}).get(subject),
        ))
    return cases


def read_outcomes(folder: Path, column: str, values: Collection[str]) -> dict[str, str]:
    """Subject -> class, from a column of a cohort's participants.tsv; subjects with another value, or none, are left out.

    Raises `DataError` where the table or the column is missing, or no subject has one of `values`.
    """
    import pandas as pd

    path = Path(folder) / PARTICIPANTS
    if not path.is_file():
        raise DataError(f"{path} does not exist, so no case has an outcome; give a source with {PARTICIPANTS} and run the stages from ingest on")
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    if column not in table:
        raise DataError(f"{path} has no column {column!r}, which params cohort.outcome names; it has {', '.join(table.columns)} "
                        "(ingest leaves out what could identify a person)")
    found = {row.participant_id.removeprefix("sub-"): row.value for row in
             table[["participant_id"]].assign(value=table[column]).itertuples() if row.value in values}
    if not found:
        raise DataError(f"no subject of {path} has {', '.join(map(repr, values))} as {column!r}; correct cohort.outcome.values in params.yaml")
    return found
