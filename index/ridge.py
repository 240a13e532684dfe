"""Whether one space tells another linearly: ridge regression, judged on rows that it has not seen.

    W = argmin |Y - X W|^2 + penalty |W|^2,    R^2 = 1 - |Y' - X' W|^2 / |Y' - mean(Y')|^2   on held-out rows X', Y'

Each target has its own penalty, chosen on the training rows by leaving one out, which ridge regression gives in closed form:
the residual of row i divided by 1 - h_ii. The null is the same procedure after the training targets were dealt out among the
rows anew: what it reaches by luck, choice of penalty included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manifold.errors import InputError, NonFiniteError, ShapeError

__all__ = ["HeldOutRidge", "held_out_ridge"]


@dataclass(frozen=True)
class HeldOutRidge:
    """How well targets are predicted."""

    r2: np.ndarray
    """(m,) on held-out rows; 1 is perfect, 0 no better than their mean; NaN for a target that does not vary."""
    null_r2: np.ndarray
    """(shuffles, m) the same after shuffling."""
    penalties: np.ndarray
    """(m,) chosen."""
    train: np.ndarray
    """Numbers of the training rows."""
    test: np.ndarray
    """Numbers of the held-out rows."""


def held_out_ridge(
    features: np.ndarray,
    targets: np.ndarray,
    *,
    held_out: float = 0.2,
    penalties: np.ndarray | None = None,
    shuffles: int = 20,
    seed: int = 0,
) -> HeldOutRidge:
    """Predict targets from features with ridge regression and an intercept.

    Arguments
        features: (n, p). targets: (n, m). held_out: share of rows kept for the judgement, at least 2 of them.
        penalties: to choose from, all above 0; 17 from 1e-4 to 1e4 times the mean squared singular value of the features
            unless given.
        shuffles: repetitions of the null. seed: of the split and of the shuffles.

    Raises: ShapeError; InputError (too few rows, options); NonFiniteError.

    Cost: one singular value decomposition of the training features; a few products for each shuffle.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeError(f"features must be (n, p) and targets (n, m), they are {x.shape} and {y.shape}")
    for name, values in (("features", x), ("targets", y)):
        if not np.isfinite(values).all():
            raise NonFiniteError(f"row {int(np.argmin(np.isfinite(values).all(1)))} of the {name} has NaN or infinity")
    tested = round(held_out * len(x))
    if not 2 <= tested <= len(x) - 3:
        raise InputError(
            f"held_out must leave at least 2 rows to test and 3 to train on, {held_out:g} of {len(x)} does not"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    test, train = np.sort(order[:tested]), np.sort(order[tested:])
    centre = x[train].mean(0)
    u, s, vt = np.linalg.svd(x[train] - centre, full_matrices=False)
    if penalties is None:
        penalties = np.mean(s**2) * np.logspace(-4, 4, 17)
    if np.min(penalties) <= 0:
        raise InputError(f"penalties must be above 0, the least is {np.min(penalties):g}")
    rotated = (x[test] - centre) @ vt.T
    r2, chosen = _judge(u, s, rotated, y[train], y[test], penalties)
    null = [_judge(u, s, rotated, y[rng.permutation(train)], y[test], penalties)[0] for _ in range(shuffles)]
    return HeldOutRidge(r2, np.array(null).reshape(shuffles, y.shape[1]), chosen, train, test)


def _judge(
    u: np.ndarray, s: np.ndarray, rotated: np.ndarray, y: np.ndarray, y_test: np.ndarray, penalties: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """R^2 on test rows and the penalty chosen, for each target."""
    mean = y.mean(0)
    projected = u.T @ (y - mean)
    errors = []
    for penalty in penalties:
        kept = s**2 / (s**2 + penalty)
        leverage = 1 / len(u) + (u**2 * kept).sum(1)
        residuals = (y - mean - u @ (kept[:, None] * projected)) / (1 - leverage)[:, None]
        errors.append((residuals**2).mean(0))
    chosen = np.asarray(penalties)[np.argmin(errors, axis=0)]
    weights = s[:, None] / (s[:, None] ** 2 + chosen) * projected
    missed = ((y_test - mean - rotated @ weights) ** 2).sum(0)
    spread = ((y_test - y_test.mean(0)) ** 2).sum(0)
    return np.where(spread > 0, 1 - missed / np.where(spread > 0, spread, 1), np.nan), chosen
