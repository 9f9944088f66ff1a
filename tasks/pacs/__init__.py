"""Studies from a PACS, by DICOMweb or DIMSE, into a private inbox that the ingest stage reads, and results back to it.

`config` one archive as a checked YAML file; `archive` what both protocols offer; `dicomweb`, `dimse` the protocols; `journal` what is held already;
`inbox` files under keyed names, a study visible only when whole; `retrieve` the loop that can be killed and run again;
`store` what is sent back, once.
"""
