"""How a generation finds its neighbours: CLIP's lists for the predicted target at each step, against those of the end.

    to_final(s, i)       = |C_k(x0_hat at step s) & C_k(final image)| / k
    to_others(s, i)      = the same with the final images of the other trajectories, on average
    between_spaces(s, i) = |C_k(x0_hat at step s) & L_k(state at step s)| / k

C are neighbours in CLIP, L those that the latent search names at the same step. Lists drawn at random share k / n; lists of
CLIP share more, since a few images are in many of them, and `to_others` says how much. Before the first step that rises above
it, what CLIP sees says nothing yet of where this generation ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from index.overlap import neighbour_overlap
from manifold.errors import InputError, ShapeError

from .search import ClipSearcher

__all__ = ["TrajectoryOverlap", "trajectory_overlap"]


@dataclass(frozen=True)
class TrajectoryOverlap:
    """Overlaps by step and trajectory."""

    to_final: np.ndarray
    """(steps, n): share of the final image's neighbours already there."""
    to_others: np.ndarray | None
    """(steps, n): the null, share of the other final images' neighbours that are there; None for a single trajectory."""
    between_spaces: np.ndarray | None
    """(steps, n): share of neighbours that the latent search names too; None without its lists."""
    cosine_to_final: np.ndarray
    """(steps, n): cosine of the step's embedding with the final one."""
    chance: float
    """k / n, of lists drawn at random."""


def trajectory_overlap(
    searcher: ClipSearcher,
    images: np.ndarray,
    k: int = 10,
    *,
    final: np.ndarray | None = None,
    latent_ids: np.ndarray | None = None,
) -> TrajectoryOverlap:
    """Follow neighbour lists along trajectories.

    Arguments
        searcher: over the collection's CLIP embeddings.
        images: (steps, n, H, W, 3) uint8, square: the decoded predicted targets x0_hat of n trajectories, first step first.
        k: neighbours, 1 to the number of images in the collection.
        final: (n, H, W, 3) uint8 final images; the last step's unless given.
        latent_ids: (steps, n, K) with K >= k, row numbers that the latent search names at each step, best first.

    Raises: ShapeError; InputError for k out of range; what `ClipSearcher.by_image` raises.

    Cost: one forward pass and one search an image; n^2 k^2 comparisons a step for the null.
    """
    if images.ndim != 5 or not len(images):
        raise ShapeError(f"images must be (steps, n, H, W, 3) with a step at least, they are {images.shape}")
    steps, n = images.shape[:2]
    if not 1 <= k <= len(searcher.store):
        raise InputError(f"k must lie between 1 and the collection's {len(searcher.store)} images, it is {k}")
    if latent_ids is not None and (latent_ids.shape[:2] != (steps, n) or latent_ids.ndim != 3):
        raise ShapeError(f"latent_ids must be ({steps}, {n}, K), they are {latent_ids.shape}")
    ends = images[-1] if final is None else final
    if len(ends) != n:
        raise ShapeError(f"there must be a final image for each of {n} trajectories, there are {len(ends)}")
    target = searcher.embed(ends)
    wanted = searcher.by_vector(target, k).ids
    to_final, to_others, cosines, between = (np.empty((steps, n)) for _ in range(4))
    for step in range(steps):
        vectors = searcher.embed(images[step])
        ids = searcher.by_vector(vectors, k).ids
        to_final[step] = neighbour_overlap(ids, wanted, k)
        if n > 1:
            others = [neighbour_overlap(ids, np.roll(wanted, shift, axis=0), k) for shift in range(1, n)]
            to_others[step] = np.mean(others, axis=0)
        cosines[step] = (vectors * target).sum(1).numpy()
        if latent_ids is not None:
            between[step] = neighbour_overlap(ids, latent_ids[step, :, :k], k)
    chance = k / len(searcher.store)
    return TrajectoryOverlap(
        to_final=to_final,
        to_others=to_others if n > 1 else None,
        between_spaces=between if latent_ids is not None else None,
        cosine_to_final=cosines,
        chance=chance,
    )
