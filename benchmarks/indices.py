"""The index beside FAISS's own and a public auto-indexer, in one run: time to build, size, and time a query at one recall.

    python benchmarks/indices.py [--rows 20000 --d 4096] [--rows 100000 --d 3072] [--auto-indexer PYTHON]

(A script called index.py would stand in the way of the package `index`.) Rows are Gaussian with eigenvalues 1 / rank in a
basis that no coordinate axis knows; queries are held out, from the same distribution, asked one at a time; the median
counts. Everything runs in one thread, and its processor time is what is told, so that other work on the machine distorts
little. Recall@10 is against brute force on the stored latents.

Ours are built as `manifold index` does, planned for 0.99; the time of the fit, without which there is no basis, and that of
the recall report stand beside. Each rival gets the settings that reach 0.99 in the least time: HNSW its breadth, IVF-PQ the
lists it probes and how many candidates it ranks again from the full vectors. `--auto-indexer` names the Python of an
environment in which autofaiss is installed (it wants numpy below 2); it chooses for itself, from the same float32 vectors,
and is searched there.

The smaller sizes, --small, ask whether a search is ever slower than a scan of all vectors.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from report import show, write

from index import Searcher, build_index, encode_images, fit_workspace, measure_index
from index.costs import Kind

RECALL = 0.99
K = 10
OURS: list[Kind | None] = [None, "Int8", "SQ8", "SQfp16", "RaBitQ", "HNSW", "IVF-SQ8"]
SMALL = (100, 300, 1000, 3000, 10_000)
Search = Callable[[np.ndarray], np.ndarray]
Rival = Callable[[np.ndarray, np.ndarray, np.ndarray], list[object]]
COLUMNS = ["index", "build s", "MB", "recall@10", "ms a query", "setting"]

AUTO_INDEXER = """
import json, os, sys, time
import faiss, numpy as np
from autofaiss import build_index
faiss.omp_set_num_threads(1)
folder = sys.argv[1]
before = time.process_time()
index, infos = build_index(
    folder + "/vectors", index_path=folder + "/auto.index", index_infos_path=folder + "/auto.json", metric_type="l2",
    max_index_memory_usage="1G", current_memory_available="4G", nb_cores=1, verbose=40)
build_s = time.process_time() - before
queries, spent, found = np.load(folder + "/queries.npy"), [], []
index.search(queries[:1], 10)
for number in range(len(queries)):
    before = time.thread_time()
    ids = index.search(queries[number : number + 1], 10)[1]
    spent.append(time.thread_time() - before)
    found.append(ids[0].tolist())
