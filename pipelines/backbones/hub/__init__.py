"""Published vision-language models as frozen backbones: CLIP and SigLIP by `transformers`, BiomedCLIP and others by `open_clip`.

What all of them share is in `dense` (tokens and their size) and `pixels` (grey levels); what a family has of its own is in `vision`, `huggingface`
and `openclip`.
"""
