"""Labels as they come, each placed on the grid of its image without resampling: DICOM SEG, RTSTRUCT, Parametric Map, mask series, NIfTI."""

from __future__ import annotations

from pipelines.ingest.labels.grid import place_on_grid
from pipelines.ingest.labels.naming import SEPARATOR, safe_name
from pipelines.ingest.labels.place import place, read_segments
from pipelines.ingest.labels.references import REFERENCE_TAGS, frame_of_reference, referenced_series
from pipelines.ingest.labels.segments import LabelSource, Placeable, Segments, merge

__all__ = ["REFERENCE_TAGS", "SEPARATOR", "LabelSource", "Placeable", "Segments", "frame_of_reference", "merge", "place", "place_on_grid",
           "read_segments", "referenced_series", "safe_name"]
