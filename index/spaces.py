"""Comparing two views of the same images: the model's latent space, and CLIP.

Three questions, from coarse to fine: do the spaces agree on who is near to whom (overlap of neighbour lists, beside its
null); do images that are near share a label (in each space by itself, where labels are known); and which of CLIP's own
directions can be told linearly from the latent eigen-coordinates (held-out R^2, beside its null)? The first asks about all
directions at once and is dominated by those with most variance; the last tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manifold.errors import InputError

from .clip.store import ClipStore
from .coordinates import eigen_coordinates, principal_scores
from .neighbours import exact_neighbours
from .overlap import alignment, neighbour_overlap, shuffled_lists
from .progress import Progress, silent
from .ridge import held_out_ridge
from .workspace import Workspace

__all__ = ["DirectionTold", "NeighbourAgreement", "SpaceComparison", "compare_spaces"]

_SHUFFLES = 20


@dataclass(frozen=True)
class NeighbourAgreement:
    """The k nearest in latent space and in CLIP."""

    k: int
    overlap: float
    """Mean share of neighbours in both lists."""
    chance: float
    """k / (n - 1)."""
    null_mean: float
    """Of the same after pairing images at random."""
    null_sd: float
    mutual: float
    """Pairs that are mutual neighbours in both spaces, over those that are in either."""
    mutual_null: float
    """Mean of the same after pairing images at random."""
    same_label_latent: float | None
    """Share of latent neighbours with the image's own label; None without labels."""
    same_label_clip: float | None
    same_label_chance: float | None


@dataclass(frozen=True)
class DirectionTold:
    """One principal direction of the CLIP embeddings, predicted from latent eigen-coordinates."""

    direction: int
    """From 1, by falling variance."""
    share: float
    """Of the embeddings' variance."""
    r2: float | None
    """On held-out images; None where the direction does not vary among them."""
    null_r2: float | None
    """The largest of the shuffled repetitions."""


@dataclass(frozen=True)
class SpaceComparison:
    """All of it."""

    count: int
    clip: str
    coordinates: int
    """Latent eigen-coordinates used."""
    train: int
    test: int
    neighbours: tuple[NeighbourAgreement, ...]
    directions: tuple[DirectionTold, ...]
    told: float
    """Held-out R^2 over all the directions together, weighted by their variance."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def compare_spaces(
    workspace: str | Path,
    *,
    ks: Sequence[int] = (1, 10, 100),
    directions: int = 16,
    seed: int = 0,
    progress: Progress = silent,
) -> SpaceComparison:
    """Compare the latents of a workspace with its CLIP embeddings.

    Arguments
        workspace: its folder, fitted, and embedded by `index.clip.embed_workspace`.
        ks: lengths of neighbour lists. directions: leading directions of CLIP to predict. seed: of splits and shuffles.
        progress: told of ("project" | "neighbours", rows done, rows in all).

    Raises: InputError (k or directions out of range, fewer than 10 images); NotFittedError; MismatchError; FormatError.

    Cost: n^2 multiply-adds a coordinate for each space's neighbours; one singular value decomposition of the coordinates.
    """
    opened = Workspace.open(workspace)
    store = ClipStore.open(opened)
    n = len(store)
    if n < 10:
        raise InputError(f"a comparison needs at least 10 images, {opened.root} has {n}; encode more")
    if not ks or not all(1 <= k < n for k in ks):
        raise InputError(f"every k must lie between 1 and {n - 1}, one less than the images, they are {list(ks)}")
    if not 1 <= directions <= store.card.spec.d:
        raise InputError(f"directions must lie between 1 and CLIP's {store.card.spec.d}, it is {directions}")
    coordinates = eigen_coordinates(opened, progress=progress)
    embeddings = store.embeddings()
    latent = exact_neighbours(coordinates, max(ks), progress=progress).ids
    clip = exact_neighbours(embeddings, max(ks), progress=progress).ids
    labels = opened.latents.metadata(["label"])["label"]
    known = None if labels.null_count else labels.to_numpy()
    agreements = tuple(_agreement(latent, clip, known, k, seed) for k in ks)
    scores, variances = principal_scores(embeddings, directions)
    fit = held_out_ridge(coordinates.numpy(), scores, shuffles=_SHUFFLES, seed=seed)
    total = float(embeddings.var(axis=0, dtype=np.float64).sum())
    told = tuple(
        DirectionTold(
            direction=number + 1,
            share=float(variances[number] / total) if total else 0.0,
            r2=_number(fit.r2[number]),
            null_r2=_number(fit.null_r2[:, number].max()),
        )
        for number in range(directions)
    )
    weights = np.where(np.isfinite(fit.r2), variances, 0)
    together = float(np.nansum(weights * np.nan_to_num(fit.r2)) / weights.sum()) if weights.sum() else 0.0
    return SpaceComparison(
        count=n,
        clip=store.card.spec.id,
        coordinates=coordinates.shape[1],
        train=len(fit.train),
        test=len(fit.test),
        neighbours=agreements,
        directions=told,
        told=together,
    )


def _agreement(
    latent: np.ndarray, clip: np.ndarray, labels: np.ndarray | None, k: int, seed: int
) -> NeighbourAgreement:
    rng = np.random.default_rng(seed)
    shuffled = [shuffled_lists(clip, rng) for _ in range(_SHUFFLES)]
    null = [neighbour_overlap(latent, lists, k).mean() for lists in shuffled]
    same: list[float | None] = [None, None, None]
    if labels is not None:
        n = len(labels)
        counts = np.unique(labels, return_counts=True)[1]
        chance = float((counts * (counts - 1)).sum() / (n * (n - 1)))
        same = [*(float((labels[ids[:, :k]] == labels[:, None]).mean()) for ids in (latent, clip)), chance]
    return NeighbourAgreement(
        k=k,
        overlap=float(neighbour_overlap(latent, clip, k).mean()),
        chance=k / (len(latent) - 1),
        null_mean=float(np.mean(null)),
        null_sd=float(np.std(null)),
        mutual=alignment(latent, clip, k),
        mutual_null=float(np.mean([alignment(latent, lists, k) for lists in shuffled])),
        same_label_latent=same[0],
        same_label_clip=same[1],
        same_label_chance=same[2],
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
