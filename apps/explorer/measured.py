"""What several pages measure of the whole collection, once: coordinates, likelihoods, duplicates, groups, labels."""

from __future__ import annotations

import numpy as np
import streamlit as st
from torch import Tensor

from index.clusters import cluster_rows
from index.coordinates import eigen_coordinates
from index.duplicates import Duplicates, find_duplicates
from index.likelihoods import log_likelihoods
from index.neighbours import exact_neighbours
from index.projection import umap_layout
from manifold.reproducibility import SplitHalf, split_half

from .loading import Opened
from .work import Watched, kept, known, working

__all__ = ["coordinates", "duplicates", "groups", "halves", "labels", "likelihoods", "umap_points"]


def coordinates(opened: Opened) -> Tensor:
    """Leading eigen-coordinates of every row, (n, k)."""

    def make() -> Tensor:
        with working("Projecting") as progress:
            return eigen_coordinates(opened.workspace, progress=progress)

    return kept(("coordinates", opened.token), make)


def likelihoods(opened: Opened) -> np.ndarray:
    """log p of every row, (n,), in nats."""

    def make() -> np.ndarray:
        with working("Measuring likelihoods") as progress:
            return log_likelihoods(opened.workspace, progress=progress).numpy()

    return kept(("likelihoods", opened.token), make)


def duplicates(opened: Opened, threshold: float) -> Duplicates:
    """Groups of near-duplicates, closer than a distance between latents."""

    def make() -> Duplicates:
        with working("Comparing pairs") as progress:
            return find_duplicates(opened.workspace.root, threshold=threshold, progress=progress)

    return kept(("duplicates", opened.token, threshold), make)


def umap_points(opened: Opened) -> np.ndarray:
    """UMAP of the coordinates, (n, 2)."""
    rows = coordinates(opened)

    def make() -> np.ndarray:
        with working("Finding neighbours") as progress, st.spinner("UMAP …", show_time=True):
            lists = exact_neighbours(rows, min(15, len(rows) - 1), progress=progress)
            return umap_layout(rows, lists, rows[:, :2].double().numpy(), min_dist=0.1, seed=0)

    return kept(("umap", opened.token), make)


def halves(opened: Opened, *, make_it: bool) -> SplitHalf | None:
    """How two halves of the images agree on the directions; None if that is not known and not to be found out."""

    def make() -> SplitHalf:
        with working("Comparing two halves") as progress, st.spinner("Decomposing …", show_time=True):
            return split_half(Watched(opened.store, progress))

    key = ("halves", opened.token)
    return kept(key, make) if make_it or known(key) else None


@st.cache_data(max_entries=8, show_spinner=False)
def groups(token: str, _rows: Tensor, count: int) -> np.ndarray:
    """k-means groups of the coordinates, (n,)."""
    return cluster_rows(_rows, count)


@st.cache_data(max_entries=4, show_spinner=False)
def labels(token: str, _opened: Opened) -> list[str] | None:
    """A name for every row: its caption where captions repeat, else its label; None if there are neither."""
    table = _opened.store.metadata(["label", "caption"])
    for name in ("caption", "label"):
        values = table.column(name).to_pylist()
        distinct = {value for value in values if value is not None}
        if 1 < len(distinct) <= 50:
            return ["none" if value is None else str(value) for value in values]
    return None
