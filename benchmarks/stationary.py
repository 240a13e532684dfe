"""Few latents: held-out likelihood of the stationary model beside full and low-rank models with any shrinkage.

Run: python benchmarks/stationary.py LATENTS.npy [--shape 32 16 16] [--fit 100] [--splits 3]

LATENTS.npy is (n, C*H*W). The first `--fit` rows are fitted, the rest judge; further splits shuffle the rows. Rivals get
every help: Ledoit-Wolf, OAS, and the rank and the intensity that the rows left out like best, which no user could know.
The stationary model chooses its smoothing from the fitted rows alone. Blends with the stationary model come last.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from report import show, write

from manifold.covariance import (
    fit_lowrank,
    fit_stationary,
    ledoit_wolf_intensity,
    oas_intensity,
    score_blends,
    score_lowrank_blends,
)
from manifold.covariance.fit_stationary import choose_smoothing
from manifold.cross_spectrum import CrossSpectrum
from manifold.likelihood import EigenScore, mean_log_likelihood
from manifold.moments import Moments
from manifold.rows import ArrayRows

INTENSITIES = [float(a) for a in np.linspace(0.01, 1.0, 100)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", type=Path)
    parser.add_argument("--shape", type=int, nargs=3, default=[32, 16, 16])
    parser.add_argument("--fit", type=int, default=100)
    parser.add_argument("--splits", type=int, default=3)
    options = parser.parse_args()
    latents = np.load(options.latents)
    c, h, w = options.shape
    tables = []
    for split in range(options.splits):
        rows = latents if split == 0 else latents[np.random.default_rng(split).permutation(len(latents))]
        tables.append(compare(rows[: options.fit], rows[options.fit :], (c, h, w)))
    figures = {
        name: {"mean": statistics.mean(table[name] for table in tables), "by split": [table[name] for table in tables]}
        for name in tables[0]
    }
    ranked = sorted(figures.items(), key=lambda item: -item[1]["mean"])
    lines = [(name, figure["mean"], *figure["by split"]) for name, figure in ranked]
    title = f"log-likelihood of {len(latents) - options.fit} rows left out, nats a value, {options.fit} fitted"
    show(title, ("model", "mean", "as stored", *(f"shuffle {i}" for i in range(1, options.splits))), lines)
    write("stationary", {"fitted": options.fit, "held_out": len(latents) - options.fit, "models": figures})


def compare(fitted: np.ndarray, held_out: np.ndarray, shape: tuple[int, int, int]) -> dict[str, float]:
    d, k = fitted.shape[1], len(fitted) - 1
    train, judge = ArrayRows(fitted), ArrayRows(held_out)
    moments = Moments(d)
    moments.update(fitted)
    # k = n - 1 eigenpairs are all that n rows give: with shrinkage this is the full model.
    score = EigenScore.of(fit_lowrank(train, k), judge)
    found: dict[str, float] = {}
    for name, intensity in (("OAS", oas_intensity(moments)), ("Ledoit-Wolf", ledoit_wolf_intensity(moments, train))):
        found[f"full, {name}"] = score.mean_log_likelihood(k, intensity)
        for rank in (4, 16, 64):
            found[f"lowrank {rank}, {name}"] = score.mean_log_likelihood(rank, intensity)
    found["full, best intensity"] = max(score.mean_log_likelihood(k, a) for a in INTENSITIES)
    found["lowrank, best rank, no shrinkage"] = max(score.mean_log_likelihood(rank, 0.0) for rank in range(1, k))
    found["lowrank, best rank and intensity"] = max(
        score.mean_log_likelihood(rank, a) for rank in range(1, k) for a in INTENSITIES[::3]
    )
    start = time.perf_counter()
    spectrum = CrossSpectrum.of(train, shape)
    smoothing = choose_smoothing(spectrum)
    target = fit_stationary(spectrum, smoothing=smoothing)
    print(f"stationary: smoothing {smoothing:g}, fitted in {time.perf_counter() - start:.1f} s")
    found["stationary"] = mean_log_likelihood(target, judge)
    found["stationary, no smoothing"] = mean_log_likelihood(fit_stationary(spectrum, smoothing=0), judge)
    blends = {blend.weight: blend.log_likelihood for blend in score_blends(train, judge, target)}
    found["full toward stationary, weight 0.9"] = blends[0.9]
    found["full toward stationary, weight 0.99"] = blends[0.99]
    best = max((weight for weight in blends if weight < 1.0), key=lambda weight: blends[weight])
    found["full toward stationary, best weight below 1"] = blends[best]
    for rank in (4, 16, 64):
        scores = score_lowrank_blends(fit_lowrank(train, rank), judge, target)
        found[f"lowrank {rank} toward stationary, best weight"] = max(score.log_likelihood for score in scores)
    return {name: value / d for name, value in found.items()}


if __name__ == "__main__":
    main()
