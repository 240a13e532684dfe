"""Networks are trained in bfloat16 where the device has units for it, and in float32 where it would be emulated."""

from pathlib import Path

import pytest
import torch
from manifold_apps.training.precision import has_bfloat16_units, mixed_precision

CPU = torch.device("cpu")


def product_type():
    with mixed_precision(CPU):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize("unit", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_processor_with_units_multiplies_in_bfloat16(unit, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, unit: True}, raising=False)
    assert product_type() == torch.bfloat16


def test_a_processor_without_units_multiplies_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False}, raising=False)
    assert product_type() == torch.float32


def test_a_torch_that_does_not_know_the_processor_multiplies_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert product_type() == torch.float32


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="needs Linux's list of processor flags")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="needs torch.cpu.get_capabilities")
def test_it_agrees_with_the_flags_of_the_processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":")[1].split()}
    assert has_bfloat16_units(CPU) == bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


@pytest.mark.parametrize(("capability", "units"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_devices_have_units_from_ampere_on(capability, units, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert has_bfloat16_units(torch.device("cuda")) == units
