"""Matrix-free low rank where d x d does not fit: time, peak memory, and eigenvalues against a dense Gram matrix.

Run: python benchmarks/lowrank.py [--d 65536] [--n 2000] [--rank 256]

The data have a power-law spectrum with exponent 1 in a random basis, stored as float16 on disk, as latents are. The
fit runs in a process of its own, whose peak memory is reported.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from report import show, write

from manifold.covariance import fit_lowrank
from manifold.rows import ArrayRows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=65_536)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        fit(options.fit, options.rank)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, power_law_rows(options.n, options.d))
        command = [sys.executable, __file__, "--fit", str(path), "--rank", str(options.rank)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found = np.load(path.with_suffix(".eigvals.npy"))
        rows = np.load(path).astype(np.float32)
    rows -= rows.mean(0, dtype=np.float64).astype(np.float32)
    gram = rows @ rows.T
    exact = np.linalg.eigvalsh(gram.astype(np.float64))[::-1][: options.rank] / (options.n - 1)
    error = np.abs(found - exact) / exact
    result |= {
        "d": options.d,
        "n": options.n,
        "rank": options.rank,
        "worst_error_leading_64": float(error[:64].max()),
        "worst_error_all": float(error.max()),
    }
    show("matrix-free low rank", ("figure", "value"), list(result.items()))
    write("lowrank", result)


def power_law_rows(n: int, d: int) -> np.ndarray:
    """Rows with variances 1/j along random directions, rank n, float16."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((n, d), dtype=np.float32)
    coefficients = rng.standard_normal((n, n), dtype=np.float32) * np.arange(1, n + 1, dtype=np.float32) ** -0.5
    return (coefficients @ directions).astype(np.float16)


def fit(path: Path, rank: int) -> None:
    before_s = time.perf_counter()
    model = fit_lowrank(ArrayRows(np.load(path, mmap_mode="r")), rank)
    fit_s = time.perf_counter() - before_s
    np.save(path.with_suffix(".eigvals.npy"), model.eigvals.double().numpy())
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"fit_s": fit_s, "peak_gib": peak_gib}))


if __name__ == "__main__":
    main()
