"""Peak memory of `encode` and `fit` at 5,000 and at 50,000 images: it must not grow with the collection.

Run: python benchmarks/memory.py. Each measurement is a process of its own, so that peaks do not mix; medians of three. A
peak counts the process and its decoding workers, sampled 50 times a second, private memory only: pages of mapped files can
be dropped at any time and are not counted.
"""

from __future__ import annotations

import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from report import show, write

SIZES = (5_000, 50_000)
ROUNDS = 3
STEPS = {
    "encode": "from index.encode import encode_images\nencode_images({images!r}, {workspace!r}, size=32)",
    "fit": "from index.fit import fit_workspace\nfit_workspace({workspace!r})",
}


def write_collection(path: Path, count: int) -> None:
    """Random smooth 32 x 32 JPEG images in the parquet layout of Hugging Face, in row groups of 1,000."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(1_000):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        images.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"image": images})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(count // 1_000):
            writer.write_table(table)


def peak_bytes(code: str) -> tuple[int, float]:
    """Largest private memory of a Python process and its children, and its wall time in seconds."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code])
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, sum(private_bytes(one) for one in [watched, *children(watched)]))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the measured process failed with exit code {process.returncode}")
    return peak, time.perf_counter() - started


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def private_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - memory.shared)


def main() -> None:
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for count in SIZES:
            images, workspace = Path(folder, f"{count}.parquet"), Path(folder, f"ws-{count}")
            write_collection(images, count)
            for step, code in STEPS.items():
                runs = []
                for number in range(ROUNDS):
                    fresh = workspace if step == "fit" else workspace.with_name(f"{workspace.name}-{number}")
                    shutil.rmtree(fresh / "stats", ignore_errors=True)
                    runs.append(peak_bytes(code.format(images=str(images), workspace=str(fresh))))
                if step == "encode":
                    fresh.rename(workspace)
                peak, seconds = statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)
                figures.append({"step": step, "images": count, "peak_mib": peak / 2**20, "seconds": seconds})
    show(
        "peak private memory, pixels at 32 (d = 3,072; the covariance itself is 72 MiB in float64)",
        ["step", "images", "peak MiB", "seconds"],
        [list(figure.values()) for figure in figures],
    )
    for step in STEPS:
        small, large = (figure["peak_mib"] for figure in figures if figure["step"] == step)
        print(f"{step}: 10 times the images, {large / small:.3f} times the memory ({large - small:+.1f} MiB)")
    write("memory", figures)


if __name__ == "__main__":
    main()
