"""What the benchmarks share: where they ran, a table on the screen, the same figures as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

OUT = Path("out")


def machine() -> dict[str, Any]:
    """The machine in words that mean something elsewhere, and the versions that decide speed."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "date": date.today().isoformat(),
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table with a title, numbers aligned right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    print(f"\n{title}")
    print("  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)))
    print("  ".join("-" * width for width in widths))
    for row, values in zip(cells, rows, strict=True):
        print(
            "  ".join(
                cell.rjust(width) if isinstance(value, int | float) else cell.ljust(width)
                for cell, width, value in zip(row, widths, values, strict=True)
            )
        )


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(name: str, figures: Any) -> None:
    """Write figures to out/NAME.json with the machine they were measured on."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
    print(f"\nwritten to {path}")


def earlier(name: str) -> list[dict[str, Any]]:
    """The figures that an earlier run on this machine wrote, none if there was none; for benchmarks that go on."""
    path = OUT / f"{name}.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    same = {**found["machine"], "date": None} == {**machine(), "date": None}
    return list(found["figures"]) if same else []
