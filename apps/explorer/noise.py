"""The controls of the noise, the same on every page that has them: the level, and the seed."""

from __future__ import annotations

from typing import Any

from manifold.noising import noise_levels

from .sliders import Board

__all__ = ["LEVELS", "level_board", "seed_input"]

LEVELS = noise_levels()
"""sigma with alpha = 1, falling, as a sampler goes through them."""


def level_board(default: float = 2.05, rest: str | None = None) -> Board:
    """A slider of sigma, with alpha = 1: noise at the left, data at the right, as time runs in a sampler.

    Its value is `board.values["sigma"]`; `rest` is as in `Board`.
    """
    return Board(
        {"sigma": "Time: noise level σ, from pure noise to data (α = 1)"},
        LEVELS,
        default,
        rest=rest,
        hint="x_t = α x0 + σ ε in latent units; a variance-preserving sampler passes the same states at σ / α.",
    )


def seed_input(row: Any) -> int:
    """Let the reader choose the seed of the noise."""
    return int(row.number_input("Seed of the noise", 0, 2**31 - 1, 0, key="noise", bind="query-params", width=180))
