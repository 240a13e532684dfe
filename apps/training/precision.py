"""Which type a network is trained in: bfloat16 where the device has units for it."""

from __future__ import annotations

import torch

__all__ = ["has_bfloat16_units", "mixed_precision"]


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the device itself multiplies in bfloat16. Emulated, a step can take twenty times as long as in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type != "cpu":
        return True
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10 has none yet
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(unit, False) for unit in ("avx512_bf16", "amx_bf16", "bf16"))


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context in which layers multiply in bfloat16, where the device has units for it, and in float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16_units(device))
