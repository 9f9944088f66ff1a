"""In which precision a frozen backbone computes its tokens: the machine's own, which is part of the fingerprint, because tokens in one differ from
those in the other by about 1 %."""

from __future__ import annotations

import torch

#: What tokens can be computed in.
PRECISIONS = (torch.float32, torch.bfloat16)


def native_precision(accelerated: bool = True) -> torch.dtype:
    """bfloat16 where the machine multiplies it in hardware, else float32. `accelerated`: on the CUDA device where there is one."""
    if accelerated and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        native = has.get("avx512_bf16", False) or has.get("amx_bf16", False) or has.get("bf16", False)
    return torch.bfloat16 if native else torch.float32
