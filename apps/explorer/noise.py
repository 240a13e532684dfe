"""The controls of the noise, the same on every page that has them: the level, and the seed."""

from __future__ import annotations

from typing import Any

import streamlit as st

from manifold.noising import noise_levels

__all__ = ["LEVELS", "level_slider", "seed_input"]

LEVELS = noise_levels()
"""sigma with alpha = 1, falling, as a sampler goes through them."""


def level_slider(default: float = 2.05) -> float:
    """Let the reader choose sigma, with alpha = 1: noise at the left, data at the right, as time runs in a sampler."""
    start = min(LEVELS, key=lambda level: abs(level - default))
    chosen: float = st.select_slider(
        "Time: noise level σ, from pure noise to data (α = 1)",
        LEVELS,
        value=start,
        format_func=lambda level: f"{level:g}",
        key="sigma",
        bind="query-params",
        help="x_t = α x0 + σ ε in latent units; a variance-preserving sampler passes the same states at σ / α.",
    )
    return float(chosen)


def seed_input(row: Any) -> int:
    """Let the reader choose the seed of the noise."""
    return int(row.number_input("Seed of the noise", 0, 2**31 - 1, 0, key="noise", bind="query-params", width=180))
