"""Streaming moments beside the symmetric product on data already in memory, numpy.cov and IncrementalPCA.

Run: python benchmarks/moments.py [--d 3072 4096 8192 16384] [--rounds 3] [--no-rivals]. About twenty minutes on two cores;
the figures of each d are written as soon as they are there, and those of other d from earlier runs are kept.

Ours reads float16 latents from a store on disk; the floor is one call of scipy.linalg.blas.ssyrk (dsyrk for `exact`)
on the same rows, float32 (float64), centred and in memory. All are taken in turn, `rounds` times; medians are reported,
and beside them the relative Frobenius error against a float64 two-pass covariance. IncrementalPCA (k = 256) truncates
and is not exact. It is run as it comes, in batches of 5 d rows (all, where there are no more), and in batches of 2048, which
suit wide rows better; these all cost the same, so it takes the first few, and its time is given for all rows.

At d = 16,384 OpenBLAS 0.3 crashes in `dsyrk` with more than one thread, with SciPy and on some processors with NumPy: that
floor and numpy.cov are left out there.

On a CUDA device the share of that device's measured float32 matrix-product rate is reported as well.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from report import earlier, show, write
from scipy.linalg.blas import dsyrk, ssyrk

from index.latents import LatentStore, Shard, latents_file
from manifold.moments import Moments

ROWS = {3072: 49_152, 4096: 32_768, 8192: 16_384, 16_384: 8_192}
FLOOR = {"fast": "ssyrk", "exact": "dsyrk"}
CRASHES = 16_384  # columns
PCA_RANK = 256
PCA_BATCHES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, nargs="+", default=[3072, 4096, 8192, 16_384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-rivals", action="store_true", help="leave out numpy.cov and IncrementalPCA")
    options = parser.parse_args()
    results = earlier("moments")
    for d in options.d:
        with tempfile.TemporaryDirectory() as folder:
            here = measure(Path(folder), d, ROWS.get(d, 4096), options.rounds, not options.no_rivals)
        results = sorted([one for one in results if one["d"] != d] + here, key=lambda one: one["d"])
        columns = ("way", "seconds", "to floor", "error", "to ours, fast")
        rows = [
            (r["way"], r["seconds"], r.get("to_floor", ""), r.get("error", ""), r["seconds"] / here[0]["seconds"])
            for r in here
        ]
        show(f"d = {d}, {here[0]['rows']} rows, {torch.get_num_threads()} threads", columns, rows)
        write("moments", results)


def measure(folder: Path, d: int, n: int, rounds: int, rivals: bool) -> list[dict]:
    store = make_store(folder, d, n)
    rows = np.concatenate(list(store.batches(2048)))
    centred = rows.astype(np.float64)
    centred -= centred.mean(0)
    narrow = centred.astype(np.float32)
    reference = torch.mm(torch.from_numpy(centred).T, torch.from_numpy(centred)).numpy()
    floors = FLOOR if d < CRASHES else {"fast": "ssyrk"}
    taken: dict[str, list[float]] = {name: [] for name in (*FLOOR, *floors.values())}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        for precision, floor, data in (("fast", ssyrk, narrow), ("exact", dsyrk, centred)):
            seconds, moments = timed(lambda precision=precision: stream(store, precision))
            taken[precision].append(seconds)
            if precision not in errors:
                errors[precision] = relative_error(moments.covariance().mul_(n - 1).numpy(), reference)
            del moments
            if precision in floors:
                taken[floors[precision]].append(timed(lambda floor=floor, data=data: floor(1.0, data.T, lower=1))[0])
    median = {name: statistics.median(values) for name, values in taken.items()}
    found: list[dict] = [
        {
            "d": d,
            "rows": n,
            "way": f"ours, {precision}",
            "seconds": median[precision],
            "to_floor": median[precision] / median[floors[precision]] if precision in floors else "",
            "error": errors[precision],
            "all_seconds": taken[precision],
        }
        for precision in FLOOR
    ]
    found += [
        {"d": d, "rows": n, "way": floor, "seconds": median[floor], "all_seconds": taken[floor]}
        for floor in floors.values()
    ]
    if torch.cuda.is_available():
        found.append(on_cuda(rows, d, n))
    if rivals:
        del centred, narrow
        if d < CRASHES:
            wide = rows.astype(np.float64)
            seconds, covariance = timed(lambda: np.cov(wide, rowvar=False))
            error = relative_error(np.multiply(covariance, n - 1, out=covariance), reference)
            found.append({"d": d, "rows": n, "way": "numpy.cov", "seconds": seconds, "error": error})
            del wide, covariance
        del reference
        found.append({"d": d, "rows": n, "way": "IncrementalPCA", "seconds": timed(lambda: pca_as_it_comes(rows))[0]})
        seconds, taken_in = timed(lambda: pca_in_batches(store))
        found.append({"d": d, "rows": n, "way": "IncrementalPCA, 2048", "seconds": seconds * n / taken_in})
    return found


def make_store(folder: Path, d: int, n: int) -> LatentStore:
    """Rows with a power-law spectrum, 4096 a shard, as `encode` would leave them."""
    rng = np.random.default_rng(d)
    scale = np.arange(1, d + 1, dtype=np.float32) ** -0.5
    shards = []
    (folder / "latents").mkdir()
    for number, start in enumerate(range(0, n, 4096)):
        rows = min(4096, n - start)
        values = rng.standard_normal((rows, d), dtype=np.float32) * scale
        values += np.roll(values, 1, axis=1) + 0.5
        np.save(latents_file(folder, number), values.astype(np.float16))
        shards.append(Shard(rows, "", ""))
    return LatentStore(folder, shards, (d, 1, 1))


def stream(store: LatentStore, precision: str) -> Moments:
    """What `manifold fit` does: one pass over the store, last chunk included."""
    moments = Moments(store.d, precision="exact" if precision == "exact" else "fast")
    for batch in store.batches(2048):
        moments.update(batch, copy=False)
    moments.flush()
    return moments


def pca_as_it_comes(rows: np.ndarray) -> None:
    from sklearn.decomposition import IncrementalPCA

    IncrementalPCA(n_components=PCA_RANK, copy=False).fit(rows.astype(np.float32))


def pca_in_batches(store: LatentStore) -> int:
    """Rows taken in by the first batches."""
    from sklearn.decomposition import IncrementalPCA

    pca = IncrementalPCA(n_components=PCA_RANK, copy=False)
    for batch in islice(store.batches(2048), PCA_BATCHES):
        pca.partial_fit(batch.astype(np.float32))
    return int(pca.n_samples_seen_)


def relative_error(found: np.ndarray, triangle: np.ndarray) -> float:
    """Frobenius, over the lower triangle of the column-major reference; by blocks, to spare memory."""
    difference = total = 0.0
    for start in range(0, len(found), 512):
        expected = np.tril(triangle[start : start + 512], start)
        ours = np.tril(found[start : start + 512], start)
        difference += float(((ours - expected) ** 2).sum())
        total += float((expected**2).sum())
    return (difference / total) ** 0.5


def on_cuda(rows: np.ndarray, d: int, n: int) -> dict:
    """Rate of the streaming pass as a share of the device's own float32 product."""
    data = torch.from_numpy(rows).cuda()
    square = torch.randn(8192, 8192, device="cuda")
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(5):
            square @ square
        torch.cuda.synchronize()
        rate = 5 * 2 * 8192**3 / (time.perf_counter() - start)
    for _ in range(2):
        moments = Moments(d, device="cuda")
        torch.cuda.synchronize()
        start = time.perf_counter()
        moments.update(data)
        moments.flush()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    share = n * d * d / seconds / rate
    print(f"CUDA: {share:.0%} of the device's measured float32 product rate, {rate / 1e12:.1f} TFLOP/s")
    return {"d": d, "rows": n, "way": "ours, fast, CUDA", "seconds": seconds, "share_of_product_rate": share}


def timed(call: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


if __name__ == "__main__":
    main()
