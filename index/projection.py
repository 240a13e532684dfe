"""A map of a collection: two numbers an image, and its neighbours, in the columns that embedding-atlas reads.

    image_path, key, label                 of the workspace's metadata, in row order
    projection_x, projection_y             where the image lies on the map
    neighbors {ids, distances}             the nearest other rows, as numbers of rows of this file, nearest first

Neighbours are found before the projection, in the full space, so a viewer can tell what the map has torn apart. UMAP starts
from the two leading directions rather than from a spectral layout, so that the map keeps the broad order of the eigen-
structure, is the same on every run, and differs from the `pca` map only by what UMAP adds. It gets the exact neighbour lists
and a seed, and runs on one thread: on several its result would depend on their race.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError, MissingExtraError
from manifold.files import atomic_path

from .coordinates import eigen_coordinates, principal_scores
from .neighbours import NeighbourLists, exact_neighbours
from .progress import Progress, silent
from .workspace import Workspace, writing

__all__ = ["ImageMap", "Method", "Space", "map_path", "project_map", "umap_layout"]

Method = Literal["umap", "pca"]
Space = Literal["latent", "clip"]

_LEAST_ROWS = 4


@dataclass(frozen=True)
class ImageMap:
    """A projected collection."""

    points: np.ndarray
    """(n, 2) float64, in row order."""
    neighbours: NeighbourLists
    labels: np.ndarray
    """(n,) float64; NaN where an image has no label."""
    method: Method
    space: Space
    seed: int
    path: Path
    """Of the parquet file."""


def map_path(workspace: Workspace, space: Space) -> Path:
    """Where the map of a space is kept: WS/map/map.parquet for latents, WS/map/map-clip.parquet for CLIP embeddings."""
    return workspace.root / "map" / ("map.parquet" if space == "latent" else f"map-{space}.parquet")


def project_map(
    workspace: str | Path,
    method: Method = "umap",
    *,
    space: Space = "latent",
    neighbours: int = 15,
    min_dist: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> ImageMap:
    """Project a workspace to two dimensions and write the table.

    Arguments
        workspace: its folder; fitted for `latent`, embedded by `index.clip.embed_workspace` for `clip`.
        method: `umap`, or `pca`, the two leading directions.
        space: `latent`, the leading eigen-coordinates; or `clip`, the CLIP embeddings.
        neighbours: neighbours an image keeps in the table, and that UMAP looks at; at least 2.
        min_dist: how closely UMAP packs points, 0 to 1.
        seed: of UMAP.
        progress: told of ("project" | "neighbours", rows done, rows in all).

    Returns: the map, as written to WS/map.

    Raises: InputError (workspace, options, fewer than 4 images or 2 directions); NotFittedError; MissingExtraError if `umap`
        is asked for and umap-learn is not installed; StorageError.

    Cost: n^2 multiply-adds a coordinate for the neighbours. UMAP takes some 20 seconds for the first 2,000 images, most of
        them to compile. Distances in the table are Euclidean in latent units, or cosine distances, 1 - cos, for `clip`.
    """
    if method not in get_args(Method) or space not in get_args(Space):
        raise InputError(f"a map is made by umap or pca of latent or clip, not by {method!r} of {space!r}")
    if neighbours < 2 or not 0 <= min_dist <= 1:
        raise InputError(f"neighbours must be at least 2 and min_dist 0 to 1, they are {neighbours} and {min_dist}")
    if not 0 <= seed < 2**32:
        raise InputError(f"the seed must lie between 0 and 2^32 - 1, it is {seed}")
    if method == "umap":
        _umap()  # before the long work, so that a missing package is said at once
    opened = Workspace.open(workspace)
    opened.require_complete()
    count = len(opened.latents)
    if count < _LEAST_ROWS:
        raise InputError(f"a map needs at least {_LEAST_ROWS} images, {opened.root} has {count}; encode more")
    rows = _rows(opened, space, progress)
    if rows.shape[1] < 2:
        raise InputError(
            f"a map needs two directions, {opened.root} has one; fit again with more: manifold fit {opened.root}"
        )
    lists = exact_neighbours(rows, min(neighbours, count - 1), progress=progress)
    plane = rows[:, :2].double().numpy() if space == "latent" else principal_scores(rows, 2)[0]
    points = plane if method == "pca" else umap_layout(rows, lists, plane, min_dist=min_dist, seed=seed)
    if space == "clip":
        lists = NeighbourLists(lists.ids, lists.distances**2 / 2)
    about = {"method": method, "space": space, "seed": seed, "coordinates": rows.shape[1], "min_dist": min_dist}
    path = map_path(opened, space)
    with writing(opened.root):
        labels = _write(opened, path, points, lists, about)
    return ImageMap(points, lists, labels, method, space, seed, path)


def umap_layout(rows: Tensor, lists: NeighbourLists, start: np.ndarray, *, min_dist: float, seed: int) -> np.ndarray:
    """UMAP of rows (n, d) with given neighbour lists, from the layout `start` (n, 2): (n, 2) float64.

    Raises: MissingExtraError.
    """
    own = np.arange(len(rows))[:, None]  # UMAP counts a point as its own nearest neighbour
    most = len(rows) - 1
    ids = np.hstack([own, lists.ids])[:, :most]
    distances = np.hstack([np.zeros((len(rows), 1)), lists.distances])[:, :most].astype(np.float32)
    spread = float(np.abs(start).max()) or 1.0
    model = _umap().UMAP(
        n_neighbors=ids.shape[1],
        min_dist=min_dist,
        metric="euclidean",
        init=(start / spread).astype(np.float32),
        precomputed_knn=(ids, distances),
        random_state=seed,
        n_jobs=1,
    )
    with warnings.catch_warnings():
        # We never place new points on a map, for which UMAP would need its own search structure.
        warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]")
        return np.asarray(model.fit_transform(rows.numpy()), dtype=np.float64)


def _umap() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing umap warns that TensorFlow is missing, which we do not use
            import umap
    except ImportError as error:
        raise MissingExtraError(
            "a umap map needs umap-learn; install it with: pip install 'latent-manifold[map]', or use --method pca"
        ) from error
    return umap


def _rows(workspace: Workspace, space: Space, progress: Progress) -> Tensor:
    if space == "latent":
        return eigen_coordinates(workspace, progress=progress)
    from .clip.store import ClipStore

    return torch.from_numpy(ClipStore.open(workspace).embeddings())


def _write(
    workspace: Workspace, path: Path, points: np.ndarray, lists: NeighbourLists, about: dict[str, Any]
) -> np.ndarray:
    """Write the table; returns the labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = workspace.latents.metadata(["image_path", "key", "label"])
    n, k = lists.ids.shape
    offsets = pa.array(np.arange(0, n * k + 1, k), type=pa.int32())
    ids = pa.ListArray.from_arrays(offsets, pa.array(lists.ids.ravel()))
    distances = pa.ListArray.from_arrays(offsets, pa.array(lists.distances.ravel()))
    table = pa.table(
        {
            "image_path": known["image_path"],
            "key": known["key"],
            "label": known["label"],
            "projection_x": points[:, 0],
            "projection_y": points[:, 1],
            "neighbors": pa.StructArray.from_arrays([ids, distances], ["ids", "distances"]),
        }
    )
    facts = {**about, "neighbours": k, "latents_sha256": workspace.latents_checksum}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({"manifold": json.dumps(facts, sort_keys=True)}), temporary)
    return np.asarray(known["label"].to_numpy(), dtype=np.float64)