setting = infos["index_key"] + ", " + infos["index_param"]
print("RESULT" + json.dumps([build_s, os.path.getsize(folder + "/auto.index"), spent, found, setting]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append", help="collections to measure; give --d as often")
    parser.add_argument("--d", type=int, action="append")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--small", action="store_true", help=f"collections of {SMALL} rows beside a scan, and no others"
    )
    parser.add_argument("--auto-indexer", metavar="PYTHON", help="where autofaiss is installed")
    parser.add_argument("--without-rivals", action="store_true", help="only FAISS Flat: the others take long to build")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if options.small:
        d = (options.d or [4096])[0]
        rows = [beside_a_scan(n, d, options.queries) for n in SMALL]
        columns = ["rows", "index", "recall@10", "ms a query", "FAISS Flat ms", "torch ms", "same scan ms"]
        show(f"small collections of {d:,} values", columns, rows)
        write("indices_small", [dict(zip(columns, row, strict=True)) for row in rows])
        return
    if not options.rows:
        options.rows, options.d = [20_000, 100_000], [4096, 3072]
    rivals: list[Rival] = [] if options.without_rivals else [hnsw, ivf_pq]
    if options.auto_indexer:
        rivals.insert(0, lambda *data: auto_indexer(options.auto_indexer, *data))
    sizes = zip(options.rows, options.d, strict=True)
    write("indices", [measure(n, d, options.queries, rivals) for n, d in sizes])


def measure(n: int, d: int, queries: int, rivals: list[Rival]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        root, fit_s, held_out, vectors = collection(Path(folder), n, d, queries)
        flat = faiss.IndexFlatL2(d)
        build_s, _ = timed(lambda: flat.add(vectors))
        truth = flat.search(held_out, K)[1]
        table = [["FAISS Flat", build_s, 4 * n * d / 1e6, *judged(flat_search(flat), held_out, truth), ""]]
        print(f"{n:,} x {d:,}: fit {fit_s:.1f} s", flush=True)
        for kind in OURS[:1] if not rivals else OURS:
            table.append(ours(root, kind, held_out, truth))
            print(table[-1], flush=True)
        build_index(root, measure=False)
        report_s, _ = timed(lambda: measure_index(root))
        for rival in rivals:
            table.append(rival(vectors, held_out, truth))
            print(table[-1], flush=True)
    about = f"fit {fit_s:.1f} s, recall report {report_s:.1f} s"
    show(f"{n:,} rows of {d:,}, eigenvalues 1 / rank, {queries} queries; {about}", COLUMNS, table)
    planned = table[1]
    for row in [table[0], *(row for row in table if str(row[0]).startswith("autofaiss"))]:
        build, size, query = (float(row[at]) / float(planned[at]) for at in (1, 2, 4))  # type: ignore[arg-type]
        print(
            f"planned, against {row[0]}: {query:.1f} times quicker, {size:.0f} times smaller, built {build:.1f} times quicker"
        )
    figures = [dict(zip(COLUMNS, row, strict=True)) for row in table]
    return {"rows": n, "d": d, "queries": queries, "fit_s": fit_s, "recall_report_s": report_s, "table": figures}


def beside_a_scan(n: int, d: int, queries: int) -> list[object]:
    """Ours, and three ways to look at every vector: FAISS in float32, torch, and one with our guarantee.

    The last ranks as a search does: from the float16 latents, in float64, ties by row number.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, _, held_out, vectors = collection(Path(folder), n, d, queries)
        flat = faiss.IndexFlatL2(d)
        flat.add(vectors)
        truth = flat.search(held_out, K)[1]
        held, halves = torch.from_numpy(vectors), vectors.astype(np.float16)

        def by_torch(query: np.ndarray) -> np.ndarray:
            return torch.cdist(torch.from_numpy(query), held).topk(K, largest=False).indices.numpy()

        def exactly(query: np.ndarray) -> np.ndarray:
            away = torch.from_numpy(halves).double().sub_(torch.from_numpy(query[0])).numpy()
            distances = np.sqrt(np.square(away, out=away).sum(1))
            return np.lexsort((np.arange(n), distances))[None, :K]

        scans = [judged(search, held_out, truth)[1] for search in (flat_search(flat), by_torch, exactly)]
        name, _, _, recall, ms, _ = ours(root, None, held_out, truth)
        return [n, name, recall, ms, *scans]


def collection(folder: Path, n: int, d: int, queries: int) -> tuple[Path, float, np.ndarray, np.ndarray]:
    """A fitted workspace, the time of the fit, held-out queries, and the latents as float32."""
    rng = np.random.default_rng(0)
    axes = [unit(rng.standard_normal(d)) for _ in range(3)]
    held_out = gaussian(rng, queries, d, axes)
    root, embeddings = folder / "ws", folder / "embeddings"
    embeddings.mkdir()
    for part in range(-(-n // 10_000)):
        rows = gaussian(rng, min(10_000, n - 10_000 * part), d, axes)
        np.save(embeddings / f"img_emb_{part:04d}.npy", rows.astype(np.float16))
    encode_images(embeddings, root)
    fit_s, _ = timed(lambda: fit_workspace(root))
    vectors = np.concatenate([np.load(path) for path in sorted(embeddings.glob("*.npy"))]).astype(np.float32)
    return root, fit_s, held_out, vectors


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def gaussian(rng: np.random.Generator, n: int, d: int, axes: list[np.ndarray]) -> np.ndarray:
    """Rows with eigenvalues 1 / rank, turned by three reflections: a basis without one axis of its own, at no cost."""
    rows = rng.standard_normal((n, d), dtype=np.float32) / np.sqrt(np.arange(1, d + 1, dtype=np.float32))
    for axis in axes:
        rows -= 2 * np.outer(rows @ axis, axis)
    return rows.astype(np.float32)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    before_s = time.thread_time()
    made = work()
    return time.thread_time() - before_s, made


def judged(search: Search, queries: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Recall@10, and the median milliseconds of one query alone."""
    spent, found = [], []
    for number in range(min(20, len(queries))):
        search(queries[number : number + 1])
    for number in range(len(queries)):
        one_s, ids = timed(lambda number=number: search(queries[number : number + 1]))  # type: ignore[misc]
        spent.append(one_s)
        found.append(np.isin(truth[number], ids).mean())
    return float(np.mean(found)), float(1e3 * np.median(spent))


def flat_search(flat: faiss.Index) -> Search:
    return lambda query: flat.search(query, K)[1]


def ours(root: Path, kind: Kind | None, queries: np.ndarray, truth: np.ndarray) -> list[object]:
    build_s, card = timed(lambda: build_index(root, kind=kind, measure=False))
    searcher = Searcher.open(root)
    recall, ms = judged(lambda query: searcher.search(torch.from_numpy(query), k=K).ids, queries, truth)
    name = f"{card['kind']}, k = {card['k']}{'' if kind else ' (planned)'}"
    setting = f"{card['plan']['candidates']} ranked" + (f", effort {card['effort']}" if card["effort"] else "")
    return [name, build_s, card["index_bytes"] / 1e6, recall, ms, setting]


def auto_indexer(python: str, vectors: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> list[object]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vectors").mkdir()
        np.save(Path(folder) / "vectors" / "vectors.npy", vectors)
        np.save(Path(folder) / "queries.npy", queries)
        ran = subprocess.run(
            [python, "-W", "ignore", "-c", AUTO_INDEXER, folder], stdout=subprocess.PIPE, text=True, check=True
        )
        line = next(line for line in ran.stdout.splitlines() if line.startswith("RESULT"))
    build_s, size, spent, found, setting = json.loads(line.removeprefix("RESULT"))
    recall = float(np.mean([np.isin(true, ids).mean() for true, ids in zip(truth, found, strict=True)]))
    return ["autofaiss", build_s, size / 1e6, recall, float(1e3 * np.median(spent)), setting]


def hnsw(vectors: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> list[object]:
    graph = faiss.IndexHNSWFlat(vectors.shape[1], 32)
    build_s, _ = timed(lambda: graph.add(vectors))
    recall, ms, breadth = 0.0, 0.0, 0
    for breadth in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        graph.hnsw.efSearch = breadth
        recall, ms = judged(lambda query: graph.search(query, K)[1], queries, truth)
        if recall >= RECALL:
            break
    size = len(vectors) * (4 * vectors.shape[1] + 274) / 1e6
    return ["FAISS HNSW32", build_s, size, recall, ms, f"efSearch {breadth}"]


def ivf_pq(vectors: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> list[object]:
    """With the full vectors kept for ranking again: without, no setting reaches the recall."""
    n, d = vectors.shape
    lists, groups = int(4 * np.sqrt(n)), 256 if d % 256 == 0 else 192
    coarse = faiss.IndexFlatL2(d)
    quantiser = faiss.IndexIVFPQ(coarse, d, lists, groups, 8)
    quantiser.cp.min_points_per_centroid = quantiser.pq.cp.min_points_per_centroid = 1
    refined = faiss.IndexRefineFlat(quantiser)

    def build() -> None:
        refined.train(vectors)
        refined.add(vectors)

    build_s, _ = timed(build)
    settings = []
    for probes in (32, 128, lists):
        for factor in (10, 50, 100, 200):
            quantiser.nprobe, refined.k_factor = min(probes, lists), float(factor)
            recall, ms = judged(lambda query: refined.search(query, K)[1], queries[:50], truth[:50])
            settings.append((recall < RECALL, ms if recall >= RECALL else -recall, probes, factor))
    _, _, probes, factor = min(settings)
    quantiser.nprobe, refined.k_factor = probes, float(factor)
    recall, ms = judged(lambda query: refined.search(query, K)[1], queries, truth)
    size = n * (4 * d + groups + 8) / 1e6
    return [f"FAISS IVF-PQ{groups} + Flat", build_s, size, recall, ms, f"nprobe {probes}, {K * factor} ranked"]


if __name__ == "__main__":
    main()
