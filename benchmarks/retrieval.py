"""Which image did this noisy state come from? The three questions beside plain nearest neighbours, on CIFAR-10.

    python benchmarks/retrieval.py [--images ../shared/data/cifar10-train.parquet] [--queries 1000]

Gallery images are noised, x_t = x0 + sigma * eps, and searched for among all images. Recall is of the source. The
reliability table asks whether the probabilities of `source` are honest: of the rows named with probability near p, a share
near p must be the source. Beside each share stands the interval (Wilson, 95 %) of what it may be by chance.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from report import show, write

from index import Searcher, build_index, encode_images, fit_workspace
from index.latents import LatentStore
from index.recall import wilson

SIGMAS = (0.5, 1.0, 2.0, 5.0, 10.0)
QUESTIONS = ("source", "target", "endpoint")
EDGES = np.array([0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0])
K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10-train.parquet"))
    parser.add_argument("--size", type=int, default=32, help="side of the images, in pixels")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--workspace", type=Path, help="reuse this indexed workspace instead of making one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.workspace or Path(folder) / "ws"
        if not (root / "index" / "image.json").is_file():
            encode_images(options.images, root, size=options.size)
            fit_workspace(root)
            build_index(root)
        measure(Searcher.open(root), options.queries)


def measure(searcher: Searcher, queries: int) -> None:
    store = searcher.workspace.latents
    truth = np.random.default_rng(0).choice(len(store), min(queries, len(store)), replace=False)
    clean = torch.from_numpy(store.read(truth)).float()
    noise = torch.Generator().manual_seed(0)
    rows: list[dict[str, float | str]] = []
    named, right = [], []
    for sigma in SIGMAS:
        x_t = clean + sigma * torch.randn(clean.shape, generator=noise)
        for question in QUESTIONS:
            before_s = time.perf_counter()
            hits = searcher.search(x_t, 1.0, sigma, question, k=K)
            spent_s = time.perf_counter() - before_s
            rows.append(line(sigma, question, hits.ids, truth, spent_s))
            if question == "source":
                named.append(hits.scores.ravel())
                right.append((hits.ids == truth[:, None]).ravel())
        for name, query in (("L2 to x_t", x_t), ("L2 to x0_hat", searcher.predict(x_t, 1.0, sigma))):
            before_s = time.perf_counter()
            ids = brute_force(store, query)
            rows.append(line(sigma, name, ids, truth, time.perf_counter() - before_s))
    show(
        f"recall of the source, {len(truth)} noised rows among {len(store):,}",
        ["sigma", "search", "recall@1", "recall@10", "ms a query"],
        [list(row.values()) for row in rows],
    )
    table = reliability(np.concatenate(named), np.concatenate(right))
    columns = ["from", "to", "rows", "mean probability", "share right", "at least", "at most"]
    show("reliability of `source`, all sigmas", columns, table)
    outside = [row for row in table if not row[5] <= row[3] <= row[6]]
    print(
        f"\nprobabilities outside the interval of their share: {len(outside)} of {len(table)} bands, about 1 in 20 by chance"
    )
    below = [sigma for sigma in SIGMAS if recall_of(rows, sigma, "source") < recall_of(rows, sigma, "L2 to x_t")]
    print(f"\nsource below nearest-to-x_t at sigma: {below or 'none'}")
    write(
        "retrieval",
        {"queries": len(truth), "rows": len(store), "card": searcher.card, "recall": rows, "reliability": table},
    )


def line(sigma: float, name: str, ids: np.ndarray, truth: np.ndarray, spent_s: float) -> dict[str, float | str]:
    found = ids == truth[:, None]
    return {
        "sigma": sigma,
        "search": name,
        "recall@1": float(found[:, 0].mean()),
        "recall@10": float(found.any(1).mean()),
        "ms_a_query": 1e3 * spent_s / len(truth),
    }


def recall_of(rows: list[dict[str, float | str]], sigma: float, name: str) -> float:
    return next(float(row["recall@1"]) for row in rows if row["sigma"] == sigma and row["search"] == name)


def brute_force(store: LatentStore, query: torch.Tensor) -> np.ndarray:
    """Exact nearest rows in L2, one pass over the latents, float32."""
    best = torch.full((len(query), K), torch.inf)
    ids = torch.full((len(query), K), -1, dtype=torch.int64)
    start = 0
    for batch in store.batches(4096):
        latents = torch.from_numpy(batch).float()
        squared = latents.square().sum(1) - 2 * query @ latents.T
        best, chosen = torch.cat([best, squared], 1).topk(K, largest=False)
        numbers = torch.arange(start, start + len(latents)).expand(len(query), -1)
        ids = torch.cat([ids, numbers], 1).gather(1, chosen)
        start += len(latents)
    return ids.numpy()


def reliability(named: np.ndarray, right: np.ndarray) -> list[list[float]]:
    """Rows gathered by their probability: its mean beside the share that is the source, and that share's interval."""
    group = np.clip(np.searchsorted(EDGES, named, side="right") - 1, 0, len(EDGES) - 2)
    table = []
    for number in range(len(EDGES) - 1):
        chosen = group == number
        if chosen.any():
            rows, share = int(chosen.sum()), float(right[chosen].mean())
            band = float(EDGES[number]), float(EDGES[number + 1])
            table.append([*band, rows, float(named[chosen].mean()), share, *wilson(share, rows)])
    return table


if __name__ == "__main__":
    main()
