"""Measurements of the ingest that take longer than a test may: `python -m benchmarks.<name> --help`."""
