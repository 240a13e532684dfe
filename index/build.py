"""Building the index of a workspace: coordinates on the manifold's own eigenvectors, small enough to scan.

Neighbours are found among k leading coordinates, then ranked exactly from the latents themselves, so the coordinates need
only bring the right candidates, and k and their precision may be small.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from manifold.errors import InputError, ManifoldWarning
from manifold.files import TEMPORARY_PREFIX, atomic_path, sha256_file
from manifold.gaussian import GaussianManifold
from manifold.precision import without_autocast

from .card import INDEX_SCHEMA, announce_card, write_card
from .costs import INVERTED
from .inverted_file import write_inverted_file
from .plan import DEFAULT_MEMORY_BYTES, DEFAULT_RECALL, Plan, finer_plan, plan_index
from .progress import Progress, silent
from .recall import Truth, calibrate, enough_candidates, measure_recall
from .statistics import load_manifold
from .workspace import Workspace, writing

__all__ = ["build_index", "measure_index", "plan_workspace"]


def plan_workspace(
    workspace: str | Path,
    *,
    rank: int | None = None,
    kind: str | None = None,
    memory: int | str = DEFAULT_MEMORY_BYTES,
    recall: float | None = None,
) -> Plan:
    """The index that a fitted workspace needs; see `plan_index`.

    Raises: as `build_index`.
    """
    opened = Workspace.open(workspace)
    opened.require_complete()
    return _plan(opened, load_manifold(opened), rank, kind, memory, recall)


@without_autocast
def build_index(
    workspace: str | Path,
    *,
    rank: int | None = None,
    kind: str | None = None,
    memory: int | str = DEFAULT_MEMORY_BYTES,
    recall: float | None = None,
    plan: Plan | None = None,
    measure: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Build the index of a workspace, measure what it finds, and write it with its card.

    Arguments
        workspace: its folder, encoded and fitted.
        rank: eigen-coordinates to keep, 1 to the manifold's k; unless given, from 16 to 256, the number that answers soonest.
        kind: kind of index, see `index.costs.Kind`; the quickest that fits unless given. If neither kind nor rank is given,
            and the index built is measured and misses its recall, finer ones are built in its place, see `finer_plan`.
        memory: bytes it may take, or a text such as "4G"; 1 GiB unless given.
        recall: share of the true 10 nearest wanted; 0.99 unless given.
        plan: from `plan_workspace`, instead of `rank`, `kind`, `memory` and `recall`.
        measure: whether to measure what the index finds; `measure_index` does it later.
        progress: told of ("index", rows done, rows in all); then, if measured, of ("truth", rows done, rows in all) and
            ("recall", noise levels done, noise levels in all).

    Returns: the card, as written to WS/index/image.json: the plan, checksums, and the recall found.

    Raises: InputError (no complete workspace, rank out of range, no index fits into the memory); NotFittedError if statistics
        are missing; MismatchError if they are of other latents; FormatError; StorageError.

    Warns: ManifoldWarning if a recall was asked for and was not found.

    Cost: one pass over the latents, memory and time as the plan says; a second pass to measure, or where a graph or lists
        need to know how far to look. Until all is done, an earlier index stays as it was.
    """
    root = Path(workspace)
    Workspace.open(root).require_complete()
    with writing(root):
        opened = Workspace.open(root)
        manifold = load_manifold(opened)
        if plan is None:
            plan = _plan(opened, manifold, rank, kind, memory, recall)
        if plan.count != len(opened.latents) or plan.k > manifold.k:
            raise InputError(f"the plan is for {plan.count:,} rows, {root} has {len(opened.latents):,}; plan it again")
        from . import faiss_io
        from .search import Searcher

        with atomic_path(opened.index_path) as path:
            truth: Truth | None = None
            while True:
                empty, sample = _trained(opened, manifold, plan)
                index = _filled(opened, empty, plan, sample, path, progress)
                effort: int | None = None
                if measure or faiss_io.set_effort(index, 1):
                    truth = truth or Truth(manifold, opened.latents, progress=progress)
                    effort = calibrate(index, truth, plan)
                candidates, finer = plan.candidates, None
                if measure and truth:
                    candidates, finer = _candidates_or_finer(manifold, plan, index, truth)
                if finer is None:
                    break
                plan = finer
                del empty, sample, index  # the plan's memory is for one
            card: dict[str, Any] = {
                "schema": INDEX_SCHEMA,
                "kind": plan.kind,
                "metric": "L2 between eigen-coordinates, then exact L2 between latents",
                "count": plan.count,
                "d": opened.latents.d,
                "k": plan.k,
                "variance_kept": float(manifold.eigvals[: plan.k].sum()) / manifold.total_variance,
                "stats_sha256": sha256_file(opened.stats_path),
                "latents_sha256": opened.latents_checksum,
                "encoder": opened.manifest.recipe.encoder.id,
                "faiss": faiss_io.version(),
                "candidates": candidates / 10,
                "plan": asdict(plan),
                "effort": effort,
            }
            if plan.kind in INVERTED:
                # The lists are in the file already; the number of them to probe stands before them.
                faiss_io.set_effort(empty, effort or 1)
                with path.open("r+b") as file:
                    file.write(faiss_io.empty_file(empty, plan.count))
            else:
                faiss_io.write_index(index, path)
            card["index_sha256"], card["index_bytes"] = sha256_file(path), path.stat().st_size
            if measure and truth:
                searcher = Searcher(opened, manifold, index, card)
                card = {**card, "recall": measure_recall(searcher, truth, progress=progress)}
            announce_card(opened, card)
        write_card(opened, card)
    if measure and recall is not None:
        _warn_below(card, recall)
    return card


