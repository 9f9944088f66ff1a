"""Stage 1: images as hospitals and data sets have them become de-identified BIDS volumes, a manifest, and a list of what was refused."""
