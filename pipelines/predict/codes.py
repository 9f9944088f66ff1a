"""What a label is called in the codes of DICOM and SNOMED CT, so that an archive, a viewer or a register knows it without reading English.

The table is conf/codes.yaml and not `cohort.labels` of params.yaml: no number depends on it, and a stage would be run again for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from pipelines import params
from pipelines.errors import UsageError

TABLE = params.DEFAULT.parent / "conf" / "codes.yaml"


class Code(NamedTuple):
    """A coded concept (PS3.3, 8.8): value, scheme and meaning."""

    value: Annotated[str, Field(pattern=r"^[^\\]{1,16}$")]
    scheme: Annotated[str, Field(pattern=r"^[^\\]{1,16}$")]
    meaning: Annotated[str, Field(pattern=r"^[^\\]{1,64}$")]


#: CID 7150 (segmentation property categories): the category of all that is segmented here, and the type of a label that the table lacks.
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")


def code_of(label: str, table: Path = TABLE) -> Code:
    """The code of a label (SegmentedPropertyTypeCodeSequence, CID 7151 and below). Raises `UsageError` for a table that cannot be read."""
    if not table.is_file():
        return ABNORMAL
    try:
        known = TypeAdapter(dict[str, Code]).validate_python(yaml.safe_load(table.read_text()) or {})
    except (yaml.YAMLError, ValidationError) as error:
        raise UsageError(f"{table} is no table of codes ({' '.join(str(error).split())[:200]}); write one 'label: [value, scheme, meaning]' a line"
                         ) from None
    return known.get(label, ABNORMAL)