def measure_index(workspace: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Measure again what an index finds, as after images were added or removed, and write it into its card.

    Searches rank more candidates from then on if the recall that the index was planned for needs more.

    Arguments
        workspace: its folder, indexed.
        progress: told of ("truth", rows done, rows in all), then of ("recall", noise levels done, noise levels in all).

    Returns: the card, as written to WS/index/image.json.

    Raises: all of `Searcher.open`; StorageError.

    Cost: one pass over the latents, 232 d multiply-adds a row, and 200 searches.
    """
    from .search import Searcher

    root = Path(workspace)
    Workspace.open(root).require_complete()
    with writing(root):
        searcher = Searcher.open(root)
        truth = Truth(searcher.manifold, searcher.workspace.latents, progress=progress)
        plan = searcher.card["plan"]
        enough, _ = enough_candidates(searcher._index, truth, plan["candidates"], plan["target_recall"])
        searcher.card = {**searcher.card, "candidates": enough / 10}
        card = {**searcher.card, "recall": measure_recall(searcher, truth, progress=progress)}
        write_card(searcher.workspace, card)
    return card


def _plan(
    workspace: Workspace,
    manifold: GaussianManifold,
    rank: int | None,
    kind: str | None,
    memory: int | str,
    recall: float | None,
) -> Plan:
    wanted = DEFAULT_RECALL if recall is None else recall
    eigvals = _eigvals(manifold)
    return plan_index(len(workspace.latents), manifold.d, eigvals, memory, wanted, kind, rank, manifold.tail_var)


def _eigvals(manifold: GaussianManifold) -> np.ndarray:
    """Of the directions there are. Raises: NotFittedError from a model without eigenvectors."""
    return manifold.eigvals[: manifold.eigvecs.shape[1]].double().numpy()


def _candidates_or_finer(manifold: GaussianManifold, plan: Plan, index: Any, truth: Truth) -> tuple[int, Plan | None]:
    """How many rows to rank for 10 neighbours; and what to build instead if all the candidates allowed miss the recall."""
    from .cpu_index import CpuIndex

    enough, reached = enough_candidates(CpuIndex(index), truth, plan.candidates, plan.target_recall)
    return enough, None if reached else finer_plan(plan, manifold.d, _eigvals(manifold), manifold.tail_var)


def _trained(workspace: Workspace, manifold: GaussianManifold, plan: Plan) -> tuple[Any, np.ndarray]:
    """The planned index without rows, trained on rows spread evenly over the collection; and their coordinates."""
    from . import faiss_io

    index = faiss_io.new_index(
        manifold.mean.float().numpy(),
        manifold.eigvecs[:, : plan.k].float().numpy(),
        plan.kind,
        eigvals=manifold.eigvals[: plan.k].double().numpy(),
        lists=plan.lists,
        groups=plan.groups,
        bits=plan.bits,
    )
    sample = np.empty((plan.training_rows, plan.k), dtype=np.float32)
    spread = np.linspace(0, plan.count - 1, plan.training_rows, dtype=np.int64)
    for start in range(0, plan.training_rows, plan.batch_rows):
        chosen = spread[start : start + plan.batch_rows]
        sample[start : start + len(chosen)] = faiss_io.eigen_coordinates(index, workspace.latents.read(chosen))
    if plan.training_rows:
        faiss_io.train(index, sample)
    return index, sample


def _filled(workspace: Workspace, index: Any, plan: Plan, sample: np.ndarray, path: Path, progress: Progress) -> Any:
    """The index with all rows: itself, or one whose lists are in the file at `path`. A sample of all rows is those rows."""
    from . import faiss_io

    def rows() -> Iterator[np.ndarray]:
        done = 0
        progress("index", 0, plan.count)
        whole = len(sample) == plan.count
        for batch in _portions(sample, plan.batch_rows) if whole else workspace.latents.batches(plan.batch_rows):
            yield batch if whole else faiss_io.eigen_coordinates(index, batch)
            done += len(batch)
            progress("index", done, plan.count)

    if plan.kind in INVERTED:
        header = faiss_io.empty_file(index, plan.count)
        spool = path.with_name(f"{TEMPORARY_PREFIX}codes")
        encoded = (faiss_io.assign_and_encode(index, coords) for coords in rows())
        write_inverted_file(path, header, plan.lists, encoded, spool)
        return faiss_io.read_index(path)
    for coords in rows():
        faiss_io.take(index, coords)
    return index


def _portions(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _warn_below(card: dict[str, Any], wanted: float) -> None:
    """Say so where even the upper end of the interval lies below what was asked for."""
    worst = min(card["recall"]["cells"], key=lambda cell: cell["recall_at_10"], default=None)
    if worst is not None and worst["recall_at_10_interval"][1] < wanted:
        warnings.warn(
            f"recall@10 of endpoints at sigma {worst['sigma']:.3g} is {worst['recall_at_10']:.3f}, {wanted:g} was asked for; "
            f"build again with more coordinates than --rank {card['k']}, or with more --memory",
            ManifoldWarning,
            stacklevel=3,
        )
